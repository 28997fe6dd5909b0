//! layer-apply: an OCI layer archive becomes a directory in overlayfs form.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use firebuild_protocol::{ErrorCode, TaskError};
use rustix::fs::Timespec;
use rustix::io::Errno;

use crate::paths;
use crate::tar_read::{show, ArchiveError, Entry, EntryKind, TarReader};
use crate::tree::{self, Info, Kind, Xattrs};

/// The prefix of OCI whiteouts (OCI image specification, layer.md).
pub const WHITEOUT: &[u8] = b".wh.";
pub const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
const META_MARK: &[u8] = b".wh..wh.";

const MAX_ENTRIES: u64 = 4_000_000;
const MAX_DEPTH: usize = 256;
const MAX_LINKS: usize = 40;

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub entries: u64,
    pub bytes: u64,
}

impl Totals {
    pub fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
    }
}

/// Unpacks archives into `layer`. `lower` is the merged tree below it: a parent that only that one has keeps its
/// attributes, and a link in it leads on inside the tree.
pub struct Applier<'a> {
    layer: BorrowedFd<'a>,
    lower: Option<BorrowedFd<'a>>,
    /// Nothing lies below the layer, nor ever will: whiteouts leave no trace.
    lowest: bool,
    totals: Totals,
    /// Times of directories, set last: filling a directory changes its time.
    times: BTreeMap<Vec<u8>, Timespec>,
    /// The parent of the last entry, as the archive named it and as it was found.
    last_parent: Option<(Vec<Vec<u8>>, Rc<Parent>)>,
    buffer: Vec<u8>,
}

/// A directory of the layer. `path` is its resolved path; `hidden`: nothing of the lower tree shows in it.
struct Parent {
    fd: OwnedFd,
    path: Vec<Vec<u8>>,
    hidden: bool,
}

impl<'a> Applier<'a> {
    pub fn new(layer: BorrowedFd<'a>, lower: Option<BorrowedFd<'a>>) -> Self {
        Self {
            layer,
            lower,
            lowest: false,
            totals: Totals::default(),
            times: BTreeMap::new(),
            last_parent: None,
            buffer: vec![0; 128 * 1024],
        }
    }

    /// An applier of the lowest layer, onto an empty tree that is not in overlayfs form.
    pub fn for_lowest(tree: BorrowedFd<'a>) -> Self {
        Self { lowest: true, ..Self::new(tree, None) }
    }

    /// Unpacks the whole archive. `failed_read` turns an error of the input into the task's.
    pub fn apply<R: Read>(
        mut self,
        archive: &mut TarReader<R>,
        mut failed_read: impl FnMut(&mut R, &io::Error) -> TaskError,
    ) -> Result<Totals, TaskError> {
        loop {
            match archive.next_entry() {
                Ok(None) => break,
                Ok(Some(entry)) => {
                    self.totals.entries += 1;
                    if self.totals.entries > MAX_ENTRIES {
                        return Err(TaskError::new(ErrorCode::Limit, format!("more than {MAX_ENTRIES} entries")));
                    }
                    match self.place(&entry, archive) {
                        Ok(()) => {}
                        Err(Fault::Input(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            let message = format!("{}: the archive ends within the entry", entry.shown());
                            return Err(TaskError::new(ErrorCode::BadArchive, message));
                        }
                        Err(Fault::Input(error)) => return Err(failed_read(archive.get_mut(), &error)),
                        Err(fault) => return Err(fault.into_task_error(&entry)),
                    }
                }
                Err(ArchiveError::Bad(message)) => return Err(TaskError::new(ErrorCode::BadArchive, message)),
                Err(ArchiveError::Limit(message)) => return Err(TaskError::new(ErrorCode::Limit, message)),
                Err(ArchiveError::Io(error)) => return Err(failed_read(archive.get_mut(), &error)),
            }
        }
        self.set_times().map_err(|error| TaskError::io("setting the times of directories", &error))?;
        Ok(self.totals)
    }

    fn place<R: Read>(&mut self, entry: &Entry, archive: &mut TarReader<R>) -> Result<(), Fault> {
        let mut parts = paths::split(&entry.path);
        if parts.iter().any(|part| part == b"..") {
            return Err(Fault::bad("the name leads out of the layer"));
        }
        if parts.len() > MAX_DEPTH {
            return Err(Fault::Limit(format!("more than {MAX_DEPTH} directories deep")));
        }
        let Some(name) = parts.pop() else {
            return self.place_root(entry);
        };
        let parent = self.parent(&parts, entry.mtime)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.last_parent = None;
            return self.whiteout(&parent, &name, hidden);
        }
        let dir = parent.fd.as_fd();
        let old = tree::find(dir, &name)?;
        let mut full = parent.path.clone();
        full.push(name.clone());
        if entry.kind == EntryKind::Plain(Kind::Directory) {
            return self.directory(entry, &parent, &name, old, &paths::join(&full));
        }
        if old.is_some() {
            self.last_parent = None;
            tree::remove(dir, &name)?;
            self.forget_times(&paths::join(&full));
        }
        match entry.kind {
            EntryKind::HardLink => return self.hard_link(entry, dir, &name),
            EntryKind::Plain(Kind::File) => return self.file(entry, archive, dir, &name),
            EntryKind::Plain(Kind::Symlink) => {
                self.last_parent = None;
                if entry.link.is_empty() {
                    return Err(Fault::bad("a link without a target"));
                }
                tree::make_symlink(dir, &name, &entry.link)?;
            }
            EntryKind::Plain(kind) => tree::make_node(dir, &name, kind, entry.device)?,
        }
        tree::set_attributes(dir, &name, &info(entry), &entry.xattrs)?;
        Ok(())
    }

