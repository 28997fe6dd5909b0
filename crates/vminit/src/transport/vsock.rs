//! Streams as vsock connections: to the host's CID 2, and from it to a listening port.

use crate::sys::VsockAddress;
use crate::util::{poll, refuse, start_thread, Context, Deadline};
use firebuild_protocol::{ErrorCode, TaskError};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::time::Duration;

const CID_HOST: u32 = 2;
const CID_ANY: u32 = u32::MAX;
const BACKLOG: i32 = 128;

fn socket(flags: SocketFlags) -> Result<OwnedFd, TaskError> {
    rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC | flags, None)
        .doing("open a vsock socket")
}

/// Connect to a port of the host.
pub fn connect(port: u32, deadline: Deadline) -> Result<OwnedFd, TaskError> {
    connect_to(CID_HOST, port, deadline)
}

fn connect_to(cid: u32, port: u32, deadline: Deadline) -> Result<OwnedFd, TaskError> {
    let what = format!("connect to vsock port {port} of machine {cid}");
    let fd = socket(SocketFlags::NONBLOCK)?;
    match rustix::net::connect(&fd, &VsockAddress { cid, port }) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno).doing(what),
    }
    let ready = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(deadline.remaining())).doing(&what)?;
    if ready == 0 {
        return refuse(ErrorCode::Io, format!("{what}: no answer"));
    }
    rustix::net::sockopt::socket_error(&fd).doing(&what)?.doing(&what)?;
    rustix::io::ioctl_fionbio(&fd, false).doing(&what)?;
    Ok(fd)
}

/// Listen, and hand each accepted stream to the channel.
pub fn listen(port: u32, sender: Sender<OwnedFd>) -> Result<(), TaskError> {
    let fd = open_listener(port)?;
    start_thread("vsock-listen", move || accept_all(fd, port, &sender))
}

fn open_listener(port: u32) -> Result<OwnedFd, TaskError> {
    let what = format!("listen on vsock port {port}");
    let fd = socket(SocketFlags::empty())?;
    rustix::net::bind(&fd, &VsockAddress { cid: CID_ANY, port }).doing(&what)?;
    rustix::net::listen(&fd, BACKLOG).doing(&what)?;
    Ok(fd)
}

fn accept_all(mut listener: OwnedFd, port: u32, sender: &Sender<OwnedFd>) {
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(fd) => {
                if sender.send(fd).is_err() {
                    return;
                }
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => {
                // Out of descriptors or memory, or the transport was reset by a restore: try a new socket.
                crate::log::error(&format!("accept on vsock port {port}: {errno}"));
                std::thread::sleep(PAUSE);
                if let Ok(fd) = open_listener(port) {
                    listener = fd;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Run inside a guest whose kernel has the module: `vminit-<hash> --ignored loopback`.
    #[test]
    #[ignore = "needs the kernel module vsock_loopback"]
    fn loopback() {
        const CID_LOCAL: u32 = 1;
        let patience = || Deadline::after(Duration::from_secs(10));
        let (sender, incoming) = channel();
        listen(10_024, sender).unwrap();
        let ours = connect_to(CID_LOCAL, 10_024, patience()).unwrap();
        let theirs = incoming.recv_timeout(Duration::from_secs(10)).unwrap();
        rustix::io::write(&ours, b"over").unwrap();
        let mut got = [0; 8];
        assert_eq!(rustix::io::read(&theirs, &mut got).unwrap(), 4);
        drop(ours);
        assert_eq!(rustix::io::read(&theirs, &mut got).unwrap(), 0);
        assert!(connect_to(CID_LOCAL, 10_025, patience()).is_err());
    }
}
