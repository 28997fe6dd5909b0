//! The guest's root: a shared read-only disk under a private upper one (or one private disk), and the switch to it.

use crate::grow::grow;
use crate::transport::Uevents;
use crate::util::{refuse, Context, Deadline};
use firebuild_protocol::message::{Root, RootMode};
use firebuild_protocol::{ErrorCode, TaskError};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, CWD};
use rustix::mount::MountFlags;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
const NEW_ROOT: &str = "/newroot";
/// What moves along, `/proc` last: the moves go by its names of descriptors.
///
/// `/run` stays behind: images keep folders of their own in theirs.
const MOVED: [&str; 3] = ["sys", "dev", "proc"];

/// The disks below the root, whose mounts have no path any more once the switch is done.
pub struct Disks {
    /// For each: its name and its mount, writable ones first to be made read-only.
    writable: Vec<(String, OwnedFd)>,
}

impl Disks {
    /// Make the disks read-only, which writes out all they hold. To be called when nothing has a file open.
    pub fn make_readonly(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for (name, mount) in &self.writable {
            let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
            if let Err(errno) = rustix::mount::mount_remount(path, MountFlags::RDONLY, "") {
                failures.push(format!("make {name} read-only: {errno}"));
            }
        }
        failures
    }
}

/// Mount the root's parts and stack them at [`NEW_ROOT`].
pub fn mount_root(root: &Root, deadline: Deadline) -> Result<Disks, TaskError> {
    let mut writable = Vec::new();
    match root.mode {
        RootMode::Copy => {
            mount_disk(&root.lower, NEW_ROOT, MountFlags::empty(), deadline)?;
            grow(NEW_ROOT, &root.lower);
            writable.push((root.lower.clone(), open_mount(NEW_ROOT)?));
        }
        RootMode::Overlay => {
            let Some(upper) = &root.upper else { return refuse(ErrorCode::BadRequest, "no upper drive") };
            mount_disk(&root.lower, LOWER, MountFlags::RDONLY, deadline)?;
            mount_disk(upper, UPPER, MountFlags::empty(), deadline)?;
            grow(UPPER, upper);
            for folder in ["upper", "work"] {
                match rustix::fs::mkdir(format!("{UPPER}/{folder}"), Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(errno) => return Err(errno).doing(format_args!("make folder {folder} on {upper}")),
                }
            }
            make_mount_point(NEW_ROOT)?;
            let options = format!("lowerdir={LOWER},upperdir={UPPER}/upper,workdir={UPPER}/work");
            let options = CString::new(options).unwrap_or_default();
            rustix::mount::mount("overlay", NEW_ROOT, "overlay", MountFlags::empty(), Some(options.as_c_str()))
                .doing(format_args!("stack {upper} on {} (overlay)", root.lower))?;
            writable.push((upper.clone(), open_mount(UPPER)?));
        }
    }
    Ok(Disks { writable })
}

/// Make [`NEW_ROOT`] the root of everything and drop what the initramfs held.
pub fn switch_root() -> Result<(), TaskError> {
    let new_root = open_mount(NEW_ROOT)?;
    for name in MOVED {
        move_into(&new_root, name)?;
    }
    let old_root = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing("open the initramfs")?;
    rustix::process::chdir(NEW_ROOT).doing("enter the new root")?;
    rustix::mount::mount_move(NEW_ROOT, "/").doing("move the new root to /")?;
    rustix::process::chroot(".").doing("change to the new root")?;
    rustix::process::chdir("/").doing("enter the new root")?;
    // The memory is worth having; what cannot be removed does no harm.
    remove_tree(&old_root, 0);
    Ok(())
}

/// Wait for a drive and mount its ext4 file system.
fn mount_disk(drive: &str, target: &str, flags: MountFlags, deadline: Deadline) -> Result<(), TaskError> {
    let device = wait_for_drive(drive, deadline)?;
    make_mount_point(target)?;
    let no_data: Option<&std::ffi::CStr> = None;
    rustix::mount::mount(&device, target, "ext4", flags, no_data).doing(format_args!("mount {drive} (ext4)"))
}

/// Wait for a drive; its device's path.
pub fn wait_for_drive(drive: &str, deadline: Deadline) -> Result<String, TaskError> {
    let device = format!("/dev/{drive}");
    if Uevents::subscribe().wait_for(deadline, || crate::files::exists(&device).then_some(())).is_none() {
        return refuse(ErrorCode::NotFound, format!("no drive {drive}"));
    }
    Ok(device)
}

