//! The one place that forks and the one that reaps, so that no exit status is lost and no pid is mistaken.

use crate::sys::{prepare_child, ChildSetup};
use crate::util::{lock, start_thread, Deadline};
use firebuild_protocol::{FrameStream, ProcessExit, ProcessHost, SessionOptions, TaskError};
use rustix::io::Errno;
use rustix::process::{pidfd_open, wait, waitid, Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A child and the descriptor that becomes readable when it has ended.
pub struct Started {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

/// Whether children are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    #[default]
    Open,
    /// Who wants to start one waits.
    Held,
    /// No more: the machine is going down.
    Shut,
}

#[derive(Default)]
struct Children {
    /// Children by pid, and their exit once they are reaped. More than one for a pid only in the moment
    /// between a reaping and its `wait`.
    exits: HashMap<u32, Vec<Option<ProcessExit>>>,
    /// Whether others than vminit's own may be started.
    gate: Gate,
    /// How many were ever started.
    started: u64,
    /// True when there was nothing left to wait for after that many were started.
    none_left_at: Option<u64>,
}

/// Cheap to clone: all clones are one reaper.
#[derive(Clone, Default)]
pub struct Reaper {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    children: Mutex<Children>,
    changed: Condvar,
}

impl Reaper {
    /// Start reaping. Only once, in PID 1.
    pub fn start() -> Result<Self, TaskError> {
        let reaper = Self::default();
        let own = reaper.clone();
        start_thread("reaper", move || loop {
            own.reap_next();
        })?;
        Ok(reaper)
    }

    /// Let children be started, or not. When it returns none is being started.
    pub fn set_gate(&self, gate: Gate) {
        lock(&self.shared.children).gate = gate;
        self.shared.changed.notify_all();
    }

    /// Start a child; waits while the gate is held. No reaping happens meanwhile: a failed exec's child is waited for by
    /// the library.
    pub fn start_child(&self, command: &mut Command, setup: ChildSetup) -> io::Result<Started> {
        let mut children = lock(&self.shared.children);
        while children.gate == Gate::Held {
            children = self.shared.changed.wait(children).unwrap_or_else(PoisonError::into_inner);
        }
        if children.gate == Gate::Shut {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        self.spawn_child(children, command, setup)
    }

    /// Start a child of vminit's own, whatever the gate.
    pub fn start_own(&self, command: &mut Command, setup: ChildSetup) -> io::Result<Started> {
        self.spawn_child(lock(&self.shared.children), command, setup)
    }

    fn spawn_child(
        &self,
        mut children: MutexGuard<'_, Children>,
        command: &mut Command,
        setup: ChildSetup,
    ) -> io::Result<Started> {
        prepare_child(command, setup);
        let child = command.spawn()?;
        let pid = child.id();
        children.started += 1;
        children.exits.entry(pid).or_default().push(None);
        // The child cannot have been reaped yet, so the pid is still its own.
        let pidfd = pid_of(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        drop(children);
        self.shared.changed.notify_all();
        pidfd.map(|pidfd| Started { pid, pidfd }).map_err(|errno| {
            // Nobody could wait for it: it must not live on unseen.
            let _ = self.signal(pid, libc::SIGKILL, false);
            errno.into()
        })
    }

    /// Nobody will wait for this child: its exit is of no interest.
    pub fn forget(&self, pid: u32) {
        let mut children = lock(&self.shared.children);
        if let Some(slots) = children.exits.get_mut(&pid) {
            slots.pop();
            if slots.is_empty() {
                children.exits.remove(&pid);
            }
        }
    }

    /// Wait until no process is left but this one. False if the deadline passes first.
    pub fn wait_for_all(&self, deadline: Deadline) -> bool {
        let mut children = lock(&self.shared.children);
        loop {
            if children.none_left_at == Some(children.started) || (children.started == 0 && children.exits.is_empty()) {
                return true;
            }
            if deadline.has_passed() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(children, deadline.remaining());
            children = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wait for the next child to end, then reap all that have.
    fn reap_next(&self) {
        let started = lock(&self.shared.children).started;
        // Look without reaping: reaping takes the lock, and waiting must not hold it.
        match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => {
                let mut children = lock(&self.shared.children);
                while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                    children.record(pid.as_raw_nonzero().get().unsigned_abs(), exit_of(status));
                }
                self.shared.changed.notify_all();
            }
            Err(Errno::CHILD) => {
                let mut children = lock(&self.shared.children);
                if children.started == started {
                    children.none_left_at = Some(started);
                    self.shared.changed.notify_all();
                }
                while children.started == started {
                    children = self.shared.changed.wait(children).unwrap_or_else(PoisonError::into_inner);
                }
            }
            Err(_) => {}
        }
    }
}

impl Children {
    /// Keep the exit of a child of ours; orphans that PID 1 inherited are of no further interest.
    fn record(&mut self, pid: u32, exit: ProcessExit) {
        if let Some(slot) = self.exits.get_mut(&pid).and_then(|slots| slots.iter_mut().find(|slot| slot.is_none())) {
            *slot = Some(exit);
        }
    }

    fn take(&mut self, pid: u32) -> io::Result<Option<ProcessExit>> {
        let slots = self.exits.get_mut(&pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))?;
        let Some(at) = slots.iter().position(Option::is_some) else { return Ok(None) };
        let exit = slots.remove(at);
        if slots.is_empty() {
            self.exits.remove(&pid);
        }
        Ok(exit)
    }

    fn is_running(&self, pid: u32) -> bool {
        self.exits.get(&pid).is_some_and(|slots| slots.iter().any(Option::is_none))
    }
}

impl ProcessHost for Reaper {
    fn spawn(&self, command: &mut Command) -> io::Result<u32> {
        self.start_child(command, ChildSetup::default()).map(|started| started.pid)
    }

    fn wait(&self, pid: u32) -> io::Result<ProcessExit> {
        let mut children = lock(&self.shared.children);
        loop {
            if let Some(exit) = children.take(pid)? {
                return Ok(exit);
            }
            children = self.shared.changed.wait(children).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn signal(&self, pid: u32, signal: i32, group: bool) -> io::Result<()> {
        let raw = i32::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        // Under the lock nothing is reaped, so the pid cannot have become another process's. A group
        // outlives its leader and is not reused while it has members.
        let children = lock(&self.shared.children);
        if !group && !children.is_running(pid) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        crate::sys::kill(if group { -raw } else { raw }, signal)
    }

    fn run_session(
        &self,
        command: Command,
        options: SessionOptions,
        stream: &mut dyn FrameStream,
    ) -> Result<ProcessExit, TaskError> {
        crate::session::run(self, command, ChildSetup::default(), options, stream)
    }
}

fn pid_of(pid: u32) -> Result<Pid, Errno> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)
}

/// Code and signal of a wait status.
fn exit_of(status: WaitStatus) -> ProcessExit {
    exit_from_parts(status.exit_status(), status.terminating_signal())
}

fn exit_from_parts(code: Option<i32>, signal: Option<i32>) -> ProcessExit {
    match (code, signal) {
        (_, Some(signal)) => ProcessExit { code: 128 + signal, signal: Some(signal) },
        (code, None) => ProcessExit { code: code.unwrap_or(255), signal: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn statuses() {
        assert_eq!(exit_from_parts(Some(3), None), ProcessExit { code: 3, signal: None });
        assert_eq!(exit_from_parts(None, Some(9)), ProcessExit { code: 137, signal: Some(9) });
        assert_eq!(exit_from_parts(None, Some(15)).to_json(), br#"{"code":143,"signal":15}"#);
    }

    #[test]
    fn a_pid_used_twice_keeps_both_exits_in_order() {
        let mut children = Children::default();
        children.exits.insert(7, vec![None]);
        children.record(7, ProcessExit { code: 1, signal: None });
        assert!(!children.is_running(7));
        children.exits.entry(7).or_default().push(None);
        assert!(children.is_running(7));
        children.record(7, ProcessExit { code: 2, signal: None });
        children.record(8, ProcessExit { code: 9, signal: None });
        assert_eq!(children.take(7).unwrap().map(|exit| exit.code), Some(1));
        assert_eq!(children.take(7).unwrap().map(|exit| exit.code), Some(2));
        assert!(children.take(7).is_err());
        assert!(children.take(8).is_err());
    }

    const CAP_SYS_RESOURCE: u64 = 1 << 24;

    /// One test for all that starts children: a second reaper in this process would take the first one's exits.
    #[test]
    fn exits_are_never_lost_and_failed_starts_leave_nothing() {
        let reaper = Reaper::start().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let held = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        if u64::from_str_radix(held, 16).unwrap() & CAP_SYS_RESOURCE != 0 {
            // As many open files as in a container: a limit above the host's own, which PID 1 of a guest may give.
            let script = "test $(ulimit -Sn) = 1024 && test $(ulimit -Hn) = 524288";
            let pid = reaper.spawn(Command::new("/bin/sh").args(["-c", script])).unwrap();
            assert_eq!(reaper.wait(pid).unwrap().code, 0);
        }
        let mut threads = Vec::new();
        for worker in 0..4_i32 {
            let reaper = reaper.clone();
            threads.push(std::thread::spawn(move || {
                for round in 0..25 {
                    let code = (worker * 25 + round) % 100;
                    let pid = reaper.spawn(Command::new("/bin/sh").args(["-c", &format!("exit {code}")])).unwrap();
                    assert!(reaper.spawn(&mut Command::new("/no/such/program")).is_err());
                    assert_eq!(reaper.wait(pid).unwrap(), ProcessExit { code, signal: None });
                    assert!(reaper.wait(pid).is_err());
                }
            }));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let forgotten = reaper.spawn(Command::new("/bin/sh").args(["-c", "exit 3"])).unwrap();
        reaper.forget(forgotten);
        assert!(reaper.wait(forgotten).is_err());
        let pid = reaper.spawn(Command::new("/bin/sleep").arg("100")).unwrap();
        assert!(!reaper.wait_for_all(Deadline::after(Duration::from_millis(50))));
        reaper.signal(pid, libc::SIGKILL, false).unwrap();
        assert_eq!(reaper.wait(pid).unwrap().signal, Some(libc::SIGKILL));
        assert!(reaper.signal(pid, libc::SIGKILL, false).is_err());
        assert!(reaper.wait_for_all(Deadline::after(Duration::from_secs(20))));
    }
}
