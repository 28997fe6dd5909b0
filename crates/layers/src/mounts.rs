//! The folders of the work disk and the mounts on it: overlays of stacks, disks of layers.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use firebuild_protocol::{ErrorCode, TaskError};
use rustix::io::Errno;
use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};

use crate::copy_tree::copy_root_attributes;
use crate::registry::{LayerPlace, Origin};
use crate::tree;

/// mount(2) takes one page of options.
const MAX_OPTIONS: usize = 4095;
const BUSY_TIME: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(2);
/// Nothing that would make a layer more than plain files: no renamed directories by reference, no index.
const COMMON: &str = "redirect_dir=nofollow,index=off,metacopy=off";

/// Paths on the work disk. The base must hold no `:`, `,` or `\`, which overlayfs's options would need escaped.
#[derive(Clone, Debug)]
pub struct Folders {
    base: PathBuf,
}

impl Folders {
    pub fn new(base: PathBuf) -> Self {
        Self { base }
    }

    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Makes the folders on the freshly mounted work disk.
    pub fn make(&self) -> io::Result<()> {
        for name in ["l", "w", "m", "d", "t", "c", "e", "f"] {
            std::fs::create_dir_all(self.base.join(name))?;
        }
        Ok(())
    }

    /// A layer's content.
    pub fn layer(&self, place: LayerPlace) -> PathBuf {
        match place.origin {
            Origin::Work => self.numbered("l", place.number),
            Origin::Disk => self.numbered("d", place.number),
        }
    }

    pub fn scratch(&self, number: u32) -> PathBuf {
        self.numbered("t", number)
    }

    /// Makes a layer's folder; as the root of the merged tree it has the attributes of the root below it.
    pub fn make_layer(&self, place: LayerPlace, stack: &[LayerPlace]) -> Result<PathBuf, TaskError> {
        let path = self.layer(place);
        make_dir(&path)?;
        if let Some(below) = stack.first() {
            copy_root(&self.layer(*below), &path)?;
        }
        Ok(path)
    }

    /// Removes a layer's content.
    pub fn remove_layer(&self, place: LayerPlace) -> io::Result<()> {
        remove_tree(&self.layer(place))
    }

    /// Mounts a disk that holds a layer, read-only.
    pub fn mount_layer_disk(&self, place: LayerPlace, device: &Path) -> Result<(), TaskError> {
        let target = self.layer(place);
        make_dir(&target)?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
        mount_ext4(device, &target, flags, None).map_err(|error| {
            let _ = std::fs::remove_dir(&target);
            TaskError::io(format!("mounting {}", device.display()), &error)
        })
    }

    pub fn unmount_layer_disk(&self, place: LayerPlace) -> io::Result<()> {
        let target = self.layer(place);
        unmount_patiently(&target)?;
        std::fs::remove_dir(target)
    }

    /// A stack's merged tree, read-only.
    pub fn mount_stack(&self, stack: &[LayerPlace], number: u32) -> Result<Merged, TaskError> {
        let mut lowers: Vec<PathBuf> = stack.iter().map(|place| self.layer(*place)).collect();
        // Without an upper directory overlayfs wants two.
        for empty in ["e", "f"].into_iter().skip(lowers.len()) {
            lowers.push(self.base.join(empty));
        }
        let options = format!("lowerdir={},{COMMON}", joined(&lowers)?);
        self.mount_overlay(number, &options, MountFlags::RDONLY, None)
    }

    /// A stack's merged tree with a new layer on it.
    pub fn mount_upper(&self, upper: LayerPlace, stack: &[LayerPlace]) -> Result<Merged, TaskError> {
        let mut lowers: Vec<PathBuf> = stack.iter().map(|place| self.layer(*place)).collect();
        if lowers.is_empty() {
            lowers.push(self.base.join("e"));
        }
        self.mount_over(upper, &lowers)
    }

    /// A directory of this machine with a new layer on it, which takes what is written.
    pub fn mount_cover(&self, upper: LayerPlace, below: &Path) -> Result<Merged, TaskError> {
        let path = self.layer(upper);
        make_dir(&path)?;
        copy_root(below, &path)?;
        self.mount_over(upper, &[below.to_owned()])
    }

    fn mount_over(&self, upper: LayerPlace, lowers: &[PathBuf]) -> Result<Merged, TaskError> {
        let work = self.numbered("w", upper.number);
        make_dir(&work)?;
        let plain = format!(
            "lowerdir={},upperdir={},workdir={},{COMMON}",
            joined(lowers)?,
            self.layer(upper).display(),
            work.display()
        );
        // The work disk does not outlive the machine: nothing on it needs to be synced.
        let volatile = format!("{plain},volatile");
        self.mount_overlay(upper.number, &volatile, MountFlags::empty(), Some(work.clone()))
            .or_else(|_| self.mount_overlay(upper.number, &plain, MountFlags::empty(), Some(work)))
    }

