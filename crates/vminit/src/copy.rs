//! Files in and out of the guest's root as tar streams in DATA frames.

use crate::files::open_directory;
use crate::stream::FdStream;
use crate::tar::{encode_header, padding, Entry, Kind, Reader, TarError, TRAILER};
use crate::util::{refuse, Context};
use firebuild_protocol::{ErrorCode, FrameStream, FrameType, ProtocolError, TaskError};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

const CHUNK: usize = 65_536;
/// Most entries of one archive.
const MOST_ENTRIES: u64 = 10_000_000;
const DEEPEST: usize = 256;

/// What the kernel shows there is nobody's file: of a copy of the whole root these are empty folders.
const KERNELS: [&[u8]; 3] = [b"./proc/", b"./sys/", b"./dev/"];

/// Unpack a tar below a directory. Returns how many entries and how many bytes of file data it had.
pub fn copy_in(path: &str, stream: &mut FdStream) -> Result<(u64, u64), TaskError> {
    if !path.starts_with('/') {
        return refuse(ErrorCode::BadRequest, format!("{path:?} is no absolute path"));
    }
    let target = open_directory(path)?;
    let mut source = DataReader { stream, frame: Vec::new(), at: 0, ended: false, broken: None };
    let unpacked = unpack(&target, &mut source);
    match source.broken.take() {
        Some(error) => Err(error.into()),
        None => {
            let counts = unpacked?;
            source.drain()?;
            Ok(counts)
        }
    }
}

fn unpack(target: &OwnedFd, source: &mut DataReader<'_>) -> Result<(u64, u64), TaskError> {
    let mut reader = Reader::new(source);
    let (mut entries, mut bytes) = (0_u64, 0_u64);
    let mut buffer = vec![0_u8; CHUNK];
    while let Some(entry) = reader.next_entry().map_err(tar_error)? {
        entries += 1;
        if entries > MOST_ENTRIES {
            return refuse(ErrorCode::Limit, format!("more than {MOST_ENTRIES} entries"));
        }
        let shown = String::from_utf8_lossy(&entry.name).into_owned();
        let Some((parents, name)) = split_name(&entry.name, &shown)? else { continue };
        let folder = open_below(target, &parents, &shown)?;
        match entry.kind {
            Kind::Directory => make_directory(&folder, &name, &entry, &shown)?,
            Kind::File => {
                let mut file = create_file(&folder, &name, &shown)?;
                loop {
                    match reader.read_data(&mut buffer).map_err(tar_error)? {
                        0 => break,
                        count => file
                            .write_all(buffer.get(..count).unwrap_or_default())
                            .doing(format_args!("write {shown}"))?,
                    }
                }
                bytes += entry.size;
                finish_file(&file, &entry, &shown)?;
            }
            Kind::Symlink => make_symlink(&folder, &name, &entry, &shown)?,
            Kind::HardLink => make_hard_link(target, &folder, &name, &entry, &shown)?,
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                return refuse(ErrorCode::BadArchive, format!("entry {shown:?} is a device or a FIFO"));
            }
        }
    }
    Ok((entries, bytes))
}

fn tar_error(error: TarError) -> TaskError {
    match error {
        TarError::Bad(why) => TaskError::new(ErrorCode::BadArchive, why),
        TarError::Io(error) => TaskError::io("read the archive", &error),
    }
}

type Parts = (Vec<Vec<u8>>, Vec<u8>);

/// The folders and the last component of an entry's name; None for the target itself.
fn split_name(name: &[u8], shown: &str) -> Result<Option<Parts>, TaskError> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return refuse(ErrorCode::Escapes, format!("entry {shown:?} leads out of the directory")),
            part => parts.push(part.to_vec()),
        }
    }
    if parts.len() > DEEPEST {
        return refuse(ErrorCode::Limit, format!("entry {shown:?} is too deep"));
    }
    Ok(parts.pop().map(|last| (parts, last)))
}

/// Open a folder below the target, made where it is missing. Links are followed as long as they stay below it.
fn open_below(target: &OwnedFd, parents: &[Vec<u8>], shown: &str) -> Result<OwnedFd, TaskError> {
    let mut folder = target.try_clone().doing("duplicate a descriptor")?;
    let mut path = Vec::new();
    for part in parents {
        path.extend_from_slice(part);
        folder = match open_folder(target, &path) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&folder, part.as_slice(), Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno).doing(format_args!("make the folders of {shown}")),
                }
                open_folder(target, &path)
            }
            other => other,
        }
        .map_err(|errno| folder_error(errno, shown))?;
        path.push(b'/');
    }
    Ok(folder)
}

fn open_folder(target: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(target, path, flags, Mode::empty(), resolve)
}

fn folder_error(errno: Errno, shown: &str) -> TaskError {
    match errno {
        Errno::XDEV | Errno::LOOP => {
            TaskError::new(ErrorCode::Escapes, format!("entry {shown:?} leads out of the directory"))
        }
        Errno::NOTDIR => TaskError::new(ErrorCode::NotADirectory, format!("a folder of {shown} is not a directory")),
        errno => TaskError::io(format_args!("open the folder of {shown}"), &errno.into()),
    }
}

