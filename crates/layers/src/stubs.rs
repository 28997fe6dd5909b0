//! Mount points and files that a step needs and its tree may lack: made before it, taken away after it without a trace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::Timespec;

use crate::paths::{self, Missing, Place};
use crate::tree::{self, Info, Kind};

/// A link to a link is followed so many times.
const MAX_LINKS: usize = 8;

/// What was made in a merged tree for the time of one step, in the order in which it was made.
#[derive(Default)]
pub struct Stubs {
    made: Vec<Made>,
    /// Directories that were there before something was made in them: path, time before and after.
    touched: Vec<Touched>,
}

struct Made {
    path: Vec<u8>,
    /// As it was left: one that the step has changed is the step's.
    info: Info,
}

struct Touched {
    path: Vec<u8>,
    before: Info,
    after: Timespec,
    in_upper_before: bool,
}

impl Stubs {
    /// Makes sure that there is a directory (or an empty file) at `path`, links followed inside the tree. Returns the
    /// path with links resolved; None if something else stands there.
    pub fn ensure(
        &mut self,
        root: BorrowedFd<'_>,
        upper: BorrowedFd<'_>,
        path: &str,
        kind: Kind,
    ) -> io::Result<Option<Vec<u8>>> {
        let place = self.open_place(root, upper, path.as_bytes(), 0)?;
        match place.info {
            Some(info) if info.kind == kind => return Ok(Some(place.path)),
            Some(_) => return Ok(None),
            None => {}
        }
        self.make(root, upper, &place, kind, b"")?;
        Ok(Some(place.path))
    }

    /// Puts a file with this content at `path`, over what is there: for the step's time it is that.
    pub fn replace(
        &mut self,
        root: BorrowedFd<'_>,
        upper: BorrowedFd<'_>,
        path: &str,
        content: &[u8],
    ) -> io::Result<()> {
        let place = self.open_place(root, upper, path.as_bytes(), 0)?;
        if place.info.is_some_and(|info| info.kind != Kind::File) {
            return Ok(());
        }
        self.make(root, upper, &place, Kind::File, content)
    }

    /// Where `path` leads; the parents that are missing on the way, those of a dangling link's target too, are made.
    fn open_place(
        &mut self,
        root: BorrowedFd<'_>,
        upper: BorrowedFd<'_>,
        path: &[u8],
        links: usize,
    ) -> io::Result<Place> {
        let parts = paths::split(path);
        for count in 1..parts.len() {
            let parent = paths::join(parts.get(..count).unwrap_or_default());
            if links <= MAX_LINKS && self.open_place(root, upper, &parent, links + 1)?.info.is_none() {
                let place = paths::resolve(root, &parent, true, Missing::Fail)?;
                self.make(root, upper, &place, Kind::Directory, b"")?;
            }
        }
        match paths::resolve(root, path, true, Missing::Fail) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && links < MAX_LINKS => {
                let link = paths::resolve(root, path, false, Missing::Fail)?;
                let target = tree::read_symlink(link.dir.as_fd(), &link.name)?;
                self.open_place(root, upper, &follow(&link.path, &target), links + 1)
            }
            result => result,
        }
    }

    fn make(
        &mut self,
        root: BorrowedFd<'_>,
        upper: BorrowedFd<'_>,
        place: &Place,
        kind: Kind,
        content: &[u8],
    ) -> io::Result<()> {
        let dir = place.dir.as_fd();
        let mut parent = paths::split(&place.path);
        parent.pop();
        let parent = paths::join(&parent);
        let watched = self.watch(root, upper, &parent)?;
        if kind == Kind::Directory {
            tree::make_dir(dir, &place.name)?;
        } else {
            tree::remove(dir, &place.name)?;
            io::Write::write_all(&mut tree::create_file(dir, &place.name, 0o644)?, content)?;
        }
        let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::chmodat(dir, &place.name[..], rustix::fs::Mode::from_raw_mode(mode), flags)?;
        for touched in self.touched.iter_mut().filter(|touched| watched.contains(&touched.path)) {
            // Read through the root: what was opened before a copy-up may show the directory below.
            let now = paths::resolve(root, &touched.path, true, Missing::Fail)?.info;
            touched.after = now.map_or(touched.after, |info| info.mtime);
        }
        if let Some(info) = find_raw(upper, &place.path)? {
            self.made.push(Made { path: place.path.clone(), info });
        }
        Ok(())
    }

    /// Remembers how a directory and its parents are before something is made in it: all of them may be copied up.
    /// Returns their paths.
    fn watch(&mut self, root: BorrowedFd<'_>, upper: BorrowedFd<'_>, dir: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let parts = paths::split(dir);
        let mut watched = Vec::new();
        for count in 0..=parts.len() {
            let path = paths::join(parts.get(..count).unwrap_or_default());
            watched.push(path.clone());
            let known = self.made.iter().any(|made| made.path == path)
                || self.touched.iter().any(|touched| touched.path == path);
            if known {
                continue;
            }
            if let Some(before) = paths::resolve(root, &path, true, Missing::Fail)?.info {
                let in_upper_before = find_raw(upper, &path)?.is_some();
                self.touched.push(Touched { path, before, after: before.mtime, in_upper_before });
            }
        }
        Ok(watched)
    }

    /// Takes everything away again that the step has left as it was. `upper` is the layer's own directory, which is no
    /// longer mounted as part of an overlay.
    pub fn remove(self, upper: BorrowedFd<'_>) -> io::Result<()> {
        let mut unchanged = vec![false; self.touched.len()];
        for (flag, touched) in unchanged.iter_mut().zip(&self.touched) {
            *flag = find_raw(upper, &touched.path)?.is_some_and(|info| same_time(info.mtime, touched.after));
        }
        for made in self.made.iter().rev() {
            let Some(now) = find_raw(upper, &made.path)? else {
                continue;
            };
            let same = now.kind == made.info.kind && now.identity == made.info.identity && same_owner(&now, &made.info);
            let untouched = match made.info.kind {
                // A directory's time changes when a stub in it goes; that it is empty is seen by removing it.
                Kind::Directory => same,
                _ => same && now.size == made.info.size && same_time(now.mtime, made.info.mtime),
            };
            if untouched {
                remove_raw(upper, &made.path, made.info.kind)?;
            }
        }
        for (touched, unchanged) in self.touched.iter().zip(unchanged).rev() {
            restore(upper, touched, unchanged)?;
        }
        Ok(())
    }
}

