//! The kernel's announcements of new devices: what a wait for a device sleeps on.

use crate::util::{poll, Deadline};
use rustix::event::{PollFd, PollFlags};
use rustix::net::netlink::{SocketAddrNetlink, KOBJECT_UEVENT};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A subscription. Without one (no netlink in the kernel) waiting looks again every 20 ms.
pub struct Uevents {
    socket: Option<OwnedFd>,
}

impl Uevents {
    pub fn subscribe() -> Self {
        Self { socket: open().ok() }
    }

    /// Wait until `look` finds something; None if the deadline passes first.
    pub fn wait_for<T>(&self, deadline: Deadline, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        // Devices are announced before every attribute of them can be read: look again now and then all the same.
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        const LOOK_AGAIN_BLIND: Duration = Duration::from_millis(20);
        loop {
            if let Some(found) = look() {
                return Some(found);
            }
            if deadline.has_passed() {
                return None;
            }
            match &self.socket {
                Some(socket) => {
                    let mut fds = [PollFd::new(socket, PollFlags::IN)];
                    // A failing poll only means that the next look comes sooner.
                    let _ = poll(&mut fds, Some(deadline.remaining().min(LOOK_AGAIN)));
                    drain(socket);
                }
                None => std::thread::sleep(deadline.remaining().min(LOOK_AGAIN_BLIND)),
            }
        }
    }
}

fn open() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 1))?;
    Ok(socket)
}

fn drain(socket: &OwnedFd) {
    let mut buffer = [0_u8; 4096];
    while rustix::io::read(socket, buffer.as_mut_slice()).is_ok_and(|count| count > 0) {}
}