    /// The entry `./`: the attributes of the root itself.
    fn place_root(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.kind != EntryKind::Plain(Kind::Directory) {
            return Err(Fault::bad("the root can only be a directory"));
        }
        tree::set_attributes(self.layer, b".", &info(entry), &entry.xattrs)?;
        self.times.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut TarReader<R>,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<(), Fault> {
        let mut file = tree::create_file(dir, name, entry.mode)?;
        loop {
            // Told apart from an error of writing, which is ours.
            let count = archive.read(&mut self.buffer).map_err(Fault::Input)?;
            if count == 0 {
                break;
            }
            io::Write::write_all(&mut file, self.buffer.get(..count).unwrap_or_default())?;
            self.totals.bytes += u64::try_from(count).unwrap_or(0);
        }
        Ok(tree::set_file_attributes(&file, &info(entry), &entry.xattrs)?)
    }

    fn directory(
        &mut self,
        entry: &Entry,
        parent: &Parent,
        name: &[u8],
        old: Option<Info>,
        full: &[u8],
    ) -> Result<(), Fault> {
        let dir = parent.fd.as_fd();
        if old.map(|old| old.kind) != Some(Kind::Directory) {
            tree::remove(dir, name)?;
            tree::make_dir(dir, name)?;
            if old.is_some() && !self.lowest {
                self.last_parent = None;
                // What it replaced hid the lower tree's entry of this name: the new directory starts empty.
                tree::set_opaque(tree::open_dir(dir, name)?.as_fd())?;
            }
        }
        tree::set_attributes(dir, name, &info(entry), &entry.xattrs)?;
        self.times.insert(full.to_vec(), entry.mtime);
        Ok(())
    }

    fn whiteout(&mut self, parent: &Parent, name: &[u8], hidden: &[u8]) -> Result<(), Fault> {
        let dir = parent.fd.as_fd();
        if name == OPAQUE_MARK && self.lowest {
            return Ok(());
        }
        if name == OPAQUE_MARK {
            if !parent.path.is_empty() {
                return Ok(tree::set_opaque(dir)?);
            }
            // overlayfs has no opaque root: each name of the lower one is deleted instead.
            if let Some(lower) = self.lower {
                for name in tree::names(lower)? {
                    if tree::find(dir, &name)?.is_none() {
                        tree::make_whiteout(dir, &name)?;
                    }
                }
            }
            return Ok(());
        }
        if name.starts_with(META_MARK) {
            // Marks of aufs (hard link folders and the like); they mean nothing to a tree.
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(Fault::bad("a whiteout of no name"));
        }
        let mut full = parent.path.clone();
        full.push(hidden.to_vec());
        self.forget_times(&paths::join(&full));
        tree::remove(dir, hidden)?;
        if self.lowest {
            return Ok(());
        }
        Ok(tree::make_whiteout(dir, hidden)?)
    }

    fn hard_link(&mut self, entry: &Entry, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Fault> {
        let missing = || Fault::Bad(format!("the hard link's target {} is not in this layer", show(&entry.link)));
        let mut parts = paths::split(&entry.link);
        if parts.iter().any(|part| part == b"..") {
            return Err(Fault::bad("the hard link's target leads out of the layer"));
        }
        let target = parts.pop().ok_or_else(missing)?;
        let source = self.parent(&parts, entry.mtime)?;
        match tree::find(source.fd.as_fd(), &target)? {
            Some(info) if info.kind == Kind::Directory => Err(Fault::bad("a hard link to a directory")),
            Some(info) if !info.is_whiteout() => {
                rustix::fs::linkat(source.fd.as_fd(), &target[..], dir, name, rustix::fs::AtFlags::empty())?;
                Ok(())
            }
            _ => Err(missing()),
        }
    }

    /// Finds the directory that the archive calls `parts`, links followed inside the tree; makes what is missing.
    fn parent(&mut self, parts: &[Vec<u8>], mtime: Timespec) -> Result<Rc<Parent>, Fault> {
        if let Some((known, parent)) = &self.last_parent {
            if known == parts {
                return Ok(Rc::clone(parent));
            }
        }
        let mut todo: Vec<Vec<u8>> = parts.iter().rev().cloned().collect();
        let mut chain = vec![Parent { fd: self.layer.try_clone_to_owned()?, path: Vec::new(), hidden: false }];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                if chain.len() > 1 {
                    chain.pop();
                }
                continue;
            }
            let Some(here) = chain.last() else {
                return Err(Fault::bad("no root"));
            };
            match self.step(here, &name, mtime)? {
                Step::Into(next) => chain.push(next),
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.first() == Some(&b'/') {
                        chain.truncate(1);
                    }
                    todo.extend(paths::split(&target).into_iter().rev());
                }
            }
            if chain.len() > MAX_DEPTH {
                return Err(Fault::Limit(format!("more than {MAX_DEPTH} directories deep")));
            }
        }
        let parent = Rc::new(chain.pop().ok_or_else(|| Fault::bad("no root"))?);
        self.last_parent = Some((parts.to_vec(), Rc::clone(&parent)));
        Ok(parent)
    }

    /// One component further: the layer first, then what of the lower tree shows through, else a new directory.
    fn step(&mut self, here: &Parent, name: &[u8], mtime: Timespec) -> Result<Step, Fault> {
        let dir = here.fd.as_fd();
        let mut path = here.path.clone();
        path.push(name.to_vec());
        let old = tree::find(dir, name)?;
        match old {
            Some(info) if info.kind == Kind::Directory => {
                let fd = tree::open_dir(dir, name)?;
                let hidden = here.hidden || tree::is_opaque(fd.as_fd());
                return Ok(Step::Into(Parent { fd, path, hidden }));
            }
            Some(info) if info.kind == Kind::Symlink => return Ok(Step::Link(tree::read_symlink(dir, name)?)),
            Some(info) if !info.is_whiteout() => return Err(Fault::bad("a parent of it is not a directory")),
            _ => {}
        }
        let deleted = old.is_some();
        let below = if here.hidden || deleted { None } else { self.find_lower(&path)? };
        if let Some(Lower::Link(target)) = below {
            return Ok(Step::Link(target));
        }
        if deleted {
            tree::remove(dir, name)?;
        }
        tree::make_dir(dir, name)?;
        let fd = tree::open_dir(dir, name)?;
        let (info, xattrs) = match below {
            Some(Lower::Directory(info, xattrs)) => (info, xattrs),
            _ => (new_parent(mtime), Vec::new()),
        };
        if deleted {
            tree::set_opaque(fd.as_fd())?;
        }
        tree::set_attributes(dir, name, &info, &xattrs)?;
        self.times.insert(paths::join(&path), info.mtime);
        Ok(Step::Into(Parent { fd, path, hidden: here.hidden || deleted }))
    }

    /// What the lower tree has at a path whose parents are directories of the layer.
    fn find_lower(&self, path: &[Vec<u8>]) -> Result<Option<Lower>, Fault> {
        let Some(lower) = self.lower else {
            return Ok(None);
        };
        let place = match paths::resolve(lower, &paths::join(path), false, paths::Missing::Fail) {
            Ok(place) => place,
            // A new directory of this layer has nothing below it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // A link on the way would name another directory than the one that the layer's stands over.
        if place.path != paths::join(path) {
            return Ok(None);
        }
        Ok(match place.info.map(|info| (info.kind, info)) {
            Some((Kind::Directory, info)) => {
                Some(Lower::Directory(info, tree::xattrs(place.dir.as_fd(), &place.name)?))
            }
            Some((Kind::Symlink, _)) => Some(Lower::Link(tree::read_symlink(place.dir.as_fd(), &place.name)?)),
            _ => None,
        })
    }

    fn forget_times(&mut self, path: &[u8]) {
        self.times.remove(path);
        // All that starts with "path/": up to "path0", for '0' follows '/'.
        let (first, end) = ([path, b"/"].concat(), [path, b"0"].concat());
        let below: Vec<Vec<u8>> = self.times.range(first..end).map(|(known, _)| known.clone()).collect();
        for known in below {
            self.times.remove(&known);
        }
    }

    fn set_times(&self) -> io::Result<()> {
        // Deepest first: opening a child does not touch its parent's mtime, so any order does.
        for (path, mtime) in self.times.iter().rev() {
            let mut parts = paths::split(path);
            let name = parts.pop().unwrap_or_else(|| b".".to_vec());
            let dir = open_below(self.layer, &parts)?;
            tree::set_mtime(dir.as_fd(), &name, *mtime)?;
        }
        Ok(())
    }
}

