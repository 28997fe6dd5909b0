//! layer-copy: COPY's rules, for files of the context (an archive) and of another stage (a tree).

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use firebuild_protocol::{ErrorCode, TaskError};

use crate::apply::Totals;
use crate::copy_tree::{make_room, prepare_directory, Overrides, Source, TreeCopier};
use crate::paths::{self, Missing};
use crate::pattern;
use crate::requests::{bad, check_text, Copy, Item, ItemKind};
use crate::run::find_user;
use crate::tar_read::{ArchiveError, Entry, EntryKind, TarReader};
use crate::tree::{self, Info, Kind};

const MAX_DEPTH: usize = 256;

/// Where a source goes, and as whom.
pub struct Destination<'a> {
    root: BorrowedFd<'a>,
    path: &'a [u8],
    is_directory: bool,
    overrides: Overrides,
}

/// A directory that sources are copied into.
struct Target {
    dir: OwnedFd,
    /// It was made for this copy, and nobody said that it is to be a directory of its own: it becomes the source's.
    takes_attributes: bool,
}

impl<'a> Destination<'a> {
    /// Checks the request against the stack's tree.
    pub fn new(request: &'a Copy, root: BorrowedFd<'a>) -> Result<Self, TaskError> {
        check_text("dest", &request.dest)?;
        if !request.dest.starts_with('/') {
            return Err(bad(format!("dest {:?} is not absolute", request.dest)));
        }
        let owner =
            request.chown.as_deref().filter(|text| !text.is_empty()).map(|spec| find_owner(root, spec)).transpose()?;
        let mode = request.chmod.as_deref().filter(|text| !text.is_empty()).map(parse_mode).transpose()?;
        Ok(Self {
            root,
            path: request.dest.as_bytes(),
            is_directory: request.dest_is_directory,
            overrides: Overrides { owner, mode },
        })
    }

    fn missing(&self) -> Missing {
        let (uid, gid) = self.overrides.owner.unwrap_or((0, 0));
        Missing::MakeParents(uid, gid)
    }

    /// For a directory's contents.
    fn directory(&self) -> io::Result<Target> {
        let existed = paths::resolve(self.root, self.path, true, Missing::Fail).is_ok_and(|place| place.info.is_some());
        let dir = paths::open_dir(self.root, self.path, self.missing())?;
        Ok(Target { dir, takes_attributes: !existed && !self.is_directory })
    }

    /// For a file: the directory and the name in it.
    fn file(&self, name: &[u8]) -> io::Result<(OwnedFd, Vec<u8>)> {
        if self.is_directory {
            return Ok((paths::open_dir(self.root, self.path, self.missing())?, name.to_vec()));
        }
        let place = paths::resolve(self.root, self.path, true, self.missing())?;
        if place.info.is_some_and(|info| info.kind == Kind::Directory) {
            let dir = if place.name.is_empty() { place.dir } else { tree::open_dir(place.dir.as_fd(), &place.name)? };
            return Ok((dir, name.to_vec()));
        }
        Ok((place.dir, place.name))
    }
}

/// `user`, `user:group`, names or numbers. A number alone is also the group, as BuildKit has it.
fn find_owner(root: BorrowedFd<'_>, spec: &str) -> Result<(u32, u32), TaskError> {
    let identity = find_user(root, spec)?;
    let is_number = !spec.is_empty() && spec.bytes().all(|byte| byte.is_ascii_digit());
    Ok((identity.uid, if is_number { identity.uid } else { identity.gid }))
}

fn parse_mode(text: &str) -> Result<u32, TaskError> {
    let octal = !text.is_empty() && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = if octal { u32::from_str_radix(text, 8).ok() } else { None };
    mode.filter(|mode| *mode <= 0o7777).ok_or_else(|| bad(format!("chmod {text:?} is not an octal mode")))
}

/// Copies `paths` (patterns) of another tree.
pub fn copy_from_tree(
    destination: &Destination<'_>,
    source: BorrowedFd<'_>,
    patterns: &[String],
) -> Result<Totals, TaskError> {
    let mut sources = Vec::new();
    for text in patterns {
        check_text("a path", text)?;
        let found =
            pattern::expand(source, text.as_bytes()).map_err(|error| bad(format!("the pattern {text:?}: {error}")))?;
        if found.is_empty() {
            return Err(TaskError::new(ErrorCode::NotFound, format!("nothing matches {text:?}")));
        }
        sources.extend(found);
    }
    let several = sources.len() > 1;
    let destination = Destination { is_directory: destination.is_directory || several, ..*destination };
    let mut totals = Totals::default();
    for path in sources {
        let shown = String::from_utf8_lossy(&path).into_owned();
        let copied = copy_one(&destination, source, &path).map_err(|error| fault(&format!("/{shown}"), &error))?;
        totals.entries += copied.entries;
        totals.bytes += copied.bytes;
    }
    Ok(totals)
}

