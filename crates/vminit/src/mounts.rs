//! The kernel's own file systems: in the initramfs at the very beginning, in the root after the switch.

use crate::util::Context;
use firebuild_protocol::TaskError;
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use std::ffi::CString;

/// One mount of a table.
struct Entry {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static str,
    /// The machine works without it: kernels may lack it.
    optional: bool,
}

const PLAIN: MountFlags = MountFlags::NOSUID;
const STRICT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

const fn needed(kind: &'static str, target: &'static str, flags: MountFlags, data: &'static str) -> Entry {
    Entry { kind, target, flags, data, optional: false }
}

const fn optional(kind: &'static str, target: &'static str, flags: MountFlags, data: &'static str) -> Entry {
    Entry { kind, target, flags, data, optional: true }
}

const EARLY: &[Entry] = &[
    needed("devtmpfs", "/dev", PLAIN, "mode=0755"),
    needed("proc", "/proc", STRICT, ""),
    needed("sysfs", "/sys", STRICT, ""),
    needed("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), "mode=0620,gid=5,ptmxmode=0666"),
    needed("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=0755"),
];

const LATE: &[Entry] = &[
    needed("tmpfs", "/dev/shm", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=1777"),
    optional("mqueue", "/dev/mqueue", STRICT, ""),
    optional("cgroup2", "/sys/fs/cgroup", STRICT, "nsdelegate"),
];

/// What every process expects in `/dev` and the kernel does not make.
const DEV_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// The first of all: until this is done there is neither `/proc` nor a log. Also takes `/dev/null` as the
/// standard streams: the kernel may have given a console, or nothing.
pub fn mount_early() -> Result<(), TaskError> {
    let (first, rest) = EARLY.split_first().map_or((None, EARLY), |(first, rest)| (Some(first), rest));
    first.map_or(Ok(()), mount)?;
    take_null()?;
    rest.iter().try_for_each(mount)
}

/// What goes on top of them when `/` is the root to stay in. Returns what the kernel does not have.
pub fn mount_late() -> Result<Vec<String>, TaskError> {
    let mut missing = Vec::new();
    for entry in LATE {
        match mount(entry) {
            Ok(()) => {}
            Err(error) if entry.optional => missing.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    for (target, link) in DEV_LINKS {
        match rustix::fs::symlink(target, link) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno).doing(format_args!("link {link}")),
        }
    }
    Ok(missing)
}

/// Where an init expects a file system of its own, or makes one: then what is put into it before would be hidden.
pub fn mount_run() -> Result<(), TaskError> {
    mount(&needed("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=0755"))
}

/// A mount of firebuild's own: the scripts of Debian's sysvinit and OpenRC mount `/run` anew with noexec.
pub fn mount_own_folder() -> Result<(), TaskError> {
    let folder = crate::handover::FOLDER;
    mount(&needed("tmpfs", folder, MountFlags::NOSUID.union(MountFlags::NODEV), "mode=0700"))
}

fn take_null() -> Result<(), TaskError> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).doing("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).doing("take /dev/null as input")?;
    rustix::stdio::dup2_stdout(&null).doing("take /dev/null as output")?;
    rustix::stdio::dup2_stderr(&null).doing("take /dev/null as error output")?;
    // Where it was opened as one of the three itself it must stay open.
    if std::os::fd::AsRawFd::as_raw_fd(&null) < 3 {
        std::mem::forget(null);
    }
    Ok(())
}

fn mount(entry: &Entry) -> Result<(), TaskError> {
    let what = format!("mount {} on {}", entry.kind, entry.target);
    match std::fs::create_dir_all(entry.target) {
        Ok(()) => {}
        // sysfs lets nobody make a folder: what is not there is then missing in the mount too.
        Err(_) if entry.optional => {}
        Err(error) => return Err(error).doing(what),
    }
    let data = CString::new(entry.data).unwrap_or_default();
    match rustix::mount::mount(entry.kind, entry.target, entry.kind, entry.flags, Some(data.as_c_str())) {
        // Mounted by the kernel itself (CONFIG_DEVTMPFS_MOUNT), for instance.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(errno) => Err(errno).doing(what),
    }
}
