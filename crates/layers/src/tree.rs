//! One directory entry at a time, relative to an open directory: what it is, its attributes, making and removing it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    chmodat, chownat, fgetxattr, flistxattr, lgetxattr, llistxattr, lsetxattr, mkdirat, mknodat, openat, readlinkat,
    statat, symlinkat, unlinkat, utimensat, AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

/// Deeper trees cannot be named by a path anyway (PATH_MAX), and the walks are recursive.
pub const MAX_DEPTH: usize = 2048;

/// The attribute that makes a directory hide the ones below it (kernel documentation, filesystems/overlayfs.rst).
pub const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// Extended attributes by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl Kind {
    fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            _ => Self::File,
        }
    }
}

/// What stat(2) says, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Timespec,
    pub rdev: u64,
    pub links: u64,
    pub identity: (u64, u64),
}

impl Info {
    // The kernel's link count has another type on other machines.
    #[allow(clippy::useless_conversion)]
    fn of(stat: &Stat) -> Self {
        Self {
            kind: Kind::of(stat),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) },
            rdev: stat.st_rdev,
            links: u64::from(stat.st_nlink),
            identity: (stat.st_dev, stat.st_ino),
        }
    }

    /// A 0:0 character device: overlayfs's mark that a name is deleted.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice && self.rdev == 0
    }
}

/// What the entry `name` of `dir` is, without following a link. None if there is none.
pub fn find(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Info>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Info::of(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub fn info_of(fd: BorrowedFd<'_>) -> io::Result<Info> {
    Ok(Info::of(&rustix::fs::fstat(fd)?))
}

/// Opens the directory `name` of `dir`; a link is an error.
pub fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

pub fn open_dir_at(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens the regular file `name` of `dir` for reading; anything else is an error.
pub fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    // O_NONBLOCK: a FIFO that stands there must not hang us. It means nothing to a regular file.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = openat(dir, name, flags, Mode::empty())?;
    if info_of(fd.as_fd())?.kind != Kind::File {
        return Err(Errno::INVAL.into());
    }
    Ok(File::from(fd))
}

/// Creates the regular file `name` in `dir`, which must not exist.
pub fn create_file(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(dir, name, flags, Mode::from_raw_mode(mode & 0o777))?))
}

/// As [`set_attributes`] for a file that is open: only what is not so yet, for each change costs a transaction.
pub fn set_file_attributes(file: &File, info: &Info, xattrs: &Xattrs) -> io::Result<()> {
    let now = info_of(file.as_fd())?;
    if (now.uid, now.gid) != (info.uid, info.gid) {
        if info.uid == u32::MAX || info.gid == u32::MAX {
            return Err(Errno::INVAL.into());
        }
        rustix::fs::fchown(file, Some(Uid::from_raw(info.uid)), Some(Gid::from_raw(info.gid)))?;
    }
    if now.mode != info.mode || info.mode & 0o6000 != 0 {
        rustix::fs::fchmod(file, Mode::from_raw_mode(info.mode))?;
    }
    for (key, value) in xattrs {
        let key = CString::new(key.as_slice())?;
        ignore_unknown(rustix::fs::fsetxattr(file, &key, value, XattrFlags::empty()))?;
    }
    let times = Timestamps { last_access: info.mtime, last_modification: info.mtime };
    Ok(rustix::fs::futimens(file, &times)?)
}

pub fn make_dir(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(mkdirat(dir, name, Mode::from_raw_mode(0o700))?)
}

pub fn make_symlink(dir: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> io::Result<()> {
    Ok(symlinkat(target, dir, name)?)
}

/// Makes a device or a FIFO.
pub fn make_node(dir: BorrowedFd<'_>, name: &[u8], kind: Kind, device: u64) -> io::Result<()> {
    let file_type = match kind {
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        _ => return Err(Errno::INVAL.into()),
    };
    Ok(mknodat(dir, name, file_type, Mode::from_raw_mode(0o600), device)?)
}

pub fn make_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    make_node(dir, name, Kind::CharDevice, 0)
}