    fn mount_overlay(
        &self,
        number: u32,
        options: &str,
        flags: MountFlags,
        work: Option<PathBuf>,
    ) -> Result<Merged, TaskError> {
        if options.len() > MAX_OPTIONS {
            return Err(TaskError::new(ErrorCode::Limit, "a stack of too many layers for one mount"));
        }
        let target = self.numbered("m", number);
        make_dir(&target)?;
        let data = CString::new(options).map_err(|error| TaskError::new(ErrorCode::Internal, error.to_string()))?;
        match mount("overlay", &target, "overlay", flags, Some(data.as_c_str())) {
            Ok(()) => Ok(Merged { path: target, work, mounted: true }),
            Err(error) => {
                let _ = std::fs::remove_dir(&target);
                Err(TaskError::io("mounting an overlay", &error.into()))
            }
        }
    }

    fn numbered(&self, folder: &str, number: u32) -> PathBuf {
        self.base.join(folder).join(number.to_string())
    }
}

/// Gives a new layer's root the attributes of the root below it.
fn copy_root(below: &Path, path: &Path) -> Result<(), TaskError> {
    let copied = tree::open_dir_at(below).and_then(|from| {
        let to = tree::open_dir_at(path)?;
        copy_root_attributes(from.as_fd(), to.as_fd())
    });
    copied.map_err(|error| TaskError::io("setting up a layer", &error))
}

/// Mounts an ext4 disk. Options that this kernel does not know are left out.
pub fn mount_ext4(device: &Path, target: &Path, flags: MountFlags, options: Option<&str>) -> io::Result<()> {
    let try_mount = |options: Option<&str>| -> io::Result<()> {
        let data = options.map(CString::new).transpose()?;
        Ok(mount(device, target, "ext4", flags, data.as_deref())?)
    };
    match try_mount(options) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && options.is_some() => try_mount(None),
        result => result,
    }
}

/// A mounted merged tree; unmounted when dropped.
#[derive(Debug)]
pub struct Merged {
    path: PathBuf,
    work: Option<PathBuf>,
    mounted: bool,
}

impl Merged {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn open(&self) -> Result<OwnedFd, TaskError> {
        tree::open_dir_at(&self.path).map_err(|error| TaskError::io("opening a merged tree", &error))
    }

    /// Unmounts, and says if that fails: what was written may then not be whole.
    pub fn close(mut self) -> Result<(), TaskError> {
        self.unmount().map_err(|error| TaskError::io("unmounting a merged tree", &error))
    }

    fn unmount(&mut self) -> io::Result<()> {
        if !self.mounted {
            return Ok(());
        }
        self.mounted = false;
        let result = match unmount_patiently(&self.path) {
            Ok(()) => std::fs::remove_dir(&self.path),
            Err(error) => {
                // Someone still holds it: let it go when they do.
                let _ = unmount(&self.path, UnmountFlags::DETACH);
                Err(error.into())
            }
        };
        if let Some(work) = &self.work {
            let _ = remove_tree(work);
        }
        result
    }
}

/// A process that another thread is just starting holds copies of our descriptors until it executes its program:
/// a mount that is busy may be free a moment later.
pub fn unmount_patiently(path: &Path) -> rustix::io::Result<()> {
    let started = Instant::now();
    loop {
        match unmount(path, UnmountFlags::empty()) {
            Err(Errno::BUSY) if started.elapsed() < BUSY_TIME => std::thread::sleep(BUSY_PAUSE),
            result => return result,
        }
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        // The paths that must know call close().
        let _ = self.unmount();
    }
}

/// A folder, 0755 whatever the umask is.
pub fn make_dir(path: &Path) -> Result<(), TaskError> {
    let made = match rustix::fs::mkdir(path, rustix::fs::Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o755)),
        Err(error) => Err(error),
    };
    made.map_err(|error| TaskError::io(format!("making {}", path.display()), &error.into()))
}

/// Removes a folder of ours with all that is in it.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn joined(lowers: &[PathBuf]) -> Result<String, TaskError> {
    let mut text = String::new();
    for path in lowers {
        let part = path.to_str().filter(|part| !part.contains([':', ',', '\\']));
        let part = part.ok_or_else(|| TaskError::new(ErrorCode::Internal, "a path that overlayfs cannot take"))?;
        if !text.is_empty() {
            text.push(':');
        }
        text.push_str(part);
    }
    Ok(text)
}
