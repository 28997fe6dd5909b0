//! The operations by name: each request checked, its layers reserved, its work done, its answer sent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use firebuild_protocol::{ErrorCode, FrameStream, FrameType, ProcessHost, TaskError};
use rustix::mount::{unmount, MountFlags, UnmountFlags};
use serde_json::{json, Value};

use crate::agents::Agents;
use crate::apply::{Applier, Totals};
use crate::archive::Archiver;
use crate::caches::Caches;
use crate::copy_tree::{copy_root_attributes, TreeCopier};
use crate::data::{DataReader, DataWriter};
use crate::layer_copy::{copy_from_tree, ContextCopier, Destination};
use crate::limits::Limits;
use crate::mounts::{make_dir, mount_ext4, unmount_patiently, Folders, Merged};
use crate::paths::{self, Missing};
use crate::registry::{NewLayer, Origin, Reading, Registry};
use crate::requests::{self, check_drive, check_layer, check_stack, parse};
use crate::run::{send_exit, Runner};
use crate::step_mounts::Mounter;
use crate::tar_read::TarReader;
use crate::tree::{self, Kind};

/// tree-stat answers in one frame.
const MAX_STAT_BYTES: u64 = 512 * 1024;
/// As much of a directory fits into one frame too, each byte of a name escaped.
const MAX_LISTED: usize = 1000;
const MAX_LISTED_BYTES: usize = 128 * 1024;
const MAX_TARGET: usize = 256;

/// Where a build machine has its things.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Mount point of the work disk; short, for it is in every overlay option.
    pub base: PathBuf,
    /// The folder of the drives' device files.
    pub devices: PathBuf,
    /// The program that calls [`crate::run_step`] when it is started with [`crate::STEP_ARGUMENT`].
    pub step_program: PathBuf,
    /// The machine's own resolver configuration, for the steps.
    pub resolv_conf: PathBuf,
    /// Where the control groups are mounted that limit the steps; None: nothing limits them.
    pub groups: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            base: PathBuf::from("/b"),
            devices: PathBuf::from("/dev"),
            step_program: PathBuf::from("/proc/self/exe"),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            groups: Some(PathBuf::from("/g")),
        }
    }
}

/// A build machine's layers and what can be done with them. Requests may run at once, each in a thread of its own.
#[derive(Debug)]
pub struct Builder {
    settings: Settings,
    folders: Folders,
    registry: Registry,
    caches: Caches,
    agents: Agents,
    limits: OnceLock<Limits>,
    is_set_up: Mutex<bool>,
}

impl Builder {
    pub fn new(settings: Settings) -> Self {
        let folders = Folders::new(settings.base.clone());
        let caches = Caches::new(settings.base.join("c"));
        let (registry, agents) = (Registry::default(), Agents::default());
        let (limits, is_set_up) = (OnceLock::new(), Mutex::new(false));
        Self { settings, folders, registry, caches, agents, limits, is_set_up }
    }