fn make_directory(folder: &OwnedFd, name: &[u8], entry: &Entry, shown: &str) -> Result<(), TaskError> {
    let what = format!("make {shown}");
    match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(entry.mode)) {
        Ok(()) => {
            let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
            rustix::fs::chownat(folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).doing(&what)?;
            // The umask took bits away, the new owner others.
            rustix::fs::chmodat(folder, name, Mode::from_raw_mode(entry.mode), AtFlags::empty()).doing(&what)
        }
        Err(Errno::EXIST) => {
            // One that is there, or a link to one, keeps what it is.
            let stat = rustix::fs::statat(folder, name, AtFlags::empty()).doing(&what)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                Ok(())
            } else {
                refuse(ErrorCode::Exists, format!("{shown} exists and is not a directory"))
            }
        }
        Err(errno) => Err(errno).doing(what),
    }
}

fn remove_old(folder: &OwnedFd, name: &[u8], shown: &str) -> Result<(), TaskError> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => refuse(ErrorCode::Exists, format!("{shown} exists and is a directory")),
        Err(errno) => Err(errno).doing(format_args!("replace {shown}")),
    }
}

fn create_file(folder: &OwnedFd, name: &[u8], shown: &str) -> Result<File, TaskError> {
    remove_old(folder, name, shown)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600));
    fd.map(File::from).doing(format_args!("create {shown}"))
}

fn finish_file(file: &File, entry: &Entry, shown: &str) -> Result<(), TaskError> {
    let what = format!("finish {shown}");
    rustix::fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).doing(&what)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode)).doing(&what)?;
    let time = Timespec { tv_sec: entry.mtime, tv_nsec: 0 };
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time }).doing(&what)
}

fn make_symlink(folder: &OwnedFd, name: &[u8], entry: &Entry, shown: &str) -> Result<(), TaskError> {
    remove_old(folder, name, shown)?;
    rustix::fs::symlinkat(entry.link.as_slice(), folder, name).doing(format_args!("link {shown}"))?;
    let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    rustix::fs::chownat(folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).doing(format_args!("own {shown}"))
}

fn make_hard_link(
    target: &OwnedFd,
    folder: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    shown: &str,
) -> Result<(), TaskError> {
    let Some((parents, last)) = split_name(&entry.link, shown)? else {
        return refuse(ErrorCode::BadArchive, format!("entry {shown:?} links to nothing"));
    };
    let from = open_below(target, &parents, shown)?;
    remove_old(folder, name, shown)?;
    match rustix::fs::linkat(&from, last.as_slice(), folder, name, AtFlags::empty()) {
        Err(Errno::NOENT) => refuse(ErrorCode::BadArchive, format!("entry {shown:?} links to what is not there")),
        other => other.doing(format_args!("link {shown}")),
    }
}

/// The bytes of the DATA frames of a stream, up to the empty one.
struct DataReader<'a> {
    stream: &'a mut FdStream,
    frame: Vec<u8>,
    at: usize,
    ended: bool,
    /// What broke the stream: `read` can only say that something did.
    broken: Option<ProtocolError>,
}

