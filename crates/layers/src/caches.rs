//! Cache disks: ext4 file systems that outlive the build machine, mounted once and kept until it ends.
//!
//! `content/` is what steps see; `seed` names what it began with. Beside them is only what mke2fs made.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use firebuild_protocol::TaskError;
use rustix::fs::Mode;
use rustix::mount::{unmount, MountFlags, UnmountFlags};

use crate::copy_tree::{copy_root_attributes, Overrides, TreeCopier};
use crate::mounts::{make_dir, mount_ext4, remove_tree};
use crate::tree;

/// What a cache that is new, or that began with something else, is filled with.
pub enum Beginning {
    /// Nothing, in a directory of that mode and owner.
    Empty { mode: u32, uid: u32, gid: u32 },
    /// A copy of a directory; the text names it.
    Copy { id: String, source: OwnedFd },
}

/// The mounted cache disks of a build machine.
#[derive(Debug)]
pub struct Caches {
    base: PathBuf,
    mounted: Mutex<BTreeSet<String>>,
}

impl Caches {
    /// `base`: the folder of the mount points.
    pub fn new(base: PathBuf) -> Self {
        Self { base, mounted: Mutex::default() }
    }

    /// The directory of the cache on that drive, mounted and begun if need be.
    pub fn open(&self, drive: &str, device: &Path, beginning: &Beginning) -> Result<PathBuf, TaskError> {
        // Held throughout: two steps may want the same cache, and the first one begins it.
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.base.join(drive);
        if !mounted.contains(drive) {
            make_dir(&folder)?;
            mount_ext4(device, &folder, MountFlags::NOATIME, None)
                .map_err(|error| TaskError::io(format!("mounting the cache {drive}"), &error))?;
            mounted.insert(drive.to_owned());
        }
        begin(&folder, beginning).map_err(|error| TaskError::io(format!("beginning the cache {drive}"), &error))
    }

    /// Unmounts all of them, when no step uses them any more.
    pub fn shutdown(&self) {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        for drive in std::mem::take(&mut *mounted) {
            // One that is still held is synced with everything else.
            let _ = unmount(self.base.join(drive), UnmountFlags::DETACH);
        }
    }
}

/// What was written to a cache is on its disk when this returns: it outlives a machine that is killed.
pub fn sync(content: &Path) -> Result<(), TaskError> {
    let synced = tree::open_dir_at(content).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
    synced.map_err(|error| TaskError::io("writing a cache", &error))
}

fn begin(folder: &Path, beginning: &Beginning) -> io::Result<PathBuf> {
    let (content, fresh, mark) = (folder.join("content"), folder.join("content.new"), folder.join("seed"));
    let id = match beginning {
        Beginning::Empty { .. } => "",
        Beginning::Copy { id, .. } => id,
    };
    let seed = match fs::read_to_string(&mark) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        result => result?,
    };
    if seed == id && content.is_dir() {
        return Ok(content);
    }
    // Without its mark an interrupted beginning is done again: `content` comes last.
    for old in [&content, &fresh] {
        remove_tree(old)?;
    }
    fs::create_dir(&fresh)?;
    match beginning {
        Beginning::Empty { mode, uid, gid } => {
            std::os::unix::fs::chown(&fresh, Some(*uid), Some(*gid))?;
            rustix::fs::chmod(&fresh, Mode::from_raw_mode(mode & 0o7777))?;
        }
        Beginning::Copy { source, .. } => {
            let to = tree::open_dir_at(&fresh)?;
            TreeCopier::new(to.as_fd(), Overrides::default()).content(source.as_fd(), to.as_fd(), b"", 0)?;
            copy_root_attributes(source.as_fd(), to.as_fd())?;
        }
    }
    fs::write(&mark, id)?;
    fs::rename(&fresh, &content)?;
    Ok(content)
}
