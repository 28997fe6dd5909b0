//! What keeps a step from harming its machine: which devices it may open, and how many processes it may start.
//!
//! Control groups of version 1, for there a device is allowed by a line of text; version 2 wants a BPF program.

use std::io;
use std::path::{Path, PathBuf};

use firebuild_protocol::TaskError;
use rustix::io::Errno;
use rustix::mount::{mount, MountFlags};

/// Devices may be made (a file system may hold any), but opened only these, as in a container: null, zero, full, random,
/// urandom, tty, the terminal multiplexer and its terminals. Not the drives, the ports to the host and the consoles.
const DEVICES: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];
/// Threads count too. As podman has it.
const MOST_PROCESSES: u64 = 2048;
const THREADS_MAX: &str = "/proc/sys/kernel/threads-max";

/// The group that all steps of the machine share.
#[derive(Debug, Default)]
pub struct Limits {
    /// The files into which a process's number is written.
    pub joined_by: Vec<PathBuf>,
}

impl Limits {
    /// Makes the group, its hierarchies mounted below `folder`. What the kernel does not have limits nothing.
    pub fn set_up(folder: &Path) -> Result<Self, TaskError> {
        let mut limits = Self::default();
        if let Some(group) = make_group(folder, "devices").map_err(failed("devices"))? {
            write(&group, "devices.deny", "a")?;
            for device in DEVICES {
                write(&group, "devices.allow", device)?;
            }
            limits.joined_by.push(group.join("cgroup.procs"));
        }
        if let Some(group) = make_group(folder, "pids").map_err(failed("pids"))? {
            write(&group, "pids.max", &most_processes()?.to_string())?;
            limits.joined_by.push(group.join("cgroup.procs"));
        }
        Ok(limits)
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> TaskError {
    let what = format!("limiting the steps' {what}");
    move |error| TaskError::io(&what, &error)
}

/// None where the kernel lacks the controller.
fn make_group(folder: &Path, controller: &str) -> io::Result<Option<PathBuf>> {
    let hierarchy = folder.join(controller);
    std::fs::create_dir_all(&hierarchy)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let try_mount = |options: String| -> Result<(), Errno> {
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        mount("cgroup", &hierarchy, "cgroup", flags, Some(options.as_c_str()))
    };
    // Each step joins: without a wait of some ticks until every processor knows of it, where the kernel can (Linux 6.0).
    match try_mount(format!("{controller},favordynmods")).or_else(|_| try_mount(controller.to_owned())) {
        Ok(()) => {}
        Err(Errno::NODEV | Errno::INVAL | Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let group = hierarchy.join("steps");
    std::fs::create_dir_all(&group)?;
    Ok(Some(group))
}

fn write(group: &Path, file: &str, text: &str) -> Result<(), TaskError> {
    std::fs::write(group.join(file), text).map_err(failed(file))
}

/// A parallel build of a large project has some hundreds; more is a program that does not stop. Never more than half of
/// what a small machine has: the rest is vminit's own.
fn most_processes() -> Result<u64, TaskError> {
    let text = std::fs::read_to_string(THREADS_MAX).map_err(failed("pids"))?;
    let threads: u64 = text.trim().parse().map_err(|error| failed("pids")(io::Error::other(error)))?;
    Ok((threads / 2).clamp(1, MOST_PROCESSES))
}