/// A directory that only the stubs have changed gets its time back, and leaves the layer if only they brought it there.
fn restore(upper: BorrowedFd<'_>, touched: &Touched, unchanged: bool) -> io::Result<()> {
    let Some(now) = find_raw(upper, &touched.path)? else {
        return Ok(());
    };
    if !unchanged {
        return Ok(());
    }
    with_parent(upper, &touched.path, |dir, name| {
        tree::set_mtime(dir, name, touched.before.mtime)?;
        let same = now.mode == touched.before.mode && same_owner(&now, &touched.before);
        if touched.in_upper_before || !same || touched.path.is_empty() {
            return Ok(());
        }
        // A new directory would be marked opaque; one that was copied up is not.
        let inner = tree::open_dir(dir, name)?;
        if tree::is_opaque(inner.as_fd()) || !tree::names(inner.as_fd())?.is_empty() {
            return Ok(());
        }
        tree::remove(dir, name)
    })
}

/// Where a link leads, as text: `at` is the link's own path without links on the way.
fn follow(at: &[u8], target: &[u8]) -> Vec<u8> {
    let mut parts = paths::split(at);
    parts.pop();
    if target.first() == Some(&b'/') {
        parts.clear();
    }
    for part in paths::split(target) {
        if part == b".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    paths::join(&parts)
}

fn same_owner(one: &Info, other: &Info) -> bool {
    one.uid == other.uid && one.gid == other.gid
}

fn same_time(one: Timespec, other: Timespec) -> bool {
    one.tv_sec == other.tv_sec && one.tv_nsec == other.tv_nsec
}

/// What the layer itself has at a path without links.
fn find_raw(upper: BorrowedFd<'_>, path: &[u8]) -> io::Result<Option<Info>> {
    match paths::resolve(upper, path, false, Missing::Fail) {
        Ok(place) => Ok(place.info),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove_raw(upper: BorrowedFd<'_>, path: &[u8], kind: Kind) -> io::Result<()> {
    with_parent(upper, path, |dir, name| {
        if kind == Kind::Directory && !tree::names(tree::open_dir(dir, name)?.as_fd())?.is_empty() {
            return Ok(());
        }
        tree::remove(dir, name)
    })
}

fn with_parent<T>(
    upper: BorrowedFd<'_>,
    path: &[u8],
    work: impl FnOnce(BorrowedFd<'_>, &[u8]) -> io::Result<T>,
) -> io::Result<T> {
    let place = paths::resolve(upper, path, false, Missing::Fail)?;
    let name: &[u8] = if place.name.is_empty() { b"." } else { &place.name };
    work(place.dir.as_fd(), name)
}
