//! layer-run: a step's process on a stack, and the new layer that it leaves.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use firebuild_protocol::users::{self, Identity};
use firebuild_protocol::{ErrorCode, FrameStream, FrameType, ProcessExit, ProcessHost, SessionOptions, TaskError};

use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};

use crate::mounts::Folders;
use crate::paths::{self, Maker, Missing};
use crate::registry::{LayerPlace, Reading};
use crate::requests::{bad, check_text, Network, Run};
use crate::step::{Outcome, Spec};
use crate::step_mounts::{check_mounts, read_secrets, Mounter, Prepared};
use crate::stubs::Stubs;
use crate::tree::{self, Kind};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MAX_USERS_FILE: u64 = 4 << 20;
/// A process that is killed in the kernel's middle of something may take a moment to go.
const KILLED_TIME: Duration = Duration::from_secs(10);
/// Where distributions keep the bundle of certificate authorities: Debian and Alpine, Fedora, SUSE, Alpine and BSD.
const CA_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What a step runs with beside its request.
pub struct Runner<'a> {
    pub folders: &'a Folders,
    /// The program that is started with `layer-step FILE`, and becomes the step.
    pub program: &'a Path,
    /// The machine's own resolver configuration.
    pub resolv_conf: &'a Path,
    /// The control groups that the step joins, by their files.
    pub groups: &'a [PathBuf],
    pub host: &'a dyn ProcessHost,
    pub mounter: Mounter<'a>,
}

impl<'a> Runner<'a> {
    /// Runs the step in the new layer; its EXIT is not sent yet.
    pub fn run(
        &self,
        request: &Run,
        layer: LayerPlace,
        stack: &Reading,
        scratch: u32,
        stream: &mut dyn FrameStream,
    ) -> Result<ProcessExit, TaskError> {
        check(request)?;
        let secrets = read_secrets(&request.mounts, stream)?;
        let upper_path = self.folders.make_layer(layer, &stack.places)?;
        let merged = self.folders.mount_upper(layer, &stack.places)?;
        let root = merged.open()?;
        let upper = tree::open_dir_at(&upper_path).map_err(|error| TaskError::io("opening the layer", &error))?;
        let files = Scratch::new(self.folders.scratch(scratch))?;
        let mut stubs = Stubs::default();
        let mut mounts = Prepared::default();
        let place = Place { root: root.as_fd(), upper: upper.as_fd(), files: &files, path: merged.path() };
        let prepared = self.prepare(request, &place, secrets, &mut stubs, &mut mounts);
        drop(root);
        let exit = prepared.and_then(|()| self.start(request, &files, stream));
        // The layer is put in order whatever became of the step: it may be looked at.
        let finished = mounts.finish(self.folders);
        let closed = merged.close();
        let cleaned = stubs.remove(upper.as_fd()).map_err(|error| TaskError::io("removing mount points", &error));
        let exit = exit?;
        finished?;
        closed?;
        cleaned?;
        Ok(exit)
    }

