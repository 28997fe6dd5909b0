//! Which way to the host this machine has: the named virtio-serial port if it exists, else vsock.

use super::uevent::Uevents;
use crate::sys::local_vsock_cid;
use crate::util::{refuse, Deadline};
use firebuild_protocol::{ErrorCode, TaskError, SERIAL_PORT_NAME};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

pub enum Found {
    Serial(PathBuf),
    Vsock,
}

/// Wait for the named port; go on with vsock when there is no virtio-serial device, or none with that port.
pub fn find(deadline: Deadline) -> Result<Found, TaskError> {
    // A virtio-serial device announces its ports by messages, after the device itself.
    const PORTS_TAKE: Duration = Duration::from_secs(3);
    let ports_deadline = Deadline::after(PORTS_TAKE);
    let uevents = Uevents::subscribe();
    let found = uevents.wait_for(deadline, || {
        if let Some(path) = find_port() {
            return Some(Found::Serial(path));
        }
        let may_still_come = has_serial_device() && !ports_deadline.has_passed();
        (!may_still_come && local_vsock_cid().is_some()).then_some(Found::Vsock)
    });
    match found {
        Some(found) => Ok(found),
        None => refuse(
            ErrorCode::NotFound,
            format!("no way to the host: neither a virtio-serial port {SERIAL_PORT_NAME} nor a vsock device"),
        ),
    }
}

fn find_port() -> Option<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        let device = PathBuf::from("/dev").join(entry.file_name());
        if name.trim_end() == SERIAL_PORT_NAME && device.exists() {
            return Some(device);
        }
    }
    None
}

/// True if the virtio bus has a device of type 3 (virtio 1.2, section 5: console).
fn has_serial_device() -> bool {
    let Ok(entries) = fs::read_dir("/sys/bus/virtio/devices") else { return false };
    entries
        .flatten()
        .any(|entry| fs::read_to_string(entry.path().join("device")).is_ok_and(|device| device.trim_end() == "0x0003"))
}
