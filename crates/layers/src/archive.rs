//! A tree becomes a tar archive: a layer with its whiteouts (layer-capture), or a merged tree (tree-export).

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use firebuild_protocol::{ErrorCode, TaskError};

use crate::apply::{Totals, OPAQUE_MARK, WHITEOUT};
use crate::tar_write::{Header, TarWriter};
use crate::tree::{self, Info, Kind, Xattrs, MAX_DEPTH};

/// Writes one tree as an archive, its entries sorted by name within each directory, each directory before its content.
pub struct Archiver<'a, W: Write> {
    output: TarWriter<W>,
    /// For a layer: the merged tree below it. A directory is marked opaque only if there is one that it hides.
    lower: Option<BorrowedFd<'a>>,
    is_layer: bool,
    totals: Totals,
    /// How many bytes its files may have together.
    most_bytes: u64,
    /// Why the tree cannot be written, where it is not the kernel that says so.
    refusal: Option<TaskError>,
    /// The first name of each file that has several.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a, W: Write> Archiver<'a, W> {
    /// For a layer's own directory, with whiteouts. Its files may have `most_bytes` together: an archive holds the holes
    /// of a file too, so that one that takes no room on the disk could be written for days.
    pub fn for_layer(output: W, lower: Option<BorrowedFd<'a>>, most_bytes: u64) -> Self {
        Self { most_bytes, ..Self::new(output, lower, true) }
    }

    /// For a tree as it is.
    pub fn for_tree(output: W) -> Self {
        Self::new(output, None, false)
    }

    fn new(output: W, lower: Option<BorrowedFd<'a>>, is_layer: bool) -> Self {
        Self {
            output: TarWriter::new(output),
            lower,
            is_layer,
            totals: Totals::default(),
            most_bytes: u64::MAX,
            refusal: None,
            linked: HashMap::new(),
        }
    }

    pub fn get_mut(&mut self) -> &mut W {
        self.output.get_mut()
    }

    /// What an error of [`Archiver::write`] was, if the tree was refused.
    pub fn take_refusal(&mut self) -> Option<TaskError> {
        self.refusal.take()
    }

    fn refuse<T>(&mut self, code: ErrorCode, message: String) -> io::Result<T> {
        self.refusal = Some(TaskError::new(code, message));
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Writes all below `root` (not the root itself) and the end of the archive.
    pub fn write(&mut self, root: BorrowedFd<'_>) -> io::Result<Totals> {
        self.directory(root, &[], self.lower, 0)?;
        self.output.finish()?;
        self.output.get_mut().flush()?;
        Ok(self.totals)
    }

    pub fn into_inner(self) -> W {
        self.output.into_inner()
    }

    fn directory(
        &mut self,
        dir: BorrowedFd<'_>,
        prefix: &[u8],
        lower: Option<BorrowedFd<'_>>,
        depth: usize,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        // By the names that stand in the archive, of which a whiteout's is not the one in the directory.
        let mut entries = Vec::new();
        for name in tree::names(dir)? {
            if let Some(info) = tree::find(dir, &name)? {
                let is_mark = self.is_layer && info.is_whiteout();
                let shown = if is_mark { [WHITEOUT, &name].concat() } else { name.clone() };
                entries.push((shown, name, info, is_mark));
            }
        }
        entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        for (shown, name, info, is_mark) in entries {
            let path = [prefix, &shown].concat();
            if self.is_layer && !is_mark && name.starts_with(WHITEOUT) {
                let name = String::from_utf8_lossy(&path).into_owned();
                let message = format!("{name}: in a layer a name that begins with .wh. means a deletion");
                return self.refuse(ErrorCode::BadArchive, message);
            }
            if is_mark {
                self.mark(&path)?;
            } else if info.kind == Kind::Directory {
                let inner = tree::open_dir(dir, &name)?;
                let path = [&path[..], b"/"].concat();
                let xattrs = tree::xattrs_of(inner.as_fd())?;
                self.entry(&path, &info, b"", &xattrs)?;
                let lower = self.lower_directory(lower, &name)?;
                let opaque = self.is_layer && tree::is_opaque(inner.as_fd());
                if opaque && (lower.is_some() || self.lower.is_none()) {
                    self.mark(&[&path[..], OPAQUE_MARK].concat())?;
                }
                // Nothing below an opaque directory can hide anything.
                let lower = lower.filter(|_| !opaque);
                self.directory(inner.as_fd(), &path, lower.as_ref().map(|fd| fd.as_fd()), depth + 1)?;
            } else {
                self.leaf(dir, &name, &path, &info)?;
            }
        }
        Ok(())
    }

    fn lower_directory(&self, lower: Option<BorrowedFd<'_>>, name: &[u8]) -> io::Result<Option<std::os::fd::OwnedFd>> {
        match lower {
            Some(lower) => match tree::find(lower, name)? {
                Some(info) if info.kind == Kind::Directory => Ok(Some(tree::open_dir(lower, name)?)),
                _ => Ok(None),
            },
            None => Ok(None),
        }
    }

    fn leaf(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], info: &Info) -> io::Result<()> {
        if info.kind == Kind::Socket {
            // A socket is nothing without the process that made it; tar has no form for it.
            return Ok(());
        }
        if info.links > 1 {
            if let Some(first) = self.linked.get(&info.identity) {
                let first = first.clone();
                return self.hard_link(path, info, &first);
            }
            self.linked.insert(info.identity, path.to_vec());
        }
        match info.kind {
            Kind::File => {
                let mut file = tree::open_file(dir, name)?;
                let xattrs = tree::xattrs_of(file.as_fd())?;
                self.totals.entries += 1;
                self.totals.bytes = self.totals.bytes.saturating_add(info.size);
                if self.totals.bytes > self.most_bytes {
                    let name = String::from_utf8_lossy(path).into_owned();
                    let message = format!("/{name} has {} bytes, with its holes", info.size);
                    return self.refuse(ErrorCode::NoSpace, message);
                }
                let header = header(path, info, b"", &xattrs);
                self.output.append_file(&header, &mut file)
            }
            Kind::Symlink => {
                let target = tree::read_symlink(dir, name)?;
                self.entry(path, info, &target, &tree::xattrs(dir, name)?)
            }
            _ => self.entry(path, info, b"", &tree::xattrs(dir, name)?),
        }
    }

    fn entry(&mut self, path: &[u8], info: &Info, link: &[u8], xattrs: &Xattrs) -> io::Result<()> {
        self.totals.entries += 1;
        self.output.append(&header(path, info, link, xattrs))
    }

    fn hard_link(&mut self, path: &[u8], info: &Info, first: &[u8]) -> io::Result<()> {
        self.totals.entries += 1;
        let none = Vec::new();
        let header = Header { hard_link: true, size: 0, ..header(path, info, first, &none) };
        self.output.append(&header)
    }

    /// An empty file with a name that means something. It has no time: when something was deleted is not of the image.
    fn mark(&mut self, path: &[u8]) -> io::Result<()> {
        self.totals.entries += 1;
        let none = Vec::new();
        self.output.append(&Header {
            path,
            kind: Kind::File,
            link: b"",
            hard_link: false,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            device: 0,
            xattrs: &none,
        })
    }
}

fn header<'a>(path: &'a [u8], info: &Info, link: &'a [u8], xattrs: &'a Xattrs) -> Header<'a> {
    Header {
        path,
        kind: info.kind,
        link,
        hard_link: false,
        mode: info.mode,
        uid: info.uid,
        gid: info.gid,
        size: info.size,
        mtime: info.mtime.tv_sec,
        device: info.rdev,
        xattrs,
    }
}
