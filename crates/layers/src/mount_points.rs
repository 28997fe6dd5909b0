//! A step's mounts in its own namespace: targets resolved inside its tree, made where they are missing, mounted over.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{mount, mount_bind, mount_remount, MountFlags};
use serde::{Deserialize, Serialize};

use crate::paths::{self, Maker, Missing, Place};
use crate::tree::{self, Kind};

/// One mount of a step.
#[derive(Debug, Serialize, Deserialize)]
pub struct MountPoint {
    /// Absolute, inside the step's tree.
    pub target: String,
    pub source: Source,
    pub read_only: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Source {
    Bind {
        path: PathBuf,
        is_directory: bool,
    },
    /// `fresh`: its mount point was made for it, so that it has no mode to take over. Size 0: no limit.
    Tmpfs {
        size_bytes: u64,
        fresh: bool,
    },
    /// A file: no devices, no setuid, and no execution unless its mode says so.
    Secret {
        path: PathBuf,
        executable: bool,
    },
}

/// Mounts in this order. Each target may lie inside an earlier one.
pub fn attach_all(root: &Path, points: &[MountPoint]) -> io::Result<()> {
    for point in points {
        attach(root, point)
            .map_err(|error| io::Error::new(error.kind(), format!("mounting {}: {error}", point.target)))?;
    }
    Ok(())
}

fn attach(root: &Path, point: &MountPoint) -> io::Result<()> {
    // Opened anew for each: what an earlier one has mounted is seen.
    let dir = tree::open_dir_at(root)?;
    let is_directory = match &point.source {
        Source::Bind { is_directory, .. } => *is_directory,
        Source::Tmpfs { .. } => true,
        Source::Secret { .. } => false,
    };
    let maker = Maker::new(0, 0, 0o755);
    let place = paths::resolve(dir.as_fd(), point.target.as_bytes(), true, Missing::Make(&maker))?;
    if place.name.is_empty() {
        return Err(io::Error::other("it is the root"));
    }
    let existed = place.info;
    match existed {
        Some(info) if (info.kind == Kind::Directory) != is_directory => {
            let there = if is_directory { "no directory" } else { "a directory" };
            return Err(io::Error::other(format!("{there} is there")));
        }
        Some(_) => {}
        None => make(&place, is_directory, &maker)?,
    }
    let target = root.join(OsStr::from_bytes(&place.path));
    let read_only = if point.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    match &point.source {
        Source::Bind { path, .. } => {
            mount_bind(path, &target)?;
            if point.read_only {
                mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "")?;
            }
        }
        Source::Tmpfs { size_bytes, fresh } => {
            let mode = existed.filter(|_| !fresh).map_or(0o1777, |info| info.mode);
            let size = if *size_bytes > 0 { format!(",size={size_bytes}") } else { String::new() };
            let options = CString::new(format!("mode={mode:o}{size}"))?;
            mount("tmpfs", &target, "tmpfs", MountFlags::NOSUID | read_only, Some(options.as_c_str()))?;
        }
        Source::Secret { path, executable } => {
            mount_bind(path, &target)?;
            let no_exec = if *executable { MountFlags::empty() } else { MountFlags::NOEXEC };
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | no_exec;
            mount_remount(&target, flags, "")?;
        }
    }
    Ok(())
}

fn make(place: &Place, is_directory: bool, maker: &Maker) -> io::Result<()> {
    if is_directory {
        return maker.make(place.dir.as_fd(), &place.name);
    }
    tree::create_file(place.dir.as_fd(), &place.name, 0o644).map(drop)
}