fn copy_one(destination: &Destination<'_>, source: BorrowedFd<'_>, path: &[u8]) -> io::Result<Totals> {
    let place = paths::resolve(source, path, true, Missing::Fail)?;
    let info = place.info.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    if info.kind == Kind::Directory {
        let from = paths::open_dir(source, path, Missing::Fail)?;
        let target = destination.directory()?;
        let mut copier = TreeCopier::new(target.dir.as_fd(), destination.overrides);
        copier.content(from.as_fd(), target.dir.as_fd(), b"", 0)?;
        if target.takes_attributes {
            let xattrs = tree::xattrs_of(from.as_fd())?;
            tree::set_attributes(target.dir.as_fd(), b".", &destination.overrides.apply(&info), &xattrs)?;
        }
        return Ok(copier.totals());
    }
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let (dir, name) = destination.file(name)?;
    let mut copier = TreeCopier::new(dir.as_fd(), destination.overrides);
    copier.entry(Source { dir: place.dir.as_fd(), name: &place.name, info: &info }, dir.as_fd(), &name, 0)?;
    Ok(copier.totals())
}

/// Unpacks an archive of context files, whose entries are named by the number of their item.
pub struct ContextCopier<'a> {
    destination: &'a Destination<'a>,
    items: &'a [Item],
    targets: Vec<Option<Target>>,
    totals: Totals,
    /// Attributes of directories, set last: filling a directory changes its time.
    directories: Vec<(usize, Vec<Vec<u8>>, Info)>,
    buffer: Vec<u8>,
}

impl<'a> ContextCopier<'a> {
    pub fn new(destination: &'a Destination<'a>, items: &'a [Item]) -> Result<Self, TaskError> {
        for item in items {
            let plain = !item.name.contains(['/', '\0']) && item.name != "." && item.name != "..";
            if !plain || (item.name.is_empty() && item.kind == ItemKind::File) {
                return Err(bad(format!("{:?} is no item name", item.name)));
            }
        }
        let targets = items.iter().map(|_| None).collect();
        Ok(Self {
            destination,
            items,
            targets,
            totals: Totals::default(),
            directories: Vec::new(),
            buffer: vec![0; 128 * 1024],
        })
    }

    /// Unpacks the whole archive. `failed_read` turns an error of the input into the task's.
    pub fn copy<R: Read>(
        mut self,
        archive: &mut TarReader<R>,
        mut failed_read: impl FnMut(&mut R, &io::Error) -> TaskError,
    ) -> Result<Totals, TaskError> {
        // A directory that is empty, or that the archive only names by its content, is made all the same.
        for (index, item) in self.items.iter().enumerate() {
            if item.kind == ItemKind::Directory {
                let target = self.destination.directory().map_err(|error| self.dest_fault(&error))?;
                if let Some(place) = self.targets.get_mut(index) {
                    *place = Some(target);
                }
            }
        }
        loop {
            match archive.next_entry() {
                Ok(None) => break,
                Ok(Some(entry)) => {
                    let mut read_error = None;
                    let placed = self.place(&entry, archive, &mut read_error);
                    if let Some(error) = read_error {
                        return Err(failed_read(archive.get_mut(), &error));
                    }
                    placed?;
                }
                Err(ArchiveError::Bad(message)) => return Err(TaskError::new(ErrorCode::BadArchive, message)),
                Err(ArchiveError::Limit(message)) => return Err(TaskError::new(ErrorCode::Limit, message)),
                Err(ArchiveError::Io(error)) => return Err(failed_read(archive.get_mut(), &error)),
            }
        }
        self.set_directories()?;
        Ok(self.totals)
    }

    fn dest_fault(&self, error: &io::Error) -> TaskError {
        fault(&String::from_utf8_lossy(self.destination.path), error)
    }

