//! The mounts of a step made ready in the machine: stacks and caches mounted, secrets put down, mount points made.

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use firebuild_protocol::{ErrorCode, FrameStream, TaskError};

use crate::agents::{Agents, OpenAgent};
use crate::caches::{self, Beginning, Caches};
use crate::data::DataReader;
use crate::mount_points::{MountPoint, Source};
use crate::mounts::{Folders, Merged};
use crate::paths::{self, Missing};
use crate::registry::{LayerPlace, Origin, Reading, Registry};
use crate::requests::{bad, check_drive, check_layer, check_stack, check_text, Seed, StepMount};
use crate::run::Scratch;
use crate::stubs::Stubs;
use crate::tree::Kind;

/// BuildKit's limit.
const MAX_SECRET_BYTES: u64 = 500 * 1024;
const MAX_MOUNTS: usize = 128;
/// What every step has anyway: mounts below them are made when these are there.
const ALWAYS: [&str; 3] = ["proc", "sys", "dev"];

/// What mounts are made of.
pub struct Mounter<'a> {
    pub folders: &'a Folders,
    pub registry: &'a Registry,
    pub caches: &'a Caches,
    pub agents: &'a Agents,
    /// The folder of the drives' device files.
    pub devices: &'a Path,
}

/// The mounts of one step, held for its time.
#[derive(Default)]
pub struct Prepared<'a> {
    pub points: Vec<MountPoint>,
    /// Variables that secrets go to.
    pub env: Vec<String>,
    trees: Vec<(Merged, Option<LayerPlace>)>,
    stacks: Vec<Reading>,
    caches: Vec<PathBuf>,
    agents: Vec<OpenAgent<'a>>,
}

/// Reads the secrets that follow a request, in the order of its mounts.
pub fn read_secrets(mounts: &[StepMount], stream: &mut dyn FrameStream) -> Result<VecDeque<Vec<u8>>, TaskError> {
    let mut secrets = VecDeque::new();
    for mount in mounts {
        if !matches!(mount, StepMount::Secret { .. }) {
            continue;
        }
        let mut reader = DataReader::new(stream);
        let mut content = Vec::new();
        let read = Read::take(&mut reader, MAX_SECRET_BYTES + 1).read_to_end(&mut content);
        if let Err(error) = read {
            return Err(reader.task_error("reading a secret", &error));
        }
        if u64::try_from(content.len()).unwrap_or(u64::MAX) > MAX_SECRET_BYTES {
            return Err(TaskError::new(ErrorCode::Limit, "a secret of more than 500 KiB"));
        }
        reader.finish()?;
        secrets.push_back(content);
    }
    Ok(secrets)
}

/// Checks what needs no file system.
pub fn check_mounts(mounts: &[StepMount]) -> Result<(), TaskError> {
    if mounts.len() > MAX_MOUNTS {
        return Err(TaskError::new(ErrorCode::Limit, format!("{} mounts", mounts.len())));
    }
    for mount in mounts {
        let target = match mount {
            StepMount::Bind { target, stack, source, .. } => {
                check_stack(stack)?;
                check_text("source", source)?;
                Some(target)
            }
            StepMount::Tmpfs { target, .. } => Some(target),
            StepMount::Cache { target, drive, seed, .. } => {
                check_drive(drive)?;
                if let Some(seed) = seed {
                    check_stack(&seed.stack)?;
                    check_text("source", &seed.source)?;
                }
                Some(target)
            }
            StepMount::Secret { target, env, .. } => {
                if target.is_none() && env.is_none() {
                    return Err(bad("a secret without a target and a variable"));
                }
                if env.as_deref().is_some_and(|name| name.is_empty() || name.contains(['=', '\0'])) {
                    return Err(bad("a secret's variable has no name"));
                }
                target.as_ref()
            }
            StepMount::Ssh { target, socket, .. } => {
                check_layer(socket)?;
                Some(target)
            }
        };
        if let Some(target) = target {
            check_text("target", target)?;
            let parts = paths::split(target.as_bytes());
            if !target.starts_with('/') || parts.is_empty() || parts.iter().any(|part| part == b"..") {
                return Err(bad(format!("the target {target:?} of a mount")));
            }
        }
    }
    Ok(())
}

