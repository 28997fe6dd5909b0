//! File systems that follow their drive: one that was made larger between two starts is used whole.

use crate::log;
use crate::sys;
use crate::util::Context;
use firebuild_protocol::TaskError;
use rustix::fs::{Mode, OFlags};
use std::os::fd::AsFd;

/// Bytes of a sector in `/sys/class/block/*/size`, whatever the device's own are.
const SECTOR: u64 = 512;

/// Let the ext4 that is mounted at `target` have all of its drive. A machine whose file system stays as it was works too.
pub fn grow(target: &str, drive: &str) {
    if let Err(error) = try_grow(target, drive) {
        log::error(&format!("{drive} keeps its size: {error}"));
    }
}

fn try_grow(target: &str, drive: &str) -> Result<(), TaskError> {
    let text = std::fs::read_to_string(format!("/sys/class/block/{drive}/size")).doing("ask for the drive's size")?;
    let sectors: u64 = text.trim().parse().unwrap_or_default();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(target, flags, Mode::empty()).doing(format_args!("open {target}"))?;
    let stat = rustix::fs::fstatfs(&directory).doing(format_args!("ask for the blocks of {target}"))?;
    let block = u64::try_from(stat.f_bsize).unwrap_or_default();
    let blocks = (sectors * SECTOR).checked_div(block).unwrap_or_default();
    // The kernel does nothing where it has them all.
    sys::resize_ext4(directory.as_fd(), blocks).doing("make the file system larger")
}
