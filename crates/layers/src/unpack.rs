//! ADD of an archive: its entries go into one directory as if that were the root of a file system, as in Docker.
//!
//! A link on an entry's way is followed inside that directory; what stands in an entry's place goes, unless both are
//! directories.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::AtFlags;

use crate::paths::{self, Maker, Missing};
use crate::tar_read::{Entry, EntryKind};
use crate::tree::{self, Info, Kind, Xattrs};

/// A directory below the root, open, and its path with all links resolved.
struct Parent {
    dir: Rc<OwnedFd>,
    path: Vec<u8>,
}

/// Where one archive goes.
pub struct Unpacker {
    root: OwnedFd,
    /// The parent of the last entry, as the archive named it and as it was found.
    last_parent: Option<(Vec<Vec<u8>>, Parent)>,
    /// Attributes of directories, set last: filling a directory changes its time.
    directories: BTreeMap<Vec<u8>, Info>,
}

impl Unpacker {
    pub fn new(root: OwnedFd) -> Self {
        Self { root, last_parent: None, directories: BTreeMap::new() }
    }

    /// Makes room for an entry at `parts`, and makes it if it is a directory or a hard link to the entry at `link`.
    /// For all others the caller makes it, in the directory and under the name that come back.
    pub fn place(
        &mut self,
        entry: &Entry,
        parts: &[Vec<u8>],
        link: Option<&[Vec<u8>]>,
        info: Info,
    ) -> io::Result<Option<(Rc<OwnedFd>, Vec<u8>)>> {
        let Some((name, parents)) = parts.split_last() else {
            // The root is there already, and keeps what it is.
            return Ok(None);
        };
        let (dir, path) = self.open_parent(parents)?;
        let full = if path.is_empty() { name.clone() } else { [&path[..], b"/", name].concat() };
        let is_directory = entry.kind == EntryKind::Plain(Kind::Directory);
        let old = tree::find(dir.as_fd(), name)?;
        let stays = is_directory && old.is_some_and(|info| info.kind == Kind::Directory);
        if old.is_some() && !stays {
            tree::remove(dir.as_fd(), name)?;
            self.forget(&full);
        }
        if is_directory {
            if !stays {
                tree::make_dir(dir.as_fd(), name)?;
            }
            tree::set_xattrs(dir.as_fd(), name, &entry.xattrs)?;
            self.directories.insert(full, info);
            return Ok(None);
        }
        if entry.kind == EntryKind::HardLink {
            let (target, parents) = link.and_then(<[_]>::split_last).ok_or(io::ErrorKind::InvalidInput)?;
            let from = paths::open_dir(self.root.as_fd(), &paths::join(parents), Missing::Fail)?;
            rustix::fs::linkat(&from, &target[..], &dir, &name[..], AtFlags::empty())?;
            set_linked(dir.as_fd(), name, info)?;
            return Ok(None);
        }
        if entry.kind == EntryKind::Plain(Kind::Symlink) {
            // What was a way to one place may be a way to another now.
            self.last_parent = None;
        }
        Ok(Some((dir, name.clone())))
    }

    /// Gives the directories their attributes, the deepest first.
    pub fn finish(&self) -> io::Result<()> {
        for (path, info) in self.directories.iter().rev() {
            let place = paths::resolve(self.root.as_fd(), path, false, Missing::Fail)?;
            tree::set_attributes(place.dir.as_fd(), &place.name, info, &Xattrs::new())?;
        }
        Ok(())
    }

    fn open_parent(&mut self, parents: &[Vec<u8>]) -> io::Result<(Rc<OwnedFd>, Vec<u8>)> {
        if let Some((_, last)) = self.last_parent.as_ref().filter(|(names, _)| names == parents) {
            return Ok((Rc::clone(&last.dir), last.path.clone()));
        }
        let path = paths::join(parents);
        let dir = Rc::new(paths::open_dir(self.root.as_fd(), &path, Missing::Make(&Maker::new(0, 0, 0o755)))?);
        let path = paths::resolve(self.root.as_fd(), &path, true, Missing::Fail)?.path;
        let parent = Parent { dir: Rc::clone(&dir), path: path.clone() };
        self.last_parent = Some((parents.to_vec(), parent));
        Ok((dir, path))
    }

    /// What was at `path` is gone, with everything below it.
    fn forget(&mut self, path: &[u8]) {
        self.last_parent = None;
        let below = [path, b"/"].concat();
        self.directories.retain(|known, _| known != path && !known.starts_with(&below));
    }
}

/// The last entry of a file with several names says what it is, as in Docker. An owner that stays is not set: that would
/// cost the file its capabilities.
fn set_linked(dir: BorrowedFd<'_>, name: &[u8], info: Info) -> io::Result<()> {
    let now = tree::find(dir, name)?.ok_or(io::ErrorKind::NotFound)?;
    if (now.uid, now.gid) != (info.uid, info.gid) {
        return tree::set_attributes(dir, name, &Info { kind: now.kind, ..info }, &Xattrs::new());
    }
    if now.kind != Kind::Symlink && now.mode != info.mode {
        rustix::fs::chmodat(dir, name, rustix::fs::Mode::from_raw_mode(info.mode), AtFlags::empty())?;
    }
    tree::set_mtime(dir, name, info.mtime)
}
