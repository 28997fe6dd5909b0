//! Volumes: ext4 drives mounted in the root, filled with what the image has there while they are empty.

use crate::files::open_directory;
use crate::grow::grow;
use crate::root::wait_for_drive;
use crate::util::{refuse, Context, Deadline};
use firebuild_layers::TreeCopier;
use firebuild_protocol::message::Mount;
use firebuild_protocol::{ErrorCode, TaskError};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// Stands in a volume while it is being filled: what is found with it is filled anew.
const UNFINISHED: &str = ".firebuild-unfinished";
/// Of a disk that several machines may have, none may lend rights or reach devices in another.
const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const OPTIONS: &CStr = c"errors=remount-ro";

/// Mount them in their order. One that cannot be mounted is a reason not to boot.
pub fn mount_all(mounts: &[Mount], deadline: Deadline) -> Result<(), TaskError> {
    mounts.iter().try_for_each(|mount| mount_one(mount, deadline))
}

fn mount_one(mount: &Mount, deadline: Deadline) -> Result<(), TaskError> {
    let Mount { drive, target, .. } = mount;
    let device = wait_for_drive(drive, deadline)?;
    // Still the image's when the drive lies over it.
    let below = open_directory(target)?;
    let flags = if mount.read_only { FLAGS | MountFlags::RDONLY } else { FLAGS };
    match rustix::mount::mount(&device, target, "ext4", flags, Some(OPTIONS)) {
        Ok(()) => {}
        Err(Errno::ROFS) if mount.read_only => {
            return refuse(
                ErrorCode::Busy,
                format!("the volume for {target} was not unmounted in order, and its journal is not replayed yet"),
            );
        }
        Err(errno) => return Err(errno).doing(format_args!("mount the volume for {target} (ext4)")),
    }
    if mount.read_only {
        return Ok(());
    }
    grow(target, drive);
    let volume = open_directory(target)?;
    match rustix::fs::unlinkat(&volume, "lost+found", AtFlags::REMOVEDIR) {
        // What fsck has found is the user's.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR) => {}
        Err(errno) => return Err(errno).doing(format_args!("prepare the volume for {target}")),
    }
    if mount.seed {
        fill(&below, &volume).map_err(|error| {
            TaskError::io(format_args!("fill the volume for {target} with what the image has there"), &error)
        })?;
    }
    Ok(())
}

/// Copy what the image has there into a volume that is empty, or was not filled to the end.
fn fill(image: &OwnedFd, volume: &OwnedFd) -> std::io::Result<()> {
    let names = firebuild_layers::names(volume.as_fd())?;
    if !names.is_empty() {
        if !names.iter().any(|name| name == UNFINISHED.as_bytes()) {
            return Ok(());
        }
        for name in names.iter().filter(|name| name.as_slice() != UNFINISHED.as_bytes()) {
            firebuild_layers::remove(volume.as_fd(), name)?;
        }
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(volume, UNFINISHED, flags, Mode::from_raw_mode(0o600))?;
    TreeCopier::plain(volume.as_fd()).content(image.as_fd(), volume.as_fd(), b"", 0)?;
    rustix::fs::syncfs(volume)?;
    rustix::fs::unlinkat(volume, UNFINISHED, AtFlags::empty())?;
    firebuild_layers::copy_root_attributes(image.as_fd(), volume.as_fd())
}
