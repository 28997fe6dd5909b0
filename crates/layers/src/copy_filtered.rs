//! A part of a tree copied into another: what patterns include and others do not exclude, with the directories above it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::copy_tree::{prepare_directory, Source, TreeCopier};
use crate::filter::{Matches, Rules};
use crate::tree::{self, Info, Kind};

const MAX_DEPTH: usize = 2048;

/// What is copied of a directory: all that `include` matches (without it, all) and `exclude` does not.
pub struct Filter<'a> {
    pub include: Option<&'a Rules>,
    pub exclude: Option<&'a Rules>,
}

/// A directory on the way down. Its copy is made when something in it is copied, or when it is itself included.
struct Level {
    name: Vec<u8>,
    source: OwnedFd,
    info: Info,
    copy: Option<OwnedFd>,
    /// It takes the source's attributes: always if it was included, else only if it was made for what is in it.
    takes_attributes: bool,
    include: Matches,
    exclude: Matches,
}

/// Copies the content of `from` into `to`, which is the root of the copier. Returns how many entries were included.
pub fn copy_filtered(
    copier: &mut TreeCopier<'_>,
    filter: &Filter<'_>,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
) -> io::Result<u64> {
    let top = Level {
        name: Vec::new(),
        source: from.try_clone_to_owned()?,
        info: tree::info_of(from)?,
        copy: Some(to.try_clone_to_owned()?),
        takes_attributes: false,
        include: Matches::default(),
        exclude: Matches::default(),
    };
    let mut walk = Walk { copier, filter, levels: vec![top], included: 0 };
    walk.content()?;
    Ok(walk.included)
}

struct Walk<'a, 'b> {
    copier: &'a mut TreeCopier<'b>,
    filter: &'a Filter<'a>,
    levels: Vec<Level>,
    included: u64,
}

impl Walk<'_, '_> {
    /// The content of the last level.
    fn content(&mut self) -> io::Result<()> {
        if self.levels.len() > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG.into());
        }
        let Some(level) = self.levels.last() else {
            return Ok(());
        };
        let source = level.source.try_clone()?;
        for name in tree::names(source.as_fd())? {
            if let Some(info) = tree::find(source.as_fd(), &name)? {
                self.entry(source.as_fd(), &name, &info)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, source: BorrowedFd<'_>, name: &[u8], info: &Info) -> io::Result<()> {
        let path = self.path(name);
        let text = String::from_utf8_lossy(&path).into_owned();
        let (mut above_include, mut above_exclude) = (Matches::default(), Matches::default());
        if let Some(level) = self.levels.last() {
            above_include.clone_from(&level.include);
            above_exclude.clone_from(&level.exclude);
        }
        let (included, include) =
            self.filter.include.map_or((true, above_include.clone()), |rules| rules.check(&text, &above_include));
        let (excluded, exclude) =
            self.filter.exclude.map_or((false, above_exclude.clone()), |rules| rules.check(&text, &above_exclude));
        let wanted = included && !excluded;
        if info.kind != Kind::Directory {
            if !wanted {
                return Ok(());
            }
            self.included += 1;
            let dir = self.copies()?;
            return self.copier.entry(Source { dir: source, name, info }, dir.as_fd(), &path, 0);
        }
        if excluded && !self.filter.exclude.is_some_and(Rules::has_exceptions) {
            return Ok(());
        }
        self.levels.push(Level {
            name: name.to_vec(),
            source: tree::open_dir(source, name)?,
            info: *info,
            copy: None,
            takes_attributes: wanted,
            include,
            exclude,
        });
        if wanted {
            self.included += 1;
            self.copies()?;
        }
        self.content()?;
        let Some(level) = self.levels.pop() else {
            return Ok(());
        };
        if let (Some(copy), true) = (level.copy, level.takes_attributes) {
            // Last: filling it changes its time.
            let changed = self.copier.overrides().apply(&level.info);
            tree::set_attributes(copy.as_fd(), b".", &changed, &tree::xattrs_of(level.source.as_fd())?)?;
        }
        Ok(())
    }

    fn path(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::new();
        for level in self.levels.iter().skip(1) {
            path.extend_from_slice(&level.name);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// The copy of the last level's directory; those above it are made too.
    fn copies(&mut self) -> io::Result<OwnedFd> {
        let mut above: Option<OwnedFd> = None;
        for level in &mut self.levels {
            let copy = match (&level.copy, &above) {
                (Some(copy), _) => copy.try_clone()?,
                (None, Some(above)) => {
                    if prepare_directory(above.as_fd(), &level.name)? {
                        level.takes_attributes = true;
                    }
                    self.copier.count();
                    let made = tree::open_dir(above.as_fd(), &level.name)?;
                    level.copy = Some(made.try_clone()?);
                    made
                }
                (None, None) => return Err(Errno::NOENT.into()),
            };
            above = Some(copy);
        }
        above.ok_or_else(|| Errno::NOENT.into())
    }
}