    /// Serves one request: all its frames but the REQUEST, which has been read. An error is still to be sent.
    pub fn handle(
        &self,
        op: &str,
        request: &Value,
        stream: &mut dyn FrameStream,
        host: &dyn ProcessHost,
    ) -> Result<(), TaskError> {
        if op == "build-setup" {
            return self.set_up(&parse(request)?, stream);
        }
        if !*self.is_set_up.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(TaskError::new(ErrorCode::BadRequest, "build-setup comes first"));
        }
        match op {
            "layer-mount" => self.layer_mount(&parse(request)?, stream),
            "layer-apply" => self.layer_apply(&parse(request)?, stream),
            "layer-run" => self.layer_run(&parse(request)?, stream, host),
            "ssh-accept" => self.agents.serve(&parse::<requests::SshAccept>(request)?.socket, stream),
            "layer-copy" => self.layer_copy(&parse(request)?, stream),
            "layer-capture" => self.layer_capture(&parse(request)?, stream),
            "layer-drop" => self.layer_drop(&parse(request)?, stream),
            "disk-apply" => self.disk_apply(&parse(request)?, stream),
            "disk-merge" => self.disk_merge(&parse(request)?, stream),
            "tree-export" => self.tree_export(&parse(request)?, stream),
            "tree-stat" => self.tree_stat(&parse(request)?, stream),
            _ => Err(TaskError::new(ErrorCode::UnsupportedOp, format!("no op {op:?}"))),
        }
    }

    /// Unmounts everything, when no request runs any more. What cannot be unmounted is let go and synced.
    pub fn shutdown(&self) {
        let mut is_set_up = self.is_set_up.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_set_up {
            return;
        }
        *is_set_up = false;
        self.caches.shutdown();
        for folder in ["m", "d", "t"] {
            let entries = std::fs::read_dir(self.folders.base().join(folder));
            for entry in entries.into_iter().flatten().flatten() {
                // Most of these are no mounts any more.
                let _ = unmount(entry.path(), UnmountFlags::DETACH);
            }
        }
        rustix::fs::sync();
        if unmount(self.folders.base(), UnmountFlags::empty()).is_err() {
            let _ = unmount(self.folders.base(), UnmountFlags::DETACH);
        }
    }

    fn device(&self, name: &str) -> Result<PathBuf, TaskError> {
        check_drive(name)?;
        let path = self.settings.devices.join(name);
        if !path.exists() {
            return Err(TaskError::new(ErrorCode::NotFound, format!("no drive {name}")));
        }
        Ok(path)
    }

    fn set_up(&self, request: &requests::Setup, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        let mut is_set_up = self.is_set_up.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_set_up {
            return Err(TaskError::new(ErrorCode::Exists, "build-setup was done"));
        }
        let device = self.device(&request.work)?;
        let limits = self.settings.groups.as_deref().map(Limits::set_up).transpose()?;
        let base = self.folders.base();
        let failed = |error: io::Error| TaskError::io(format!("setting up {}", request.work), &error);
        std::fs::create_dir_all(base).map_err(failed)?;
        // The disk does not outlive the machine: no barriers.
        mount_ext4(&device, base, MountFlags::NOATIME, Some("nobarrier")).map_err(failed)?;
        let prepared = self.folders.make().and_then(|()| Ok(rustix::fs::statvfs(base)?));
        let status = match prepared {
            Ok(status) => status,
            Err(error) => {
                let _ = unmount(base, UnmountFlags::DETACH);
                return Err(failed(error));
            }
        };
        // Set once: `is_set_up` was false.
        let _ = self.limits.set(limits.unwrap_or_default());
        *is_set_up = true;
        reply(stream, &json!({"free_bytes": status.f_bavail.saturating_mul(status.f_frsize)}))
    }

    fn layer_mount(&self, request: &requests::Mount, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        check_layer(&request.layer)?;
        let device = self.device(&request.drive)?;
        let layer = self.registry.create(&request.layer, Origin::Disk, None)?;
        self.folders.mount_layer_disk(layer.place, &device)?;
        layer.keep();
        reply(stream, &json!({}))
    }

    fn layer_apply(&self, request: &requests::Apply, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        let (layer, stack) = self.reserve(&request.layer, request.stack.as_deref())?;
        let totals = self.finish_layer(layer, |layer| {
            let path = self.folders.make_layer(layer.place, &stack.places)?;
            let lower = if stack.places.is_empty() { None } else { Some(self.open_stack(&stack)?) };
            let target = open(&path)?;
            let applier = Applier::new(target.as_fd(), lower.as_ref().map(|lower| lower.root.as_fd()));
            let mut archive = TarReader::new(DataReader::new(stream));
            let totals = applier.apply(&mut archive, |input, error| input.task_error("reading the archive", error))?;
            archive.into_inner().finish()?;
            Ok(totals)
        })?;
        reply_totals(stream, totals)
    }

    fn layer_run(
        &self,
        request: &requests::Run,
        stream: &mut dyn FrameStream,
        host: &dyn ProcessHost,
    ) -> Result<(), TaskError> {
        let (layer, stack) = self.reserve(&request.layer, Some(&request.stack))?;
        let runner = Runner {
            folders: &self.folders,
            program: &self.settings.step_program,
            resolv_conf: &self.settings.resolv_conf,
            groups: self.limits.get().map_or(&[], |limits| &limits.joined_by),
            host,
            mounter: Mounter {
                folders: &self.folders,
                registry: &self.registry,
                caches: &self.caches,
                agents: &self.agents,
                devices: &self.settings.devices,
            },
        };
        let scratch = self.registry.number();
        let exit = self.finish_layer(layer, |layer| runner.run(request, layer.place, &stack, scratch, stream))?;
        drop(stack);
        send_exit(stream, exit)
    }

    fn layer_copy(&self, request: &requests::Copy, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        let from = match (&request.from, &request.items) {
            (Some(from), None) => {
                check_stack(&from.stack)?;
                Some((self.registry.read(&from.stack)?, from))
            }
            (None, Some(_)) => None,
            _ => return Err(requests::bad("either items or from")),
        };
        let (layer, stack) = self.reserve(&request.layer, Some(&request.stack))?;
        let totals = self.finish_layer(layer, |layer| {
            let path = self.folders.make_layer(layer.place, &stack.places)?;
            // On nothing the layer is the tree: an overlay would mark its directories opaque, so that the layer
            // could lie on no other stack (COPY --link).
            let on_nothing = stack.places.is_empty();
            let merged = if on_nothing { None } else { Some(self.folders.mount_upper(layer.place, &stack.places)?) };
            let root = merged.as_ref().map_or_else(|| open(&path), Merged::open)?;
            let mut destination = Destination::new(request, root.as_fd())?;
            let totals = match (&from, &request.items) {
                (Some((reading, from)), _) => {
                    let source = self.open_stack(reading)?;
                    copy_from_tree(&mut destination, source.root.as_fd(), from)?
                }
                (None, items) => {
                    let copier = ContextCopier::new(&destination, items.as_deref().unwrap_or_default())?;
                    let mut archive = TarReader::new(DataReader::new(stream));
                    let failed =
                        |input: &mut DataReader<'_>, error: &io::Error| input.task_error("reading the archive", error);
                    let totals = copier.copy(&mut archive, failed)?;
                    archive.into_inner().finish()?;
                    totals
                }
            };
            drop(destination);
            drop(root);
            merged.map_or(Ok(()), Merged::close)?;
            Ok(totals)
        })?;
        reply_totals(stream, totals)
    }

    fn layer_capture(&self, request: &requests::Capture, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        check_layer(&request.layer)?;
        let layer = self.registry.read(std::slice::from_ref(&request.layer))?;
        let place = layer.places.first().copied();
        let place = place.ok_or_else(|| TaskError::new(ErrorCode::Internal, "no layer"))?;
        let root = open(&self.folders.layer(place))?;
        // What lies below counts for directories only: a layer without one needs no mount.
        let has_folders = has_directory(root.as_fd()).map_err(|error| TaskError::io("reading the layer", &error))?;
        let below = if has_folders { self.registry.read_lower(&request.layer)? } else { None };
        let lower = below.as_ref().map(|below| self.open_stack(below)).transpose()?;
        if let Some(newest_s) = request.mtime_max_s {
            tree::limit_times(root.as_fd(), newest_s, 0)
                .map_err(|error| TaskError::io("setting the times of the layer".to_owned(), &error))?;
        }
        let writer = DataWriter::new(stream);
        let lower = lower.as_ref().map(|lower| lower.root.as_fd());
        let status = rustix::fs::statvfs(self.folders.base())
            .map_err(|errno| TaskError::io("measuring the work disk", &errno.into()))?;
        let capacity = status.f_blocks.saturating_mul(status.f_frsize);
        let totals = send_archive(Archiver::for_layer(writer, lower, capacity), &root)?;
        reply_totals(stream, totals)
    }

    fn layer_drop(&self, request: &requests::Layer, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        check_layer(&request.layer)?;
        let layer = self.registry.take(&request.layer)?;
        let removed = match layer.place.origin {
            Origin::Work => self.folders.remove_layer(layer.place),
            Origin::Disk => self.folders.unmount_layer_disk(layer.place),
        };
        removed.map_err(|error| TaskError::io(format!("dropping layer {}", request.layer), &error))?;
        drop(layer);
        reply(stream, &json!({}))
    }

    fn disk_apply(&self, request: &requests::DiskApply, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        let totals = self.on_disk(&request.drive, |target| {
            let mut archive = TarReader::new(DataReader::new(stream));
            let applier = Applier::for_lowest(target);
            let totals = applier.apply(&mut archive, |input, error| input.task_error("reading the archive", error))?;
            archive.into_inner().finish()?;
            Ok(totals)
        })?;
        reply_totals(stream, totals)
    }

    fn disk_merge(&self, request: &requests::DiskMerge, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        check_stack(&request.stack)?;
        let stack = self.registry.read(&request.stack)?;
        if stack.places.iter().any(|place| place.origin == Origin::Disk) {
            return Err(requests::bad("a mounted disk cannot be merged"));
        }
        let totals = self.on_disk(&request.drive, |target| {
            let mut totals = Totals::default();
            for place in stack.places.iter().rev() {
                let layer = open(&self.folders.layer(*place))?;
                let mut copier = TreeCopier::for_layers(target);
                copier
                    .content(layer.as_fd(), target, b"", 0)
                    .and_then(|()| copy_root_attributes(layer.as_fd(), target))
                    .map_err(|error| TaskError::io(format!("writing {}", request.drive), &error))?;
                totals.add(copier.totals());
            }
            Ok(totals)
        })?;
        reply_totals(stream, totals)
    }

    /// Mounts a disk, works on its tree, syncs and unmounts it.
    fn on_disk(
        &self,
        drive: &str,
        work: impl FnOnce(BorrowedFd<'_>) -> Result<Totals, TaskError>,
    ) -> Result<Totals, TaskError> {
        let device = self.device(drive)?;
        let mount_point = self.folders.scratch(self.registry.number());
        make_dir(&mount_point)?;
        let failed = |error: io::Error| TaskError::io(format!("writing {drive}"), &error);
        mount_ext4(&device, &mount_point, MountFlags::NOATIME, None).map_err(failed)?;
        let done = tree::open_dir_at(&mount_point).map_err(failed).and_then(|target| {
            // mke2fs made it; no image has it.
            tree::remove(target.as_fd(), b"lost+found").map_err(failed)?;
            let totals = work(target.as_fd())?;
            rustix::fs::syncfs(&target).map_err(|error| failed(error.into()))?;
            Ok(totals)
        });
        let unmounted = unmount_patiently(&mount_point).map_err(io::Error::from);
        let _ = std::fs::remove_dir(&mount_point);
        let totals = done?;
        unmounted.map_err(failed)?;
        Ok(totals)
    }

    fn tree_export(&self, request: &requests::Export, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        check_stack(&request.stack)?;
        let stack = self.registry.read(&request.stack)?;
        let tree = self.open_stack(&stack)?;
        let totals = send_archive(Archiver::for_tree(DataWriter::new(stream)), &tree.root)?;
        reply_totals(stream, totals)
    }

    fn tree_stat(&self, request: &requests::Stat, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        check_stack(&request.stack)?;
        requests::check_text("path", &request.path)?;
        let stack = self.registry.read(&request.stack)?;
        let tree = self.open_stack(&stack)?;
        let root = tree.root.as_fd();
        let failed = |error: io::Error| TaskError::io(format!("reading {}", request.path), &error);
        let info = match paths::resolve(root, request.path.as_bytes(), true, Missing::Fail) {
            Ok(place) => place.info,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => None,
            Err(error) => return Err(failed(error)),
        };
        let Some(info) = info else {
            let missing = json!({"kind": "missing", "mode": 0, "uid": 0, "gid": 0, "size": 0, "content_base64": null});
            return reply(stream, &missing);
        };
        let wanted = request.read_bytes.min(MAX_STAT_BYTES);
        let content = if info.kind == Kind::File && wanted > 0 {
            paths::read_file(root, request.path.as_bytes(), wanted).map_err(failed)?
        } else {
            None
        };
        let mut answer = json!({
            "kind": kind_name(info.kind), "mode": info.mode, "uid": info.uid, "gid": info.gid, "size": info.size,
            "content_base64": content.map(|content| base64(&content)),
        });
        if info.kind == Kind::Directory && request.list_entries > 0 {
            let folder = paths::open_dir(root, request.path.as_bytes(), Missing::Fail).map_err(failed)?;
            let most = request.list_entries.min(MAX_LISTED);
            let entries = list_folder(folder.as_fd(), most).map_err(failed)?;
            if let Some(fields) = answer.as_object_mut() {
                fields.insert("entries".to_owned(), entries.into());
            }
        }
        reply(stream, &answer)
    }

    /// Checks and reserves a new layer's name and the stack below it.
    fn reserve(&self, name: &str, stack: Option<&[String]>) -> Result<(NewLayer, Reading), TaskError> {
        check_layer(name)?;
        check_stack(stack.unwrap_or_default())?;
        let reading = self.registry.read(stack.unwrap_or_default())?;
        Ok((self.registry.create(name, Origin::Work, stack)?, reading))
    }

    /// Does the work of making a layer; a layer whose work fails is removed.
    fn finish_layer<T>(
        &self,
        layer: NewLayer,
        work: impl FnOnce(&NewLayer) -> Result<T, TaskError>,
    ) -> Result<T, TaskError> {
        match work(&layer) {
            Ok(value) => {
                layer.keep();
                Ok(value)
            }
            Err(error) => {
                // What cannot be removed stays on the work disk, under a number that is not used again.
                let _ = self.folders.remove_layer(layer.place);
                Err(error)
            }
        }
    }

    fn open_stack(&self, stack: &Reading) -> Result<OpenTree, TaskError> {
        let merged = self.folders.mount_stack(&stack.places, self.registry.number())?;
        Ok(OpenTree { root: merged.open()?, _merged: merged })
    }
}

