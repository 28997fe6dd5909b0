//! The process that runs a build step: namespaces, mounts, a small init that reaps, and the step's program.
//!
//! Three processes: the outer one (started by the machine's init) only waits and passes signals on; the inner one is
//! PID 1 of the step's PID namespace, so that everything dies with it; the third becomes the step's program.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use firebuild_protocol::ErrorCode;

use rustix::fs::{FileType, Mode};
use rustix::mount::{mount, mount_bind, mount_change, mount_move, mount_remount, MountFlags, MountPropagationFlags};
use serde::{Deserialize, Serialize};

use crate::mount_points::{self, MountPoint};
use crate::run;
use crate::sys::{self, Forked};
use crate::tree;

/// Docker's default capabilities: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
/// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 10
    | 1 << 13
    | 1 << 18
    | 1 << 27
    | 1 << 29
    | 1 << 31;

/// (soft, hard): as container engines give it.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Docker's defaults, below the root.
const READ_ONLY: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];
const HIDDEN: [&str; 12] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
];

/// What a shell says for a program that is not there, and for one that cannot be executed.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// All that a step process is told, in a file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The mounted merged tree.
    pub root: PathBuf,
    /// Where [`Outcome`] is written.
    pub outcome: PathBuf,
    /// The files into which the step's first process writes its number: control groups that limit it.
    pub joins: Vec<PathBuf>,
    /// Files to bind: (source, target inside the tree, links resolved, no leading slash).
    pub binds: Vec<(PathBuf, String)>,
    /// What is mounted when all that every step has is there, in this order.
    pub mounts: Vec<MountPoint>,
    /// The program inside the tree (None: still to be found), and its arguments with the name it was called by.
    pub program: Option<String>,
    pub argv: Vec<String>,
    pub env: Vec<String>,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub workdir: String,
    pub hostname: String,
    pub own_network: bool,
    pub terminal: bool,
}

/// What became of the step.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The init is there, with this pid in the outer namespace.
    Started { pid: i32 },
    /// The step's program has ended.
    Exit { code: i32, signal: Option<i32> },
    /// The step's surroundings could not be made.
    Error { message: String },
}

/// Runs the step that the file describes; the result is the process's exit code.
pub fn main(spec_file: &Path) -> i32 {
    let spec = match load(spec_file) {
        Ok(spec) => spec,
        Err(error) => {
            complain(&format!("{}: {error}", spec_file.display()));
            return NOT_EXECUTABLE;
        }
    };
    match outer(&spec) {
        Ok(code) => code,
        Err(error) => {
            complain(&error.to_string());
            NOT_EXECUTABLE
        }
    }
}

fn load(path: &Path) -> io::Result<Spec> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn complain(message: &str) {
    // Standard error may be closed: then nobody listens.
    let _ = writeln!(io::stderr(), "build step: {message}");
}

fn outer(spec: &Spec) -> io::Result<i32> {
    sys::block_signals()?;
    let outcome = File::create(&spec.outcome)?;
    for group in &spec.joins {
        std::fs::write(group, std::process::id().to_string())?;
    }
    sys::unshare(libc::CLONE_NEWPID)?;
    let init = match sys::fork()? {
        Forked::Child => sys::exit_now(inner(spec, outcome)),
        Forked::Parent(pid) => pid,
    };
    record(&outcome, &Outcome::Started { pid: init })?;
    drop(outcome);
    loop {
        match sys::wait_signal()? {
            libc::SIGCHLD => {
                while let Some((pid, ending)) = sys::reap() {
                    if pid == init {
                        return Ok(ending.unwrap_or_else(|signal| 128 + signal));
                    }
                }
            }
            signal => sys::kill(init, signal),
        }
    }
}

/// Appends one line; the reader takes the last one of each kind.
fn record(mut file: &File, outcome: &Outcome) -> io::Result<()> {
    let line = serde_json::to_string(outcome)?;
    file.write_all(format!("{line}\n").as_bytes())
}