enum Step {
    Into(Parent),
    Link(Vec<u8>),
}

enum Lower {
    Directory(Info, Xattrs),
    Link(Vec<u8>),
}

/// Why an entry cannot be placed.
enum Fault {
    Bad(String),
    Limit(String),
    /// Reading the archive failed, not the layer's file system.
    Input(io::Error),
    Io(io::Error),
}

impl Fault {
    fn bad(what: &str) -> Self {
        Self::Bad(what.to_owned())
    }

    fn into_task_error(self, entry: &Entry) -> TaskError {
        match self {
            Self::Bad(what) => TaskError::new(ErrorCode::BadArchive, format!("{}: {what}", entry.shown())),
            Self::Limit(what) => TaskError::new(ErrorCode::Limit, format!("{}: {what}", entry.shown())),
            Self::Input(error) => TaskError::io(format!("reading {}", entry.shown()), &error),
            Self::Io(error) => match error.raw_os_error() {
                Some(libc::ENAMETOOLONG | libc::ELOOP | libc::EINVAL) => {
                    TaskError::new(ErrorCode::BadArchive, format!("{}: {error}", entry.shown()))
                }
                _ => TaskError::io(format!("unpacking {}", entry.shown()), &error),
            },
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

fn info(entry: &Entry) -> Info {
    let kind = match entry.kind {
        EntryKind::Plain(kind) => kind,
        EntryKind::HardLink => Kind::File,
    };
    Info {
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: entry.size,
        mtime: entry.mtime,
        rdev: entry.device,
        links: 1,
        identity: (0, 0),
    }
}

/// A directory that nobody described; its time is that of the entry that needed it, so that it does not vary.
fn new_parent(mtime: Timespec) -> Info {
    let kind = Kind::Directory;
    Info { kind, mode: 0o755, uid: 0, gid: 0, size: 0, mtime, rdev: 0, links: 1, identity: (0, 0) }
}

fn open_below(root: BorrowedFd<'_>, parts: &[Vec<u8>]) -> io::Result<OwnedFd> {
    let mut dir = root.try_clone_to_owned()?;
    for part in parts {
        dir = tree::open_dir(dir.as_fd(), part)?;
    }
    Ok(dir)
}
