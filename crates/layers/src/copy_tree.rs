//! Copies a tree into another: content with its holes, hard links, devices, attributes, times.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::apply::Totals;
use crate::modes::ModeChange;
use crate::tree::{self, Info, Kind, Xattrs};

const MAX_DEPTH: usize = 2048;

/// What is changed while copying.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// (uid, gid) of everything.
    pub owner: Option<(u32, u32)>,
    /// Modes of everything but links.
    pub mode: Option<ModeChange>,
}

impl Overrides {
    /// The attributes that the copy gets.
    pub fn apply(&self, info: &Info) -> Info {
        let (uid, gid) = self.owner.unwrap_or((info.uid, info.gid));
        let mode = self.mode.as_ref().map_or(info.mode, |change| change.apply(info.mode, info.kind));
        Info { uid, gid, mode, ..*info }
    }
}

pub struct TreeCopier<'a> {
    /// The directory that copies go into; names in `linked` are relative to it.
    root: BorrowedFd<'a>,
    overrides: Overrides,
    /// The source is a layer in overlayfs form that is carried out: whiteouts remove, anything replaces anything.
    carries_out: bool,
    totals: Totals,
    /// Where the first name of each file with several is in the copy. Paths, not descriptors: there may be many.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a> TreeCopier<'a> {
    pub fn new(root: BorrowedFd<'a>, overrides: Overrides) -> Self {
        Self { root, overrides, carries_out: false, totals: Totals::default(), linked: HashMap::new() }
    }

    /// A copier that changes nothing on the way.
    pub fn plain(root: BorrowedFd<'a>) -> Self {
        Self::new(root, Overrides::default())
    }

    /// A copier that carries layers in overlayfs form out on the tree at `root`.
    pub fn for_layers(root: BorrowedFd<'a>) -> Self {
        Self { carries_out: true, ..Self::new(root, Overrides::default()) }
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }

    pub fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// Counts an entry that was made without [`TreeCopier::entry`].
    pub fn count(&mut self) {
        self.totals.entries += 1;
    }

    /// Merges the content of `from` into `to`, which is the directory `prefix` (empty, or ending in a slash) of the root. What is there already is replaced, but a directory stays
    /// one: a directory over something else is ENOTDIR, anything else over a directory EISDIR.
    pub fn content(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, prefix: &[u8], depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG.into());
        }
        for name in tree::names(from)? {
            if let Some(info) = tree::find(from, &name)? {
                self.entry(Source { dir: from, name: &name, info: &info }, to, &[prefix, &name].concat(), depth)?;
            }
        }
        Ok(())
    }

    /// Copies an entry to `path` of the root, whose last component is made in `to`.
    pub fn entry(&mut self, source: Source<'_>, to: BorrowedFd<'_>, path: &[u8], depth: usize) -> io::Result<()> {
        let Source { dir: from, name, info } = source;
        let target = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let changed = self.overrides.apply(info);
        if self.carries_out && info.is_whiteout() {
            return tree::remove(to, target);
        }
        if info.kind == Kind::Directory {
            let inner = tree::open_dir(from, name)?;
            if self.carries_out {
                let old = tree::find(to, target)?;
                if tree::is_opaque(inner.as_fd()) || old.is_some_and(|old| old.kind != Kind::Directory) {
                    tree::remove(to, target)?;
                }
            }
            prepare_directory(to, target)?;
            let made = tree::open_dir(to, target)?;
            self.totals.entries += 1;
            self.content(inner.as_fd(), made.as_fd(), &[path, b"/"].concat(), depth + 1)?;
            // Last: filling it changes its time.
            return tree::set_attributes(to, target, &changed, &tree::xattrs_of(inner.as_fd())?);
        }
        if info.kind == Kind::Socket {
            return Ok(());
        }
        if self.carries_out {
            tree::remove(to, target)?;
        } else {
            make_room(to, target)?;
        }
        self.totals.entries += 1;
        if info.links > 1 {
            if let Some(first) = self.linked.get(&info.identity) {
                let flags = rustix::fs::AtFlags::empty();
                return Ok(rustix::fs::linkat(self.root, &first[..], to, target, flags)?);
            }
        }
        if info.kind == Kind::File {
            let mut source = tree::open_file(from, name)?;
            let mut copy = tree::create_file(to, target, changed.mode)?;
            copy_sparse(&mut source, &mut copy, info.size)?;
            self.totals.bytes += info.size;
            tree::set_file_attributes(&copy, &changed, &tree::xattrs_of(source.as_fd())?)?;
        } else {
            match info.kind {
                Kind::Symlink => tree::make_symlink(to, target, &tree::read_symlink(from, name)?)?,
                kind => tree::make_node(to, target, kind, info.rdev)?,
            }
            tree::set_attributes(to, target, &changed, &tree::xattrs(from, name)?)?;
        }
        if info.links > 1 {
            self.linked.insert(info.identity, path.to_vec());
        }
        Ok(())
    }
}

/// An entry to copy.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub dir: BorrowedFd<'a>,
    pub name: &'a [u8],
    pub info: &'a Info,
}

/// Copies the attributes of one open directory to another.
pub fn copy_root_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let info = tree::info_of(from)?;
    let xattrs: Xattrs = tree::xattrs_of(from)?;
    tree::set_attributes(to, b".", &info, &xattrs)
}

/// Makes the directory `name` unless it is one.
pub fn prepare_directory(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    match tree::find(dir, name)? {
        None => {
            tree::make_dir(dir, name)?;
            Ok(true)
        }
        Some(info) if info.kind == Kind::Directory => Ok(false),
        Some(_) => Err(Errno::NOTDIR.into()),
    }
}

/// Removes what stands at `name`, unless it is a directory.
pub fn make_room(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match tree::find(dir, name)? {
        None => Ok(()),
        Some(info) if info.kind == Kind::Directory => Err(Errno::ISDIR.into()),
        Some(_) => tree::remove(dir, name),
    }
}

/// Copies only the parts that hold data; the rest stays a hole.
fn copy_sparse(source: &mut File, copy: &mut File, size: u64) -> io::Result<()> {
    const SMALL: u64 = 64 * 1024;
    if size <= SMALL {
        // Not worth looking for holes.
        let mut content = Vec::new();
        Read::take(source, size).read_to_end(&mut content)?;
        io::Write::write_all(copy, &content)?;
        if u64::try_from(content.len()).unwrap_or(0) < size {
            copy.set_len(size)?;
        }
        return Ok(());
    }
    let (mut position, mut written) = (0, 0);
    while position < size {
        let start = match rustix::fs::seek(source.as_fd(), rustix::fs::SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // A file system without holes: all of it is data.
            Err(_) => position,
        };
        let end = rustix::fs::seek(source.as_fd(), rustix::fs::SeekFrom::Hole(start)).unwrap_or(size);
        source.seek(SeekFrom::Start(start))?;
        copy.seek(SeekFrom::Start(start))?;
        let length = end.saturating_sub(start);
        let copied = io::copy(&mut Read::take(&mut *source, length), copy)?;
        if copied == 0 {
            break;
        }
        position = end;
        written = start.saturating_add(copied);
    }
    // A hole at the end. Not otherwise: even a truncation that changes nothing costs a transaction.
    if written < size {
        copy.set_len(size)?;
    }
    Ok(())
}
