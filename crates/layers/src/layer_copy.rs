//! layer-copy: COPY's rules, for files of the context (an archive) and of another stage (a tree).

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use firebuild_protocol::{ErrorCode, TaskError};
use rustix::fs::Timespec;

use crate::apply::Totals;
use crate::copy_filtered::{copy_filtered, Filter};
use crate::copy_tree::{make_room, prepare_directory, Overrides, Source, TreeCopier};
use crate::filter::{is_literal, Matches, Rules};
use crate::modes::ModeChange;
use crate::paths::{self, Maker, Missing};
use crate::pattern;
use crate::requests::{bad, check_text, Copy, From, Item, ItemKind};
use crate::run::find_user;
use crate::tar_read::{ArchiveError, Entry, EntryKind, TarReader};
use crate::tree::{self, Info, Kind};
use crate::unpack::Unpacker;

const MAX_DEPTH: usize = 256;

/// Where sources go, and as whom.
pub struct Destination<'a> {
    root: BorrowedFd<'a>,
    path: &'a [u8],
    is_directory: bool,
    overrides: Overrides,
    maker: Maker,
    /// For archives: `chmod` does not count for what is unpacked, nor for where.
    archive_maker: Maker,
    mtime: Option<Timespec>,
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
        let (uid, gid) = owner.unwrap_or((0, 0));
        Ok(Self {
            root,
            path: request.dest.as_bytes(),
            is_directory: request.dest_is_directory,
            maker: Maker::new(uid, gid, mode.as_ref().map_or(0o755, ModeChange::of_parents)),
            archive_maker: Maker::new(uid, gid, 0o755),
            overrides: Overrides { owner, mode },
            mtime: request.mtime_s.map(|seconds| Timespec { tv_sec: seconds, tv_nsec: 0 }),
        })
    }

    /// A directory for a directory's contents.
    fn directory(&self) -> io::Result<OwnedFd> {
        paths::open_dir(self.root, self.path, Missing::Make(&self.maker))
    }

    /// For a file: the directory and the name in it.
    fn file(&self, name: &[u8]) -> io::Result<(OwnedFd, Vec<u8>)> {
        let (dir, name) = self.find_place(name)?;
        self.maker.touch(dir.as_fd())?;
        Ok((dir, name))
    }

    /// A directory that an archive is unpacked into.
    fn archive(&self) -> io::Result<OwnedFd> {
        let dir = paths::open_dir(self.root, self.path, Missing::Make(&self.archive_maker))?;
        self.archive_maker.touch(dir.as_fd())?;
        Ok(dir)
    }

    fn find_place(&self, name: &[u8]) -> io::Result<(OwnedFd, Vec<u8>)> {
        if self.is_directory {
            return Ok((self.directory()?, name.to_vec()));
        }
        let place = paths::resolve(self.root, self.path, true, Missing::Make(&self.maker))?;
        if place.info.is_some_and(|info| info.kind == Kind::Directory) {
            let dir = if place.name.is_empty() { place.dir } else { tree::open_dir(place.dir.as_fd(), &place.name)? };
            return Ok((dir, name.to_vec()));
        }
        Ok((place.dir, place.name))
    }

    /// The time of what was made or added to, when all is there.
    fn set_times(&self) -> Result<(), TaskError> {
        let Some(mtime) = self.mtime else {
            return Ok(());
        };
        let set = self.maker.set_times(mtime).and_then(|()| self.archive_maker.set_times(mtime));
        set.map_err(|error| fault(&String::from_utf8_lossy(self.path), &error))
    }
}

/// `user`, `user:group`, names or numbers. A number alone is also the group, as BuildKit has it.
fn find_owner(root: BorrowedFd<'_>, spec: &str) -> Result<(u32, u32), TaskError> {
    let identity = find_user(root, spec)?;
    let is_number = !spec.is_empty() && spec.bytes().all(|byte| byte.is_ascii_digit());
    Ok((identity.uid, if is_number { identity.uid } else { identity.gid }))
}

fn parse_mode(text: &str) -> Result<ModeChange, TaskError> {
    ModeChange::parse(text).ok_or_else(|| bad(format!("chmod {text:?} is no mode")))
}