impl<'a> Mounter<'a> {
    /// Makes all ready, in the order of the targets: one may lie inside another.
    pub fn prepare(
        &self,
        mounts: &[StepMount],
        mut secrets: VecDeque<Vec<u8>>,
        files: &Scratch,
        prepared: &mut Prepared<'a>,
    ) -> Result<(), TaskError> {
        for (index, mount) in mounts.iter().enumerate() {
            match mount {
                StepMount::Bind { target, stack, source, read_only } => {
                    let (path, is_directory) = self.open_source(stack, source, *read_only, prepared)?;
                    let source = Source::Bind { path, is_directory };
                    prepared.points.push(MountPoint { target: target.clone(), source, read_only: *read_only });
                }
                StepMount::Tmpfs { target, size_bytes, read_only } => {
                    let source = Source::Tmpfs { size_bytes: *size_bytes, fresh: false };
                    prepared.points.push(MountPoint { target: target.clone(), source, read_only: *read_only });
                }
                StepMount::Cache { target, drive, read_only, mode, uid, gid, seed, keep } => {
                    let empty = Beginning::Empty { mode: *mode, uid: *uid, gid: *gid };
                    let content = self.open_cache(drive, empty, seed.as_ref())?;
                    prepared.caches.push(content.clone());
                    let path = if *keep { content } else { self.cover(&content, prepared)? };
                    let source = Source::Bind { path, is_directory: true };
                    prepared.points.push(MountPoint { target: target.clone(), source, read_only: *read_only });
                }
                StepMount::Secret { target, env, mode, uid, gid } => {
                    let content = secrets.pop_front().unwrap_or_default();
                    if let Some(name) = env {
                        prepared.env.push(secret_variable(name, &content)?);
                    }
                    if let Some(target) = target {
                        let path = files.write_as(&format!("secret{index}"), &content, mode & 0o777, (*uid, *gid))?;
                        let source = Source::Secret { path, executable: mode & 0o111 != 0 };
                        prepared.points.push(MountPoint { target: target.clone(), source, read_only: true });
                    }
                }
                StepMount::Ssh { target, socket, mode, uid, gid } => {
                    let path = files.path(&format!("agent{index}"));
                    prepared.agents.push(self.agents.open(socket, &path, *mode, (*uid, *gid))?);
                    let source = Source::Bind { path, is_directory: false };
                    prepared.points.push(MountPoint { target: target.clone(), source, read_only: false });
                }
            }
        }
        prepared.points.sort_by(|one, other| one.target.cmp(&other.target));
        Ok(())
    }

    /// A path of a stack's tree on this machine, links followed inside it.
    fn open_source(
        &self,
        stack: &[String],
        source: &str,
        read_only: bool,
        prepared: &mut Prepared<'a>,
    ) -> Result<(PathBuf, bool), TaskError> {
        let reading = self.registry.read(stack)?;
        let number = self.registry.number();
        let (merged, upper) = if read_only {
            (self.folders.mount_stack(&reading.places, number)?, None)
        } else {
            let upper = LayerPlace { number, origin: Origin::Work };
            self.folders.make_layer(upper, &reading.places)?;
            (self.folders.mount_upper(upper, &reading.places)?, Some(upper))
        };
        let root = merged.open()?;
        let found = find_source(root.as_fd(), source);
        drop(root);
        let base = merged.path().to_owned();
        prepared.trees.push((merged, upper));
        prepared.stacks.push(reading);
        let (path, kind) = found?;
        Ok((base.join(path), kind == Kind::Directory))
    }

    /// A tree over a cache's content: what is written to it is lost with the step.
    fn cover(&self, content: &Path, prepared: &mut Prepared<'a>) -> Result<PathBuf, TaskError> {
        let upper = LayerPlace { number: self.registry.number(), origin: Origin::Work };
        let merged = self.folders.mount_cover(upper, content)?;
        let path = merged.path().to_owned();
        prepared.trees.push((merged, Some(upper)));
        Ok(path)
    }