/// PID 1 of the step's namespace.
fn inner(spec: &Spec, outcome: File) -> i32 {
    // For whoever looks at the step's processes; nothing depends on it.
    let _ = std::fs::write("/proc/self/comm", "build-init");
    let prepared = sys::die_with_parent().and_then(|()| sys::new_session(false)).and_then(|()| prepare(spec));
    let started = prepared.and_then(|()| {
        Ok(match sys::fork()? {
            Forked::Child => sys::exit_now(program(spec)),
            Forked::Parent(pid) => pid,
        })
    });
    let pid = match started {
        Ok(pid) => pid,
        Err(error) => {
            let _ = record(&outcome, &Outcome::Error { message: error.to_string() });
            return NOT_EXECUTABLE;
        }
    };
    loop {
        match sys::wait_signal() {
            Ok(libc::SIGCHLD) => {
                let ended: Vec<_> = std::iter::from_fn(sys::reap).collect();
                if let Some((_, ending)) = ended.into_iter().find(|(child, _)| *child == pid) {
                    let (code, signal) = match ending {
                        Ok(code) => (code, None),
                        Err(signal) => (128 + signal, Some(signal)),
                    };
                    let _ = record(&outcome, &Outcome::Exit { code, signal });
                    // The namespace's other processes are killed by the kernel when its PID 1 ends.
                    return code;
                }
            }
            Ok(signal) => sys::kill(pid, signal),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return NOT_EXECUTABLE,
        }
    }
}

fn prepare(spec: &Spec) -> io::Result<()> {
    let network = if spec.own_network { libc::CLONE_NEWNET } else { 0 };
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | network)?;
    sys::set_hostname(&spec.hostname)?;
    if spec.own_network {
        sys::bring_loopback_up()?;
    }
    rustix::process::umask(Mode::empty());
    let named = |what: &str, error: rustix::io::Errno| io::Error::other(format!("{what}: {error}"));
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| named("making mounts private", error))?;
    for (source, target) in &spec.binds {
        mount_bind(source, spec.root.join(target)).map_err(|error| named(&format!("binding /{target}"), error))?;
    }
    mount_all(&spec.root)?;
    guard(&spec.root)?;
    make_devices(&spec.root.join("dev"), spec.terminal)?;
    mount_points::attach_all(&spec.root, &spec.mounts)?;
    // Not pivot_root(2): the root of an initramfs cannot be pivoted away from.
    std::env::set_current_dir(&spec.root)?;
    mount_move(".", "/").map_err(|error| named("moving the root", error))?;
    rustix::process::chroot(".")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    std::env::set_current_dir("/")
}

/// The file systems of a step, below the root; their mount points are there.
fn mount_all(root: &Path) -> io::Result<()> {
    let (suid, dev, exec) = (MountFlags::NOSUID, MountFlags::NODEV, MountFlags::NOEXEC);
    let read_only = MountFlags::RDONLY;
    let table: [(&str, &str, &str, MountFlags, &str, bool); 6] = [
        ("proc", "proc", "proc", suid | dev | exec, "", true),
        ("sysfs", "sys", "sysfs", suid | dev | exec | read_only, "", true),
        ("tmpfs", "dev", "tmpfs", suid, "mode=755,size=1024k", true),
        ("devpts", "dev/pts", "devpts", suid | exec, "newinstance,ptmxmode=0666,mode=0620,gid=5", true),
        ("shm", "dev/shm", "tmpfs", suid | dev | exec, "mode=1777,size=65536k", true),
        // Not every kernel has it.
        ("mqueue", "dev/mqueue", "mqueue", suid | dev | exec, "", false),
    ];
    for (source, target, kind, flags, options, needed) in table {
        let path = root.join(target);
        if target.contains('/') {
            std::fs::create_dir(&path)?;
        }
        let options = CString::new(options)?;
        if let Err(error) = mount(source, &path, kind, flags, Some(options.as_c_str())) {
            if needed {
                return Err(io::Error::other(format!("mounting /{target}: {error}")));
            }
        }
    }
    Ok(())
}