/// Copies what `request` names (paths or patterns) of another tree. A pattern may match nothing.
pub fn copy_from_tree(
    destination: &mut Destination<'_>,
    source: BorrowedFd<'_>,
    request: &From,
) -> Result<Totals, TaskError> {
    let includes = request.include.as_deref();
    if includes.is_some_and(|includes| includes.len() != request.paths.len()) {
        return Err(bad("as many includes as paths"));
    }
    let exclude = Rules::parse(request.exclude.iter().map(String::as_str)).ok_or_else(|| bad("a malformed exclude"))?;
    let mut sources = Vec::new();
    for (index, text) in request.paths.iter().enumerate() {
        check_text("a path", text)?;
        let found =
            pattern::expand(source, text.as_bytes()).map_err(|error| bad(format!("the pattern {text:?}: {error}")))?;
        let include = includes.and_then(|includes| includes.get(index)).map(String::as_str);
        sources.extend(found.into_iter().map(|path| (path, include, is_literal(text))));
    }
    destination.is_directory |= sources.len() > 1 || includes.is_some();
    let mut totals = Totals::default();
    let mut times = Vec::new();
    if includes.is_some() {
        destination.directory().map_err(|error| fault(&String::from_utf8_lossy(destination.path), &error))?;
    }
    for (path, include, literal) in sources {
        let shown = format!("/{}", String::from_utf8_lossy(&path));
        let mut source = Selected { tree: source, path: &path, include: None, exclude: &exclude };
        if let Some(include) = include {
            let rules = Rules::parse([include]).ok_or_else(|| bad(format!("the pattern {include:?}")))?;
            source.include = Some(&rules);
            let included =
                copy_one(destination, &source, &mut totals, &mut times).map_err(|error| fault(&shown, &error))?;
            if included == 0 && literal && is_literal(include) {
                let path = format!("{}/{include}", shown.trim_end_matches('/'));
                return Err(TaskError::new(ErrorCode::NotFound, format!("{path}: not found")));
            }
        } else {
            copy_one(destination, &source, &mut totals, &mut times).map_err(|error| fault(&shown, &error))?;
        }
    }
    destination.set_times()?;
    for (dir, mtime) in times {
        tree::set_mtime(dir.as_fd(), b".", mtime).map_err(|error| TaskError::io("setting a time", &error))?;
    }
    Ok(totals)
}

/// One source in another tree, and what of it is copied.
struct Selected<'a> {
    tree: BorrowedFd<'a>,
    path: &'a [u8],
    include: Option<&'a Rules>,
    exclude: &'a Rules,
}

/// Returns how many entries the patterns left. A destination directory is to get its time in `times`.
fn copy_one(
    destination: &Destination<'_>,
    source: &Selected<'_>,
    totals: &mut Totals,
    times: &mut Vec<(OwnedFd, Timespec)>,
) -> io::Result<u64> {
    let place = paths::resolve(source.tree, source.path, true, Missing::Fail)?;
    let info = place.info.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    let filtered = source.include.is_some() || !source.exclude.is_empty();
    let mut included = 1;
    if info.kind == Kind::Directory {
        let from = paths::open_dir(source.tree, source.path, Missing::Fail)?;
        let dir = destination.directory()?;
        let mut copier = TreeCopier::new(dir.as_fd(), destination.overrides.clone());
        if filtered {
            let exclude = Some(source.exclude).filter(|rules| !rules.is_empty());
            let filter = Filter { include: source.include, exclude };
            included = copy_filtered(&mut copier, &filter, from.as_fd(), dir.as_fd())?;
        } else {
            copier.content(from.as_fd(), dir.as_fd(), b"", 0)?;
        }
        totals.add(copier.totals());
        times.push((dir.try_clone()?, info.mtime));
        return Ok(included);
    }
    let name = source.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if source.exclude.check(&String::from_utf8_lossy(name), &Matches::default()).0 {
        return Ok(included);
    }
    let (dir, name) = destination.file(name)?;
    let mut copier = TreeCopier::new(dir.as_fd(), destination.overrides.clone());
    copier.entry(Source { dir: place.dir.as_fd(), name: &place.name, info: &info }, dir.as_fd(), &name, 0)?;
    totals.add(copier.totals());
    Ok(included)
}