    fn prepare(
        &self,
        request: &Run,
        place: &Place<'_>,
        secrets: VecDeque<Vec<u8>>,
        stubs: &mut Stubs,
        mounts: &mut Prepared<'a>,
    ) -> Result<(), TaskError> {
        let Place { root, upper, files, path: merged } = *place;
        let identity = find_user(root, &request.user)?;
        let workdir = ensure_workdir(root, &request.workdir)?;
        self.mounter.prepare(&request.mounts, secrets, files, mounts)?;
        let env = environment(request, &identity, &mounts.env);
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| TaskError::io(what, &error)
        };
        for path in ["/proc", "/sys", "/dev"] {
            let made = stubs.ensure(root, upper, path, Kind::Directory).map_err(failed(path))?;
            // A link there would have the mount elsewhere than the step looks for it.
            if made.as_deref() != Some(path.trim_start_matches('/').as_bytes()) {
                return Err(TaskError::new(ErrorCode::NotADirectory, format!("{path} is not a directory")));
            }
        }
        let mut binds = Vec::new();
        for (path, name, content) in [
            ("/etc/resolv.conf", "resolv.conf", std::fs::read(self.resolv_conf).unwrap_or_default()),
            ("/etc/hosts", "hosts", hosts(&request.hostname).into_bytes()),
        ] {
            let source = files.write(name, &content)?;
            let target = stubs.ensure(root, upper, path, Kind::File).map_err(failed(path))?;
            if let Some(target) = target.and_then(|target| String::from_utf8(target).ok()) {
                binds.push((source, target));
            }
        }
        if let Some(bundle) = &request.ca_bundle {
            place_bundle(root, upper, stubs, bundle)?;
        }
        mounts.make_points(root, upper, stubs)?;
        // Where there are mounts it may lie in one of them: then it is looked for when they are there.
        let program =
            if mounts.points.is_empty() { Some(find_program(root, &request.argv, &env, &workdir)?) } else { None };
        let spec = Spec {
            root: merged.to_owned(),
            outcome: files.path("outcome"),
            joins: self.groups.to_vec(),
            binds,
            mounts: std::mem::take(&mut mounts.points),
            program,
            argv: request.argv.clone(),
            env,
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups,
            workdir,
            hostname: request.hostname.clone(),
            own_network: request.network == Network::None,
            terminal: request.tty,
        };
        let text = serde_json::to_vec(&spec).map_err(|error| TaskError::new(ErrorCode::Internal, error.to_string()))?;
        files.write("spec", &text)?;
        Ok(())
    }

    fn start(&self, request: &Run, files: &Scratch, stream: &mut dyn FrameStream) -> Result<ProcessExit, TaskError> {
        let mut command = Command::new(self.program);
        command.arg("layer-step").arg(files.path("spec")).env_clear().current_dir("/");
        let terminal = request.tty.then_some((request.rows, request.cols));
        let options = SessionOptions { terminal, stdin: request.stdin };
        let result = self.host.run_session(command, options, stream);
        let outcomes = read_outcomes(&files.path("outcome"));
        let ended = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Exit { .. }));
        if !ended {
            // The outer process was killed: its init follows it, but a moment later.
            for outcome in &outcomes {
                if let Outcome::Started { pid } = outcome {
                    wait_until_gone(*pid);
                }
            }
        }
        let exit = result?;
        for outcome in outcomes {
            match outcome {
                Outcome::Exit { code, signal } => return Ok(ProcessExit { code, signal }),
                Outcome::Error { message } => {
                    return Err(TaskError::new(ErrorCode::Internal, format!("preparing the step: {message}")));
                }
                Outcome::Started { .. } => {}
            }
        }
        // No word from inside: what the outer process says is all there is.
        Ok(exit)
    }
}

/// Where a step is prepared: its merged tree, its layer alone, its private files.
struct Place<'a> {
    root: BorrowedFd<'a>,
    upper: BorrowedFd<'a>,
    files: &'a Scratch,
    path: &'a Path,
}