/// As in a container: what of `/proc` and `/sys` belongs to the machine is hidden or cannot be changed. User 0 could write
/// it without any capability, and end the machine (`/proc/sysrq-trigger`).
fn guard(root: &Path) -> io::Result<()> {
    let named =
        |path: &Path, error: rustix::io::Errno| io::Error::other(format!("guarding {}: {error}", path.display()));
    for path in READ_ONLY.map(|path| root.join(path)) {
        if !path.exists() {
            continue;
        }
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount_bind(&path, &path).map_err(|error| named(&path, error))?;
        mount_remount(&path, flags, "").map_err(|error| named(&path, error))?;
    }
    let empty = CString::new("nr_inodes=1,mode=0555")?;
    for path in HIDDEN.map(|path| root.join(path)) {
        let Ok(info) = path.metadata() else {
            continue;
        };
        let hidden = if info.is_dir() {
            mount("tmpfs", &path, "tmpfs", MountFlags::RDONLY, Some(empty.as_c_str()))
        } else {
            mount_bind("/dev/null", &path)
        };
        hidden.map_err(|error| named(&path, error))?;
    }
    Ok(())
}

fn make_devices(dev: &Path, terminal: bool) -> io::Result<()> {
    let devices = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in devices {
        let path = dev.join(name);
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    }
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", "/proc/kcore"),
    ];
    for (name, target) in links {
        std::os::unix::fs::symlink(target, dev.join(name))?;
    }
    if terminal {
        // By its path: the descriptor is of a mount in another namespace. A terminal without a path stays without this
        // name; programs reach it as /dev/tty.
        if let Ok(path) = std::fs::read_link("/proc/self/fd/0") {
            let console = dev.join("console");
            File::create(&console)?;
            if mount_bind(path, &console).is_err() {
                std::fs::remove_file(&console)?;
            }
        }
    }
    Ok(())
}

/// Becomes the step's program; returns an exit code if that fails.
fn program(spec: &Spec) -> i32 {
    match become_program(spec) {
        Ok(error) | Err(error) => {
            complain(&format!("{}: {error}", spec.argv.first().map_or("", String::as_str)));
            if error.kind() == io::ErrorKind::NotFound {
                NOT_FOUND
            } else {
                NOT_EXECUTABLE
            }
        }
    }
}

fn find_program(spec: &Spec) -> io::Result<String> {
    if let Some(program) = &spec.program {
        return Ok(program.clone());
    }
    let root = tree::open_dir_at(Path::new("/"))?;
    run::find_program(root.as_fd(), &spec.argv, &spec.env, &spec.workdir).map_err(|error| {
        let not_found = matches!(error.as_error_frame(), Some((ErrorCode::NotFound, _)));
        let kind = if not_found { io::ErrorKind::NotFound } else { io::ErrorKind::PermissionDenied };
        io::Error::from(kind)
    })
}

/// The program's user may open `/dev/stdout`: a pipe behind it must be that user's. Devices stay whose they are.
fn give_pipes_away(uid: u32) -> io::Result<()> {
    for stream in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        let mode = rustix::fs::fstat(stream)?.st_mode;
        if rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Fifo {
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None)?;
        }
    }
    Ok(())
}

/// Ok: exec itself failed; Err: something before it did.
fn become_program(spec: &Spec) -> Result<io::Error, io::Error> {
    sys::new_session(spec.terminal)?;
    std::env::set_current_dir(&spec.workdir)?;
    let found_program = find_program(spec)?;
    sys::set_nofile_limit(OPEN_FILES);
    sys::drop_bounding(CAPABILITIES)?;
    give_pipes_away(spec.uid)?;
    sys::set_identity(spec.uid, spec.gid, &spec.groups)?;
    // Leaving uid 0 has cleared all of another user's.
    sys::set_capabilities(if spec.uid == 0 { CAPABILITIES } else { 0 })?;
    let text = |text: &String| CString::new(text.as_str()).map_err(io::Error::from);
    let path = text(&found_program)?;
    let argv = spec.argv.iter().map(text).collect::<io::Result<Vec<_>>>()?;
    let env = spec.env.iter().map(text).collect::<io::Result<Vec<_>>>()?;
    sys::close_others_on_exec();
    sys::reset_signals();
    Ok(sys::exec(&path, &argv, &env))
}
