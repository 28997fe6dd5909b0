//! The VMM and its possible descendants: started, identified by pidfd and start time, killed, waited for.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{pidfd_open, pidfd_send_signal, wait, Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};

use crate::config::{JailConfig, VmmConfig};
use crate::sys::{prepare_child, BindMount, ChildSetup, Jail};

/// How a process ended: exactly one of the two is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    pub status: Option<i32>,
    pub signal: Option<i32>,
}

/// A child of ours that has not been waited for, so that its id cannot belong to anyone else.
pub struct Process {
    pub pid: Pid,
    pub start_time: u64,
    pidfd: OwnedFd,
}

impl Process {
    fn identify(pid: Pid) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid).unwrap_or(0), pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    pub fn kill(&self) {
        // ESRCH only says that it has ended already.
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }

    /// Kills the process group that it leads; it has not been waited for, so the group's id is its own.
    pub fn kill_group(&self) {
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }
}

/// Starts the VMM with its output joined into one pipe; returns it and the pipe's non-blocking reading end.
pub fn start_vmm(config: &VmmConfig, oom_score_adj: &[u8]) -> Result<(Process, OwnedFd), String> {
    let netns = match &config.netns {
        Some(path) => Some(OwnedFd::from(
            File::open(path).map_err(|error| format!("network namespace {}: {error}", path.display()))?,
        )),
        None => None,
    };
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| format!("console pipe: {error}"))?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(|error| format!("console pipe: {error}"))?;
    let errors = writer.try_clone().map_err(|error| format!("console pipe: {error}"))?;
    let (program, arguments) = config.argv.split_first().ok_or_else(|| "vmm.argv is empty".to_owned())?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(config.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&config.cwd)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(errors);
    let setup = ChildSetup {
        netns,
        die_with_parent: true,
        oom_score_adj: Some(oom_score_adj.to_vec()),
        cgroups: config.cgroups.iter().map(|folder| open_members(folder)).collect::<Result<_, _>>()?,
        jail: config.jail.as_ref().map(plan_jail).transpose()?,
    };
    prepare_child(&mut command, setup);
    let child = command.spawn().map_err(|error| format!("cannot start {program}: {error}"))?;
    let process = identify_child(child.id()).map_err(|error| format!("{program}: {error}"))?;
    Ok((process, reader))
}

/// The file that a process is written to that joins a control group (cgroups(7)).
fn open_members(folder: &Path) -> Result<OwnedFd, String> {
    let path = folder.join("cgroup.procs");
    let file = OpenOptions::new().write(true).open(&path);
    Ok(OwnedFd::from(file.map_err(|error| format!("control group {}: {error}", path.display()))?))
}

fn plan_jail(jail: &JailConfig) -> Result<Jail, String> {
    let text = |path: &Path| {
        CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{} holds a zero byte", path.display()))
    };
    let mount = |each: &crate::config::MountConfig| {
        Ok(BindMount { source: text(&each.source)?, target: text(&each.target)?, read_only: each.read_only })
    };
    Ok(Jail {
        root: text(&jail.root)?,
        mounts: jail.mounts.iter().map(mount).collect::<Result<_, String>>()?,
        new_netns: jail.new_netns,
    })
}

/// Starts a command whose output is appended to `output`; in a session and process group of its own.
pub fn start_command(argv: &[String], output: &File) -> io::Result<Process> {
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    let setup =
        ChildSetup { netns: None, die_with_parent: false, oom_score_adj: None, cgroups: Vec::new(), jail: None };
    prepare_child(&mut command, setup);
    identify_child(command.spawn()?.id())
}

/// Makes this process the last to be killed for want of memory; returns what its value was, for its child.
pub fn protect_from_oom() -> Vec<u8> {
    const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
    let before = std::fs::read(OOM_SCORE_ADJ).unwrap_or_else(|_| b"0".to_vec());
    // Without CAP_SYS_RESOURCE it cannot be lowered; the machine runs all the same.
    let _ = std::fs::write(OOM_SCORE_ADJ, "-900");
    before
}

/// Waits, without blocking, for any child that has ended.
pub fn reap() -> Option<(Pid, Ending)> {
    match wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => Some((pid, ending(status))),
        _ => None,
    }
}

/// Our children that are there now: the ones started, and orphans that came to us as their subreaper.
pub fn find_children() -> Vec<Process> {
    let own = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| stat_field(*pid, 4) == Some(u64::from(own)))
        .filter_map(|pid| Process::identify(Pid::from_raw(pid)?).ok())
        .collect()
}

fn identify_child(id: u32) -> io::Result<Process> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    Process::identify(pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?)
}

fn ending(status: WaitStatus) -> Ending {
    Ending { status: status.exit_status(), signal: status.terminating_signal() }
}

fn start_time(pid: Pid) -> Option<u64> {
    stat_field(pid.as_raw_nonzero().get(), 22)
}

/// Field `number` (counted from 1) of /proc/PID/stat; only fields after the command name (proc(5)).
fn stat_field(pid: i32, number: usize) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses: fields are counted from its last parenthesis.
    let rest = text.rsplit_once(')')?.1;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}
