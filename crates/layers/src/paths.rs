//! Paths inside a tree: split into components, resolved with every link followed inside the tree and never out of it.
//!
//! The trees are private mounts that nobody else changes meanwhile, so walking them step by step is free of races.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, Timespec};
use rustix::io::Errno;

use crate::tree::{self, Info, Kind};

/// As the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The components of a path; `.` and empty ones are dropped, `..` is kept.
pub fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

/// Components joined by slashes.
pub fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.join(&b'/')
}

/// Where a path leads: a directory that exists, and a name in it (empty: the tree's root itself).
pub struct Place {
    pub dir: OwnedFd,
    pub name: Vec<u8>,
    /// The whole path with all links resolved, without a leading slash.
    pub path: Vec<u8>,
    /// What stands there now; never a link unless it was asked not to be followed.
    pub info: Option<Info>,
}

/// What to do with the parts of a path that are not there.
#[derive(Clone, Copy)]
pub enum Missing<'a> {
    /// A missing parent is ENOENT.
    Fail,
    /// Missing parents are made.
    Make(&'a Maker),
}

/// Makes missing directories, and remembers what it has changed.
#[derive(Debug)]
pub struct Maker {
    uid: u32,
    gid: u32,
    mode: u32,
    touched: RefCell<Vec<OwnedFd>>,
}

impl Maker {
    pub fn new(uid: u32, gid: u32, mode: u32) -> Self {
        Self { uid, gid, mode, touched: RefCell::default() }
    }

    /// Makes the directory `name` of `dir`.
    pub fn make(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        tree::make_dir(dir, name)?;
        tree::set_owner(dir, name, self.uid, self.gid)?;
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        self.touch(dir)?;
        self.touched.borrow_mut().push(tree::open_dir(dir, name)?);
        Ok(())
    }

    /// Remembers a directory in which something is made.
    pub fn touch(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        self.touched.borrow_mut().push(dir.try_clone_to_owned()?);
        Ok(())
    }

    /// Gives all that was remembered this time.
    pub fn set_times(&self, mtime: Timespec) -> io::Result<()> {
        self.touched.borrow().iter().try_for_each(|dir| tree::set_mtime(dir.as_fd(), b".", mtime))
    }
}

/// Resolves `path` inside the tree of `root`, the last component's link too if `follow_last`.
///
/// Errors: ENOENT (a missing parent), ENOTDIR, ELOOP, or what the file system says.
pub fn resolve(root: BorrowedFd<'_>, path: &[u8], follow_last: bool, missing: Missing<'_>) -> io::Result<Place> {
    let mut todo: Vec<Vec<u8>> = split(path);
    todo.reverse();
    let mut opened: Vec<(Vec<u8>, OwnedFd)> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == b".." {
            opened.pop();
            continue;
        }
        let dir = opened.last().map_or(root, |(_, fd)| fd.as_fd());
        let info = tree::find(dir, &name)?;
        let last = todo.is_empty();
        match info.map(|info| info.kind) {
            Some(Kind::Symlink) if !last || follow_last => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = tree::read_symlink(dir, &name)?;
                if target.first() == Some(&b'/') {
                    opened.clear();
                }
                let mut parts = split(&target);
                parts.reverse();
                todo.append(&mut parts);
            }
            _ if last => return place(root, &opened, name, info),
            Some(Kind::Directory) => {
                let fd = tree::open_dir(dir, &name)?;
                opened.push((name, fd));
            }
            Some(_) => return Err(Errno::NOTDIR.into()),
            None => {
                let Missing::Make(maker) = missing else {
                    return Err(Errno::NOENT.into());
                };
                maker.make(dir, &name)?;
                let fd = tree::open_dir(dir, &name)?;
                opened.push((name, fd));
            }
        }
    }
    // The path was the root, or ended in "..", or in a link to one of these.
    match opened.pop() {
        Some((name, fd)) => {
            let info = tree::info_of(fd.as_fd())?;
            place(root, &opened, name, Some(info))
        }
        None => Ok(Place {
            dir: root.try_clone_to_owned()?,
            name: Vec::new(),
            path: Vec::new(),
            info: Some(tree::info_of(root)?),
        }),
    }
}

/// Opens the directory at `path`, links followed, made with its parents if it is missing and `missing` says so.
pub fn open_dir(root: BorrowedFd<'_>, path: &[u8], missing: Missing<'_>) -> io::Result<OwnedFd> {
    let place = resolve(root, path, true, missing)?;
    if place.name.is_empty() {
        return Ok(place.dir);
    }
    if place.info.is_none() {
        let Missing::Make(maker) = missing else {
            return Err(Errno::NOENT.into());
        };
        maker.make(place.dir.as_fd(), &place.name)?;
    }
    tree::open_dir(place.dir.as_fd(), &place.name)
}

/// The content of the file at `path`, at most `limit` bytes of it; None if there is no such file.
pub fn read_file(root: BorrowedFd<'_>, path: &[u8], limit: u64) -> io::Result<Option<Vec<u8>>> {
    let place = match resolve(root, path, true, Missing::Fail) {
        Ok(place) => place,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if place.info.map(|info| info.kind) != Some(Kind::File) {
        return Ok(None);
    }
    let file = tree::open_file(place.dir.as_fd(), &place.name)?;
    let mut content = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, limit), &mut content)?;
    Ok(Some(content))
}

fn place(root: BorrowedFd<'_>, opened: &[(Vec<u8>, OwnedFd)], name: Vec<u8>, info: Option<Info>) -> io::Result<Place> {
    let dir = opened.last().map_or(root, |(_, fd)| fd.as_fd()).try_clone_to_owned()?;
    let mut parts: Vec<Vec<u8>> = opened.iter().map(|(name, _)| name.clone()).collect();
    parts.push(name.clone());
    Ok(Place { dir, name, path: join(&parts), info })
}