fn check(request: &Run) -> Result<(), TaskError> {
    if request.argv.is_empty() {
        return Err(bad("argv is empty"));
    }
    check_mounts(&request.mounts)?;
    for text in request.argv.iter().chain(&request.env).chain([&request.workdir, &request.hostname]) {
        check_text("a text of the request", text)?;
    }
    if request.env.iter().any(|entry| entry.find('=').map_or(true, |at| at == 0)) {
        return Err(bad("an entry of env is not NAME=VALUE"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if request.hostname.is_empty() || request.hostname.len() > 64 || !request.hostname.bytes().all(plain) {
        return Err(bad("a bad hostname"));
    }
    Ok(())
}

/// The user in the tree's own passwd and group.
pub fn find_user(root: BorrowedFd<'_>, user: &str) -> Result<Identity, TaskError> {
    let read = |path: &str| -> Result<Vec<u8>, TaskError> {
        let content = paths::read_file(root, path.as_bytes(), MAX_USERS_FILE);
        Ok(content.map_err(|error| TaskError::io(format!("reading {path}"), &error))?.unwrap_or_default())
    };
    users::resolve(user, &read("/etc/passwd")?, &read("/etc/group")?)
        .map_err(|message| TaskError::new(ErrorCode::NoSuchUser, message))
}

fn ensure_workdir(root: BorrowedFd<'_>, workdir: &str) -> Result<String, TaskError> {
    let workdir = if workdir.is_empty() { "/" } else { workdir };
    if !workdir.starts_with('/') {
        return Err(bad(format!("workdir {workdir:?} is not absolute")));
    }
    paths::open_dir(root, workdir.as_bytes(), Missing::Make(&Maker::new(0, 0, 0o755))).map_err(|error| match error
        .raw_os_error()
    {
        Some(libc::ENOTDIR) => TaskError::new(ErrorCode::NotADirectory, format!("{workdir} is not a directory")),
        _ => TaskError::io(format!("making {workdir}"), &error),
    })?;
    Ok(workdir.to_owned())
}

/// The request's environment and secrets, with what every program expects: PATH, HOME, and TERM on a terminal.
fn environment(request: &Run, identity: &Identity, secrets: &[String]) -> Vec<String> {
    let mut env = request.env.clone();
    for secret in secrets {
        let name = secret.split_inclusive('=').next().unwrap_or_default();
        env.retain(|entry| !entry.starts_with(name));
        env.push(secret.clone());
    }
    let mut add = |name: &str, value: &str| {
        let prefix = format!("{name}=");
        if !env.iter().any(|entry| entry.starts_with(&prefix)) {
            env.push(format!("{prefix}{value}"));
        }
    };
    add("PATH", DEFAULT_PATH);
    add("HOME", &identity.home);
    if request.tty {
        add("TERM", "xterm");
    }
    env
}

fn hosts(hostname: &str) -> String {
    format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
}

/// A bundle goes where the tree has one; into a tree with none, to the first place.
fn place_bundle(root: BorrowedFd<'_>, upper: BorrowedFd<'_>, stubs: &mut Stubs, bundle: &str) -> Result<(), TaskError> {
    let exists = |path: &&str| {
        let place = paths::resolve(root, path.as_bytes(), true, Missing::Fail);
        place.is_ok_and(|place| place.info.is_some_and(|info| info.kind == Kind::File))
    };
    let mut places: Vec<&str> = CA_BUNDLES.into_iter().filter(exists).collect();
    if places.is_empty() {
        places.extend(CA_BUNDLES.first());
    }
    // Several of these may be links to one file.
    let mut done: Vec<Vec<u8>> = Vec::new();
    for path in places {
        let failed = |error: std::io::Error| TaskError::io(format!("placing {path}"), &error);
        if let Ok(place) = paths::resolve(root, path.as_bytes(), true, Missing::Fail) {
            if done.contains(&place.path) {
                continue;
            }
            done.push(place.path);
        }
        stubs.replace(root, upper, path, bundle.as_bytes()).map_err(failed)?;
    }
    Ok(())
}

/// The program's path inside the tree: argv[0] itself if it has a slash, else looked up in PATH.
pub fn find_program(root: BorrowedFd<'_>, argv: &[String], env: &[String], workdir: &str) -> Result<String, TaskError> {
    let name = argv.first().map(String::as_str).unwrap_or_default();
    let absolute = |path: &str| if path.starts_with('/') { path.to_owned() } else { format!("{workdir}/{path}") };
    let candidates: Vec<String> = if name.contains('/') {
        vec![absolute(name)]
    } else {
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        path.split(':')
            .map(|folder| {
                absolute(&format!("{}/{name}", if folder.is_empty() { "." } else { folder.trim_end_matches('/') }))
            })
            .collect()
    };
    let mut found_plain = false;
    for candidate in candidates.into_iter().filter(|_| !name.is_empty()) {
        let Ok(place) = paths::resolve(root, candidate.as_bytes(), true, Missing::Fail) else {
            continue;
        };
        match place.info {
            Some(info) if info.kind == Kind::File && info.mode & 0o111 != 0 => return Ok(candidate),
            Some(_) => found_plain = true,
            None => {}
        }
    }
    if found_plain {
        return Err(TaskError::new(ErrorCode::NotExecutable, format!("{name:?} is not an executable file")));
    }
    Err(TaskError::new(ErrorCode::NotFound, format!("no program {name:?}")))
}

fn read_outcomes(path: &Path) -> Vec<Outcome> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits until a process that was told to die has gone with all of its PID namespace.
fn wait_until_gone(pid: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return;
    };
    // ESRCH: gone already.
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let seconds = i64::try_from(KILLED_TIME.as_secs()).unwrap_or(10);
    let limit = rustix::event::Timespec { tv_sec: seconds, tv_nsec: 0 };
    // If it does not go, unmounting will say so.
    let _ = rustix::event::poll(&mut fds, Some(&limit));
}

/// The step's private files: in memory, for secrets are among them. Gone when dropped.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(path: PathBuf) -> Result<Self, TaskError> {
        crate::mounts::make_dir(&path)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let options = CString::new("mode=0700").unwrap_or_default();
        mount("tmpfs", &path, "tmpfs", flags, Some(options.as_c_str()))
            .map_err(|error| TaskError::io("mounting memory for a step's files", &error.into()))?;
        Ok(Self { path })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(OsStr::from_bytes(name.as_bytes()))
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, TaskError> {
        // Bound into the step, where every user reads them; the specification holds its environment.
        self.write_as(name, content, if name == "spec" { 0o600 } else { 0o644 }, (0, 0))
    }

    /// A new file with that mode and owner (uid, gid).
    pub fn write_as(&self, name: &str, content: &[u8], mode: u32, owner: (u32, u32)) -> Result<PathBuf, TaskError> {
        let path = self.path(name);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| {
            file.write_all(content)?;
            std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1))?;
            // Not left to the umask.
            file.set_permissions(std::fs::Permissions::from_mode(mode))
        })
        .map_err(|error| TaskError::io(format!("writing {}", path.display()), &error))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // First the files: another step's namespace may hold a copy of the mount, but not of what is in it.
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        if unmount(&self.path, UnmountFlags::DETACH).is_ok() {
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// The EXIT frame of a step.
pub fn send_exit(stream: &mut dyn FrameStream, exit: ProcessExit) -> Result<(), TaskError> {
    Ok(stream.write_frame(FrameType::Exit, &exit.to_json())?)
}