/// Unpacks an archive of context files, whose entries are named by the number of their item.
pub struct ContextCopier<'a> {
    destination: &'a Destination<'a>,
    items: &'a [Item],
    targets: Vec<Option<OwnedFd>>,
    unpackers: HashMap<usize, Unpacker>,
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
            unpackers: HashMap::new(),
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
            } else if item.kind == ItemKind::Archive {
                let target = self.destination.archive().map_err(|error| self.dest_fault(&error))?;
                self.unpackers.insert(index, Unpacker::new(target));
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
        self.destination.set_times()?;
        self.set_directories()?;
        for unpacker in self.unpackers.values() {
            unpacker.finish().map_err(|error| self.dest_fault(&error))?;
        }
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
        if item.kind == ItemKind::Archive {
            let link = match entry.kind {
                EntryKind::HardLink => self.parse_name(&entry.link).filter(|(other, _)| *other == index),
                EntryKind::Plain(_) => None,
            };
            let link = link.as_ref().map(|(_, parts)| &parts[..]);
            let info = self.info(entry, true);
            let unpacker = self.unpackers.get_mut(&index).ok_or_else(|| refuse("no item of that number"))?;
            return match unpacker.place(entry, &parts, link, info).map_err(failed)? {
                Some((dir, name)) => self.leaf(entry, archive, dir.as_fd(), &name, read_error, true).map_err(failed),
                None => Ok(()),
            };
        }
        if item.kind == ItemKind::File {
            if !parts.is_empty() || entry.kind != EntryKind::Plain(Kind::File) {
                return Err(refuse("the item is a file"));
            }
            let (dir, name) = self.destination.file(item.name.as_bytes()).map_err(|error| self.dest_fault(&error))?;
            return self.leaf(entry, archive, dir.as_fd(), &name, read_error, false).map_err(failed);
        }
        let Some((name, parents)) = parts.split_last() else {
            if entry.kind != EntryKind::Plain(Kind::Directory) {
                return Err(refuse("the item is a directory"));
            }
            // Of the directory that is copied only the time goes to the destination.
            self.directories.push((index, parts, self.info(entry, false)));
            return Ok(());
        };
        let dir = self.open_below(index, parents, true).map_err(failed)?;
        match entry.kind {
            EntryKind::Plain(Kind::Directory) => {
                prepare_directory(dir.as_fd(), name).map_err(failed)?;
                tree::set_xattrs(dir.as_fd(), name, &entry.xattrs).map_err(failed)?;
                self.directories.push((index, parts, self.info(entry, false)));
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
            EntryKind::Plain(_) => self.leaf(entry, archive, dir.as_fd(), name, read_error, false).map_err(failed),
        }
    }

    fn leaf<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut TarReader<R>,
        dir: BorrowedFd<'_>,
        name: &[u8],
        read_error: &mut Option<io::Error>,
        unpacked: bool,
    ) -> io::Result<()> {
        let info = self.info(entry, unpacked);
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
                return tree::set_file_attributes(&file, &info, &entry.xattrs);
            }
            EntryKind::Plain(Kind::Symlink) => tree::make_symlink(dir, name, &entry.link)?,
            EntryKind::Plain(kind) => tree::make_node(dir, name, kind, entry.device)?,
            EntryKind::HardLink => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
        tree::set_attributes(dir, name, &info, &entry.xattrs)
    }

    /// The attributes of a copy: the context has no owners that mean anything in the image; an archive that is
    /// unpacked has, and `chmod` does not count for it.
    fn info(&self, entry: &Entry, unpacked: bool) -> Info {
        let kind = match entry.kind {
            EntryKind::Plain(kind) => kind,
            EntryKind::HardLink => Kind::File,
        };
        let info = Info {
            kind,
            mode: entry.mode,
            uid: if unpacked { entry.uid } else { 0 },
            gid: if unpacked { entry.gid } else { 0 },
            size: entry.size,
            mtime: entry.mtime,
            rdev: entry.device,
            links: 1,
            identity: (0, 0),
        };
        let changed = self.destination.overrides.apply(&info);
        Info { mode: if unpacked { info.mode } else { changed.mode }, ..changed }
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
        let mut dir = target.try_clone()?;
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
            if parts.is_empty() {
                tree::set_mtime(dir.as_fd(), b".", info.mtime).map_err(|error| fault(&shown, &error))?;
                continue;
            }
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