fn make_mount_point(path: &str) -> Result<(), TaskError> {
    std::fs::create_dir_all(path).doing(format_args!("make {path}"))
}

fn open_mount(path: &str) -> Result<OwnedFd, TaskError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).doing(format_args!("open {path}"))
}

/// Move a mount of the initramfs to the folder of the same name in the new root.
fn move_into(new_root: &OwnedFd, name: &str) -> Result<(), TaskError> {
    match rustix::fs::mkdirat(new_root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno).doing(format_args!("make /{name} in the root")),
    }
    // Not through a link: it would be followed in the initramfs.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = match rustix::fs::openat(new_root, name, flags, Mode::empty()) {
        Ok(target) => target,
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return refuse(ErrorCode::NotADirectory, format!("/{name} in the image is not a directory"));
        }
        Err(errno) => return Err(errno).doing(format_args!("open /{name} in the root")),
    };
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    rustix::mount::mount_move(format!("/{name}"), target).doing(format_args!("move /{name} into the root"))
}

/// Remove what is in a directory of the initramfs; what is mounted there belongs to other devices and stays.
fn remove_tree(directory: &OwnedFd, depth: u32) {
    const DEEPEST: u32 = 16;
    let (Ok(stat), Ok(entries)) = (rustix::fs::fstat(directory), rustix::fs::Dir::read_from(directory)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        let Ok(found) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if found.st_dev != stat.st_dev {
            continue;
        }
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if depth < DEEPEST {
            if let Ok(inner) = rustix::fs::openat(directory, name, flags, Mode::empty()) {
                remove_tree(&inner, depth + 1);
            }
        }
        let _ = rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR);
    }
}

/// Mount points of the running root, deepest first, that have to go before it can be made read-only.
pub fn unmount_plan(mountinfo: &str) -> Vec<String> {
    const KEPT: [&str; 3] = ["/proc", "/sys", "/dev"];
    let is_kept = |path: &str| {
        path == "/"
            || KEPT
                .iter()
                .any(|kept| path == *kept || path.strip_prefix(kept).is_some_and(|rest| rest.starts_with('/')))
    };
    let mut points: Vec<String> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|path| !is_kept(path))
        .collect();
    points.reverse();
    points
}

/// Unmount them; returns what could not be.
pub fn unmount_others() -> Vec<String> {
    let Ok(mountinfo) = std::fs::read("/proc/self/mountinfo") else {
        return vec!["/proc/self/mountinfo cannot be read".to_owned()];
    };
    let mut failures = Vec::new();
    for path in unmount_plan(&String::from_utf8_lossy(&mountinfo)) {
        let flags = rustix::mount::UnmountFlags::NOFOLLOW;
        if let Err(errno) = rustix::mount::unmount(&path, flags) {
            // Out of the way at least: what is busy is then the kernel's to write out.
            let _ = rustix::mount::unmount(&path, flags | rustix::mount::UnmountFlags::DETACH);
            failures.push(format!("unmount {path}: {errno}"));
        }
    }
    failures
}

/// Make `/` itself read-only.
pub fn make_root_readonly() -> Result<(), TaskError> {
    rustix::fs::sync();
    match rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => rustix::mount::mount_remount("/", MountFlags::RDONLY, "").doing("make / read-only"),
        Err(errno) => Err(errno).doing("open /"),
    }
}

/// For a resume: who could use it stands still.
pub fn make_root_writable() -> Result<(), TaskError> {
    rustix::mount::mount_remount("/", MountFlags::empty(), "").doing("make / writable")
}

/// proc_pid_mountinfo(5): space, tab, newline and backslash are octal.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deepest_first_and_the_kernels_own_stay() {
        let mountinfo = "\
20 1 0:22 / / rw,relatime - overlay overlay rw\n\
21 20 0:5 / /dev rw - devtmpfs devtmpfs rw\n\
22 21 0:23 / /dev/pts rw - devpts devpts rw\n\
23 20 0:20 / /proc rw - proc proc rw\n\
24 20 0:24 / /data rw - ext4 /dev/vdc rw\n\
25 24 0:25 / /data/a\\040b rw - tmpfs tmpfs rw\n\
26 20 0:26 / /device rw - tmpfs tmpfs rw\n\
bad\n";
        assert_eq!(unmount_plan(mountinfo), ["/device", "/data/a b", "/data"]);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("a\\040b\\134c"), "a b\\c");
        assert_eq!(unescape("a\\04"), "a\\04");
        assert_eq!(unescape("a\\999"), "a\\999");
    }
}