/// A mounted merged tree and its root; the root is closed before the mount goes.
struct OpenTree {
    root: OwnedFd,
    _merged: Merged,
}

fn has_directory(root: BorrowedFd<'_>) -> io::Result<bool> {
    for name in tree::names(root)? {
        if tree::find(root, &name)?.is_some_and(|info| info.kind == Kind::Directory) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        _ => "other",
    }
}

/// The first entries of a directory by their names, as tree-stat tells them.
fn list_folder(folder: BorrowedFd<'_>, most: usize) -> io::Result<Vec<Value>> {
    let mut names = tree::names(folder)?;
    names.sort();
    let mut entries = Vec::new();
    let mut bytes = 0;
    for name in names.into_iter().take(most) {
        let Some(info) = tree::find(folder, &name)? else { continue };
        let link = if info.kind == Kind::Symlink { Some(tree::read_symlink(folder, &name)?) } else { None };
        let target = link.map(|link| link.into_iter().take(MAX_TARGET).collect::<Vec<_>>());
        bytes += name.len() + target.as_ref().map_or(0, Vec::len);
        if bytes > MAX_LISTED_BYTES {
            break;
        }
        entries.push(json!({
            "name": String::from_utf8_lossy(&name), "kind": kind_name(info.kind), "mode": info.mode, "uid": info.uid,
            "gid": info.gid, "size": info.size,
            "target": target.map(|target| String::from_utf8_lossy(&target).into_owned()),
        }));
    }
    Ok(entries)
}

