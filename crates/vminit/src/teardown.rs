//! The orderly end: processes, file systems, the push stream, and then the machine.

use crate::guest::{Guest, Order};
use crate::root::{make_root_readonly, unmount_others, Disks};
use crate::util::Deadline;
use crate::{log, sys};
use firebuild_protocol::ProcessExit;
use rustix::system::RebootCommand;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Between TERM and KILL for whatever the entrypoint left behind.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// For the kernel to end what was killed.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// For the host to read the last frames.
pub const HOST_GRACE: Duration = Duration::from_secs(2);

/// How far the machine had come.
pub struct Ending<'a> {
    pub guest: &'a Guest,
    pub orders: &'a Receiver<Order>,
    pub disks: Option<&'a Disks>,
    /// The entrypoint runs or its exit has not been told yet.
    pub owes_exit: bool,
}

/// End everything and power off.
pub fn power_off(ending: &Ending<'_>) -> ! {
    let guest = ending.guest;
    log::set_unlimited(true);
    guest.give_up_after(TERM_GRACE + KILL_GRACE + HOST_GRACE);
    step(guest, "stop-processes");
    stop_processes(guest);
    guest.give_up_after(HOST_GRACE);
    if ending.owes_exit {
        push_exit(ending);
    }
    step(guest, "unmount");
    for failure in write_out(ending) {
        log::error(&failure);
    }
    step(guest, "power-off");
    guest.push.close(HOST_GRACE);
    reboot()
}

fn step(guest: &Guest, name: &str) {
    log::note(name);
    guest.push.step(name);
}

fn stop_processes(guest: &Guest) {
    // Errors of kill(-1) mean that there was nobody.
    if !guest.hold.is_held() {
        let _ = sys::kill(-1, libc::SIGTERM);
    }
    // Who is held cannot take the first signal.
    if guest.hold.is_held() || !guest.reaper.wait_for_all(Deadline::after(TERM_GRACE)) {
        let _ = sys::kill(-1, libc::SIGKILL);
        if !guest.reaper.wait_for_all(Deadline::after(KILL_GRACE)) {
            log::error("processes that could not be killed are left");
        }
    }
}

/// The entrypoint was ended by the teardown: its exit is on its way to us.
fn push_exit(ending: &Ending<'_>) {
    let deadline = Deadline::after(HOST_GRACE);
    while let Ok(order) = ending.orders.recv_timeout(deadline.remaining()) {
        if let Order::EntrypointEnded(exit) = order {
            ending.guest.push.exit(exit);
            return;
        }
    }
    ending.guest.push.exit(ProcessExit { code: 128 + libc::SIGKILL, signal: Some(libc::SIGKILL) });
}

/// Everything to the disks; returns what did not go well.
fn write_out(ending: &Ending<'_>) -> Vec<String> {
    let mut failures = Vec::new();
    ending.guest.builder.shutdown();
    if let Some(disks) = ending.disks {
        failures.extend(unmount_others());
        if let Err(error) = make_root_readonly() {
            failures.push(error.to_string());
        }
        failures.extend(disks.make_readonly());
    }
    rustix::fs::sync();
    failures
}

/// Restart: on Firecracker, and on QEMU with `-no-reboot`, that ends the machine.
pub fn reboot() -> ! {
    rustix::fs::sync();
    loop {
        if let Err(errno) = rustix::system::reboot(RebootCommand::Restart) {
            log::error(&format!("reboot: {errno}"));
        }
        std::thread::sleep(KILL_GRACE);
    }
}