    fn place<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut TarReader<R>,
        read_error: &mut Option<io::Error>,
    ) -> Result<(), TaskError> {
        let refuse = |what: &str| TaskError::new(ErrorCode::BadArchive, format!("{}: {what}", entry.shown()));
        let failed = |error: io::Error| fault(&entry.shown(), &error);
        let (index, parts) = self.parse_name(&entry.path).ok_or_else(|| refuse("no item of that number"))?;
        let item = self.items.get(index).ok_or_else(|| refuse("no item of that number"))?;
        self.totals.entries += 1;
        if item.kind == ItemKind::File {
            if !parts.is_empty() || entry.kind != EntryKind::Plain(Kind::File) {
                return Err(refuse("the item is a file"));
            }
            let (dir, name) = self.destination.file(item.name.as_bytes()).map_err(|error| self.dest_fault(&error))?;
            return self.leaf(entry, archive, dir.as_fd(), &name, read_error).map_err(failed);
        }
        let Some((name, parents)) = parts.split_last() else {
            if entry.kind != EntryKind::Plain(Kind::Directory) {
                return Err(refuse("the item is a directory"));
            }
            if matches!(self.targets.get(index), Some(Some(target)) if target.takes_attributes) {
                self.directories.push((index, parts, self.info(entry)));
            }
            return Ok(());
        };
        let dir = self.open_below(index, parents, true).map_err(failed)?;
        match entry.kind {
            EntryKind::Plain(Kind::Directory) => {
                prepare_directory(dir.as_fd(), name).map_err(failed)?;
                tree::set_xattrs(dir.as_fd(), name, &entry.xattrs).map_err(failed)?;
                self.directories.push((index, parts, self.info(entry)));
                Ok(())
            }
            EntryKind::HardLink => {
                let (other, target) = self.parse_name(&entry.link).ok_or_else(|| refuse("a hard link to nowhere"))?;
                let (target, parents) = target.split_last().ok_or_else(|| refuse("a hard link to nowhere"))?;
                let from = self.open_below(other, parents, false).map_err(failed)?;
                make_room(dir.as_fd(), name).map_err(failed)?;
                let flags = rustix::fs::AtFlags::empty();
                rustix::fs::linkat(&from, &target[..], &dir, &name[..], flags).map_err(|error| failed(error.into()))
            }
            EntryKind::Plain(_) => self.leaf(entry, archive, dir.as_fd(), name, read_error).map_err(failed),
        }
    }

    fn leaf<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut TarReader<R>,
        dir: BorrowedFd<'_>,
        name: &[u8],
        read_error: &mut Option<io::Error>,
    ) -> io::Result<()> {
        make_room(dir, name)?;
        match entry.kind {
            EntryKind::Plain(Kind::File) => {
                let mut file = tree::create_file(dir, name, entry.mode)?;
                loop {
                    let count = match archive.read(&mut self.buffer) {
                        Ok(0) => break,
                        Ok(count) => count,
                        Err(error) => {
                            *read_error = Some(error);
                            return Ok(());
                        }
                    };
                    io::Write::write_all(&mut file, self.buffer.get(..count).unwrap_or_default())?;
                    self.totals.bytes += u64::try_from(count).unwrap_or(0);
                }
                return tree::set_file_attributes(&file, &self.info(entry), &entry.xattrs);
            }
            EntryKind::Plain(Kind::Symlink) => tree::make_symlink(dir, name, &entry.link)?,
            EntryKind::Plain(kind) => tree::make_node(dir, name, kind, entry.device)?,
            EntryKind::HardLink => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
        tree::set_attributes(dir, name, &self.info(entry), &entry.xattrs)
    }

    /// The attributes of a copy: the context has no owners that mean anything in the image.
    fn info(&self, entry: &Entry) -> Info {
        let kind = match entry.kind {
            EntryKind::Plain(kind) => kind,
            EntryKind::HardLink => Kind::File,
        };
        let info = Info {
            kind,
            mode: entry.mode,
            uid: 0,
            gid: 0,
            size: entry.size,
            mtime: entry.mtime,
            rdev: entry.device,
            links: 1,
            identity: (0, 0),
        };
        self.destination.overrides.apply(&info)
    }

    /// `N` or `N/a/b`: the item's number and the components below it.
    fn parse_name(&self, path: &[u8]) -> Option<(usize, Vec<Vec<u8>>)> {
        let mut parts = paths::split(path);
        if parts.is_empty() || parts.len() > MAX_DEPTH || parts.iter().any(|part| part == b"..") {
            return None;
        }
        let index = std::str::from_utf8(&parts.remove(0)).ok()?.parse().ok()?;
        (index < self.items.len()).then_some((index, parts))
    }

    /// A directory below an item's target; links on the way are not followed (BuildKit refuses them too).
    fn open_below(&self, index: usize, parents: &[Vec<u8>], make: bool) -> io::Result<OwnedFd> {
        let Some(Some(target)) = self.targets.get(index) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let mut dir = target.dir.try_clone()?;
        for name in parents {
            if make && prepare_directory(dir.as_fd(), name)? {
                let (uid, gid) = self.destination.overrides.owner.unwrap_or((0, 0));
                tree::set_owner(dir.as_fd(), name, uid, gid)?;
                let mode = rustix::fs::Mode::from_raw_mode(0o755);
                rustix::fs::chmodat(&dir, &name[..], mode, rustix::fs::AtFlags::empty())?;
            }
            dir = tree::open_dir(dir.as_fd(), name)?;
        }
        Ok(dir)
    }

    fn set_directories(&self) -> Result<(), TaskError> {
        for (index, parts, info) in self.directories.iter().rev() {
            let shown = String::from_utf8_lossy(&paths::join(parts)).into_owned();
            let dir = self.open_below(*index, parts, false).map_err(|error| fault(&shown, &error))?;
            tree::set_attributes(dir.as_fd(), b".", info, &Vec::new()).map_err(|error| fault(&shown, &error))?;
        }
        Ok(())
    }
}

/// An error of copying in the protocol's codes.
fn fault(what: &str, error: &io::Error) -> TaskError {
    match error.raw_os_error() {
        Some(libc::ENOENT) => TaskError::new(ErrorCode::NotFound, format!("{what}: not found")),
        Some(libc::ENOTDIR) => {
            TaskError::new(ErrorCode::NotADirectory, format!("{what}: cannot copy to what is not a directory"))
        }
        Some(libc::EISDIR) => {
            TaskError::new(ErrorCode::Exists, format!("{what}: cannot replace a directory by a file"))
        }
        Some(libc::ELOOP) => TaskError::new(ErrorCode::Io, format!("{what}: too many links")),
        _ => TaskError::io(format!("copying {what}"), error),
    }
}