fn open(path: &Path) -> Result<OwnedFd, TaskError> {
    tree::open_dir_at(path).map_err(|error| TaskError::io(format!("opening {}", path.display()), &error))
}

fn send_archive(mut archiver: Archiver<'_, DataWriter<'_>>, root: &OwnedFd) -> Result<Totals, TaskError> {
    match archiver.write(root.as_fd()) {
        Ok(totals) => {
            archiver.into_inner().finish()?;
            Ok(totals)
        }
        Err(error) => match archiver.take_refusal() {
            Some(refusal) => Err(refusal),
            None => Err(archiver.get_mut().task_error("reading the tree", &error)),
        },
    }
}

fn reply(stream: &mut dyn FrameStream, value: &Value) -> Result<(), TaskError> {
    Ok(stream.write_frame(FrameType::Reply, value.to_string().as_bytes())?)
}

fn reply_totals(stream: &mut dyn FrameStream, totals: Totals) -> Result<(), TaskError> {
    reply(stream, &json!({"entries": totals.entries, "bytes": totals.bytes}))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for position in 0..4 {
            if position > chunk.len() {
                text.push('=');
                continue;
            }
            let index = usize::try_from(bits >> (18 - 6 * position) & 63).unwrap_or(0);
            text.push(char::from(ALPHABET.get(index).copied().unwrap_or(b'=')));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_vectors_of_the_rfc() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (plain, expected) in cases {
            assert_eq!(base64(plain.as_bytes()), expected);
        }
    }
}
