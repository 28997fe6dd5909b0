//! Small files of the guest's root: bounded reads, replacing writes. The image made the tree: a link, a FIFO
//! or a directory may stand where a file is expected.

use crate::util::{refuse, Context};
use firebuild_protocol::{ErrorCode, TaskError};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Read a regular file of at most `limit` bytes; an empty text if there is none.
pub fn read_or_empty(path: &str, limit: u64) -> Result<Vec<u8>, TaskError> {
    // Without blocking: opening a FIFO would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno).doing(format_args!("open {path}")),
    };
    let stat = rustix::fs::fstat(&fd).doing(format_args!("stat {path}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return refuse(ErrorCode::Io, format!("{path} is no regular file"));
    }
    let mut text = Vec::new();
    File::from(fd).take(limit + 1).read_to_end(&mut text).doing(format_args!("read {path}"))?;
    if text.len() as u64 > limit {
        return refuse(ErrorCode::Limit, format!("{path} is larger than {limit} bytes"));
    }
    Ok(text)
}

/// Put a file into a directory that is open, replacing what has that name (a link itself, not its target).
pub fn replace_at(
    directory: &OwnedFd,
    name: &str,
    text: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> Result<(), TaskError> {
    let temporary = format!(".{name}.vminit");
    let what = format!("write {name}");
    // Left over from a boot that was cut off, if there is one.
    let _ = rustix::fs::unlinkat(directory, &temporary, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode);
    let mut file = File::from(rustix::fs::openat(directory, &temporary, flags, mode).doing(&what)?);
    file.write_all(text).doing(&what)?;
    rustix::fs::fchmod(&file, mode).doing(&what)?;
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).doing(&what)?;
    }
    rustix::fs::renameat(directory, &temporary, directory, name).doing(&what)
}

/// Put a file into the directory `parent`, which is made (0755, root) if it is missing.
pub fn replace(parent: &str, name: &str, text: &str) -> Result<(), TaskError> {
    let directory = open_directory(parent)?;
    replace_at(&directory, name, text.as_bytes(), 0o644, None).map_err(|error| in_directory(parent, error))
}

fn in_directory(parent: &str, error: TaskError) -> TaskError {
    match error {
        TaskError::Refused { code, message } => TaskError::Refused { code, message: format!("{parent}: {message}") },
        other => other,
    }
}

/// Open a directory, made (0755, root) if it is missing, links followed.
pub fn open_directory(path: &str) -> Result<OwnedFd, TaskError> {
    ensure_directory(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).doing(format_args!("open directory {path}"))
}

/// Make a directory and its parents where they are missing.
pub fn ensure_directory(path: &str) -> Result<(), TaskError> {
    match std::fs::create_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTDIR)) => {
            refuse(ErrorCode::NotADirectory, format!("{path} is not a directory"))
        }
        Err(error) => Err(error).doing(format_args!("make directory {path}")),
    }
}

pub fn exists(path: &str) -> bool {
    Path::new(path).exists()
}