    fn open_cache(&self, drive: &str, empty: Beginning, seed: Option<&Seed>) -> Result<PathBuf, TaskError> {
        let device = self.devices.join(drive);
        if !device.exists() {
            return Err(TaskError::new(ErrorCode::NotFound, format!("no drive {drive}")));
        }
        let Some(seed) = seed else {
            return self.caches.open(drive, &device, &empty);
        };
        let reading = self.registry.read(&seed.stack)?;
        let merged = self.folders.mount_stack(&reading.places, self.registry.number())?;
        let root = merged.open()?;
        let source = paths::open_dir(root.as_fd(), seed.source.as_bytes(), Missing::Fail)
            .map_err(|error| source_error(&seed.source, &error))?;
        drop(root);
        let beginning = Beginning::Copy { id: seed.id.clone(), source };
        let opened = self.caches.open(drive, &device, &beginning);
        drop(beginning);
        merged.close()?;
        opened
    }
}

impl Prepared<'_> {
    /// Makes the mount points that the tree lacks; those inside another mount are made when that is there.
    pub fn make_points(
        &mut self,
        root: BorrowedFd<'_>,
        upper: BorrowedFd<'_>,
        stubs: &mut Stubs,
    ) -> Result<(), TaskError> {
        let mut covered: Vec<Vec<Vec<u8>>> = ALWAYS.iter().map(|name| vec![name.as_bytes().to_vec()]).collect();
        for point in &mut self.points {
            let parts = paths::split(point.target.as_bytes());
            if covered.iter().any(|above| parts.starts_with(above)) {
                continue;
            }
            let kind = match &point.source {
                Source::Bind { is_directory: false, .. } | Source::Secret { .. } => Kind::File,
                _ => Kind::Directory,
            };
            let exists = paths::resolve(root, point.target.as_bytes(), true, Missing::Fail)
                .is_ok_and(|place| place.info.is_some());
            let made = stubs.ensure(root, upper, &point.target, kind);
            let made =
                made.map_err(|error| TaskError::io(format!("making the mount point {}", point.target), &error))?;
            let Some(resolved) = made else {
                let what = if kind == Kind::Directory { "directory" } else { "file" };
                let message = format!("{}: something else is where the mount needs a {what}", point.target);
                return Err(TaskError::new(ErrorCode::NotADirectory, message));
            };
            if let Source::Tmpfs { fresh, .. } = &mut point.source {
                *fresh = !exists;
            }
            covered.push(parts);
            covered.push(paths::split(&resolved));
        }
        Ok(())
    }

    /// Writes caches to their disks and lets go of everything.
    pub fn finish(self, folders: &Folders) -> Result<(), TaskError> {
        drop(self.agents);
        let mut result = Ok(());
        for cache in &self.caches {
            result = result.and(caches::sync(cache));
        }
        for (merged, upper) in self.trees {
            result = result.and(merged.close());
            if let Some(upper) = upper {
                // What cannot be removed stays on the work disk, under a number that is not used again.
                let _ = folders.remove_layer(upper);
            }
        }
        result
    }
}

fn find_source(root: BorrowedFd<'_>, source: &str) -> Result<(PathBuf, Kind), TaskError> {
    use std::os::unix::ffi::OsStrExt;
    let place = paths::resolve(root, source.as_bytes(), true, Missing::Fail);
    let place = place.map_err(|error| source_error(source, &error))?;
    match place.info.map(|info| info.kind) {
        Some(kind @ (Kind::Directory | Kind::File)) => {
            Ok((PathBuf::from(std::ffi::OsStr::from_bytes(&place.path)), kind))
        }
        Some(_) => Err(bad(format!("{source} is neither a file nor a directory"))),
        None => Err(TaskError::new(ErrorCode::NotFound, format!("{source}: not found"))),
    }
}

fn source_error(source: &str, error: &std::io::Error) -> TaskError {
    match error.raw_os_error() {
        Some(libc::ENOENT) => TaskError::new(ErrorCode::NotFound, format!("{source}: not found")),
        Some(libc::ENOTDIR) => TaskError::new(ErrorCode::NotADirectory, format!("{source}: not a directory")),
        _ => TaskError::io(format!("opening {source}"), error),
    }
}

fn secret_variable(name: &str, content: &[u8]) -> Result<String, TaskError> {
    match std::str::from_utf8(content) {
        Ok(text) if !text.contains('\0') => Ok(format!("{name}={text}")),
        // The content is not told.
        _ => Err(bad(format!("the secret for the variable {name} is not text"))),
    }
}