pub fn read_symlink(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Removes `name` whatever it is, a directory with all that is in it. Nothing there is no error.
pub fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let inner = open_dir(dir, name)?;
    for child in names(inner.as_fd())? {
        remove(inner.as_fd(), &child)?;
    }
    Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// The names in a directory, sorted by bytes.
pub fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Sets owner, mode and mtime of `name`, which must not be a link unless `kind` says so. The owner comes first:
/// chown(2) clears setuid and setgid bits.
pub fn set_attributes(dir: BorrowedFd<'_>, name: &[u8], info: &Info, xattrs: &Xattrs) -> io::Result<()> {
    set_owner(dir, name, info.uid, info.gid)?;
    if info.kind != Kind::Symlink {
        chmodat(dir, name, Mode::from_raw_mode(info.mode), AtFlags::empty())?;
    }
    // After chown, which clears security.capability.
    set_xattrs(dir, name, xattrs)?;
    set_mtime(dir, name, info.mtime)
}

pub fn set_owner(dir: BorrowedFd<'_>, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::INVAL.into());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

pub fn set_mtime(dir: BorrowedFd<'_>, name: &[u8], mtime: Timespec) -> io::Result<()> {
    let times = Timestamps { last_access: mtime, last_modification: mtime };
    Ok(utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Gives everything below `dir` that is newer this time instead, in whole seconds. Whiteouts have none.
pub fn limit_times(dir: BorrowedFd<'_>, newest_s: i64, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let newest = Timespec { tv_sec: newest_s, tv_nsec: 0 };
    for name in names(dir)? {
        let Some(info) = find(dir, &name)? else {
            continue;
        };
        if info.is_whiteout() {
            continue;
        }
        if info.kind == Kind::Directory {
            limit_times(open_dir(dir, &name)?.as_fd(), newest_s, depth + 1)?;
        }
        if (info.mtime.tv_sec, info.mtime.tv_nsec) > (newest_s, 0) {
            set_mtime(dir, &name, newest)?;
        }
    }
    Ok(())
}

/// Sets attributes; a kind that this file system does not know is left out, as Docker does.
pub fn set_xattrs(dir: BorrowedFd<'_>, name: &[u8], xattrs: &Xattrs) -> io::Result<()> {
    if xattrs.is_empty() {
        return Ok(());
    }
    let path = proc_path(dir, name);
    for (key, value) in xattrs {
        let key = CString::new(key.as_slice())?;
        ignore_unknown(lsetxattr(&path, &key, value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// user.* on links and devices is refused with EPERM, others with EOPNOTSUPP.
fn ignore_unknown(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The attributes of `name` (of a link itself), sorted, without overlayfs's own.
pub fn xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Xattrs> {
    let path = proc_path(dir, name);
    let list = match read_sized(|buffer| llistxattr(&path, buffer)) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for key in list.split(|byte| *byte == 0) {
        if key.is_empty() || key.starts_with(OVERLAY_XATTRS) {
            continue;
        }
        let name = CString::new(key)?;
        match read_sized(|buffer| lgetxattr(&path, &name, buffer)) {
            Ok(value) => found.push((key.to_vec(), value)),
            // Listed, but for other eyes (system.posix_acl_* of an overlay, for one): nothing to keep.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The attributes of an open directory or file, as [`xattrs`].
pub fn xattrs_of(fd: BorrowedFd<'_>) -> io::Result<Xattrs> {
    let list = match read_sized(|buffer| flistxattr(fd, buffer)) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for key in list.split(|byte| *byte == 0) {
        if key.is_empty() || key.starts_with(OVERLAY_XATTRS) {
            continue;
        }
        let name = CString::new(key)?;
        match read_sized(|buffer| fgetxattr(fd, &name, buffer)) {
            Ok(value) => found.push((key.to_vec(), value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub fn is_overlay_xattr(key: &[u8]) -> bool {
    key.starts_with(OVERLAY_XATTRS)
}

/// True if the open directory hides what lies below it.
pub fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0_u8; 1];
    matches!(fgetxattr(dir, OPAQUE_XATTR, &mut value), Ok(1)) && &value == b"y"
}

pub fn set_opaque(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty())?)
}

/// xattr calls have no *at form: the directory is reached through its descriptor.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(std::ffi::OsStr::from_bytes(name))
}

/// Calls until the buffer is large enough: the size may change between asking for it and reading.
fn read_sized(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0_u8; 1024];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(error) => return Err(error),
        }
    }
}