impl DataReader<'_> {
    fn next_frame(&mut self) -> Result<(), ProtocolError> {
        let frame = self.stream.read_frame()?;
        if frame.frame_type != FrameType::Data {
            return Err(ProtocolError::Unexpected(format!("{} frame", frame.frame_type.name())));
        }
        self.ended = frame.payload.is_empty();
        self.frame = frame.payload;
        self.at = 0;
        Ok(())
    }

    /// Read what follows the archive's end.
    fn drain(&mut self) -> Result<(), ProtocolError> {
        while !self.ended {
            self.next_frame()?;
        }
        Ok(())
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.frame.len() && !self.ended {
            if let Err(error) = self.next_frame() {
                let message = error.to_string();
                self.broken = Some(error);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        let rest = self.frame.get(self.at..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (place, byte) in buffer.iter_mut().zip(rest) {
            *place = *byte;
        }
        self.at += count;
        Ok(count)
    }
}

/// Send what stands at a path: REPLY, then a tar of it in DATA frames. A link is sent as a link.
pub fn copy_out(path: &str, stream: &mut FdStream) -> Result<(), TaskError> {
    let trimmed = path.trim_end_matches('/');
    let (parent, name) = match trimmed.rsplit_once('/') {
        // The root itself: its entries are `./…`.
        None if path.starts_with('/') && trimmed.is_empty() => ("/", "."),
        Some((parent, name)) if path.starts_with('/') && !matches!(name, "" | "." | "..") => {
            (if parent.is_empty() { "/" } else { parent }, name)
        }
        _ => return refuse(ErrorCode::BadRequest, format!("{path:?} is no absolute path")),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let missing = |errno: Errno| match errno {
        Errno::NOENT | Errno::NOTDIR => TaskError::new(ErrorCode::NotFound, format!("no such file: {path}")),
        errno => TaskError::io(format_args!("open {path}"), &errno.into()),
    };
    let folder = rustix::fs::open(parent, flags, Mode::empty()).map_err(missing)?;
    let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(missing)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => return refuse(ErrorCode::BadRequest, format!("{path} is no file, directory or link")),
    };
    let reply = serde_json::json!({ "name": name, "kind": kind });
    stream.write_frame(FrameType::Reply, reply.to_string().as_bytes())?;
    let mut out = DataWriter { stream, buffer: Vec::with_capacity(2 * CHUNK) };
    pack(&folder, name.as_bytes(), &mut out)?;
    out.finish()
}

/// A folder being packed: names still to come, last first.
struct Level {
    folder: OwnedFd,
    prefix: Vec<u8>,
    names: Vec<Vec<u8>>,
}

fn pack(folder: &OwnedFd, name: &[u8], out: &mut DataWriter<'_>) -> Result<(), TaskError> {
    let folder = folder.try_clone().doing("duplicate a descriptor")?;
    let mut levels = vec![Level { folder, prefix: Vec::new(), names: vec![name.to_vec()] }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let path = [level.prefix.as_slice(), &name].concat();
        let inner = pack_one(&level.folder, &name, path, out)?;
        if let Some(inner) = inner {
            if levels.len() >= DEEPEST {
                return refuse(ErrorCode::Limit, "the tree is too deep");
            }
            levels.push(inner);
        }
    }
    Ok(())
}

/// Pack one entry; for a directory returns its contents as the next level.
fn pack_one(
    folder: &OwnedFd,
    name: &[u8],
    path: Vec<u8>,
    out: &mut DataWriter<'_>,
) -> Result<Option<Level>, TaskError> {
    let shown = String::from_utf8_lossy(&path).into_owned();
    let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        // Gone since the folder was read.
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno).doing(format_args!("stat {shown}")),
    };
    let Some(mut entry) = entry_of(&stat, path) else { return Ok(None) };
    match entry.kind {
        Kind::File => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(folder, name, flags, Mode::empty()).doing(format_args!("open {shown}"))?;
            out.write(&encode_header(&entry))?;
            out.write_file(File::from(file), entry.size, &shown)?;
        }
        Kind::Directory => {
            entry.name.push(b'/');
            out.write(&encode_header(&entry))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = rustix::fs::openat(folder, name, flags, Mode::empty()).doing(format_args!("open {shown}"))?;
            let mut names = list(&inner).doing(format_args!("read {shown}"))?;
            if KERNELS.contains(&entry.name.as_slice()) {
                names.clear();
            }
            return Ok(Some(Level { folder: inner, prefix: entry.name, names }));
        }
        Kind::Symlink => {
            let link = rustix::fs::readlinkat(folder, name, Vec::new()).doing(format_args!("read {shown}"))?;
            entry.link = link.into_bytes();
            out.write(&encode_header(&entry))?;
        }
        _ => out.write(&encode_header(&entry))?,
    }
    Ok(None)
}

/// Names of a folder in descending order: they are taken from the end.
fn list(folder: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for found in rustix::fs::Dir::read_from(folder)? {
        let name = found?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

/// None for what no archive can hold: sockets.
fn entry_of(stat: &Stat, name: Vec<u8>) -> Option<Entry> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        _ => return None,
    };
    let size = if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or_default() } else { 0 };
    Some(Entry {
        name,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size,
        mtime: stat.st_mtime,
        link: Vec::new(),
        device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
    })
}

/// Collects bytes into DATA frames.
struct DataWriter<'a> {
    stream: &'a mut FdStream,
    buffer: Vec<u8>,
}

impl DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), TaskError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(())
    }

    /// As many bytes as the header says: zeros where the file has shrunk since, no more where it has grown.
    fn write_file(&mut self, mut file: File, size: u64, shown: &str) -> Result<(), TaskError> {
        let mut left = size;
        let mut buffer = vec![0_u8; CHUNK];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let room = buffer.get_mut(..most).unwrap_or_default();
            let count = file.read(room).doing(format_args!("read {shown}"))?;
            if count == 0 {
                room.fill(0);
            }
            let count = if count == 0 { most } else { count };
            self.write(buffer.get(..count).unwrap_or_default())?;
            left -= count as u64;
        }
        self.write(&padding(size))
    }

    fn flush(&mut self) -> Result<(), TaskError> {
        if !self.buffer.is_empty() {
            self.stream.write_frame(FrameType::Data, &self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), TaskError> {
        self.write(&TRAILER)?;
        self.flush()?;
        Ok(self.stream.write_frame(FrameType::Data, &[])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let split = |name: &str| split_name(name.as_bytes(), name);
        assert_eq!(split("a/./b//c/").unwrap(), Some((vec![b"a".to_vec(), b"b".to_vec()], b"c".to_vec())));
        assert_eq!(split("/etc").unwrap(), Some((vec![], b"etc".to_vec())));
        assert_eq!(split("./").unwrap(), None);
        assert!(split("a/../b").unwrap_err().to_string().starts_with("escapes"));
    }
}
