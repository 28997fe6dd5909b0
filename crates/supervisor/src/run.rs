//! The supervisor's life: start, serve in one poll loop, record the end, clean up.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use serde_json::{json, Value};

use crate::config::Config;
use crate::control::{Client, Op};
use crate::files::write_atomically;
use crate::logs::{CriLog, RotatingLog};
use crate::notices::Notices;
use crate::process::{find_children, reap, start_vmm, Ending, Process};
use crate::push::{Outcome, Push, PushConnection};
use crate::record;
use crate::state::{Kind, Reason, State};
use crate::sys;

const MAX_PUSH_CONNECTIONS: usize = 8;
const MAX_CLIENTS: usize = 64;
/// How long the console and the push streams may stay open after the VMM's end (someone inherited them).
const DRAIN_TIME: Duration = Duration::from_secs(2);
const CLEANUP_TIME: Duration = Duration::from_secs(120);
/// How long clients get to read their last lines.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
const CONSOLE_ROUND_BYTES: usize = 256 * 1024;

/// Where the supervisor is in its life.
enum Phase {
    Running,
    Draining {
        until: Instant,
    },
    /// A client cleans up. If it goes before it has, the clean-up command is started after all.
    Entrusted {
        until: Instant,
    },
    Cleaning {
        process: Process,
        until: Instant,
        killed: bool,
    },
    Farewell {
        until: Instant,
    },
    Done,
}

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Copy)]
enum Token {
    Signals,
    Owner,
    Console,
    PushListener,
    ControlListener,
    Push(usize),
    Client(usize),
}

/// What is opened before the VMM is started, so that a start that fails leaves no VMM.
pub struct Sockets {
    pub push: UnixListener,
    pub control: UnixListener,
    pub signals: OwnedFd,
    /// The read end of a pipe: at its end of file the machine has lost its owner and ends; a byte releases it.
    pub owner: Option<OwnedFd>,
}

pub struct Supervisor {
    config: Config,
    state: State,
    console_log: RotatingLog,
    output_log: CriLog,
    signals: OwnedFd,
    owner: Option<OwnedFd>,
    console: Option<OwnedFd>,
    push_listener: UnixListener,
    control_listener: UnixListener,
    pushes: Vec<PushConnection>,
    clients: Vec<Client>,
    vmm: Option<Process>,
    ending: Ending,
    boot_deadline: Option<Instant>,
    violations: u64,
    phase: Phase,
    record_written: bool,
    notices: Notices,
}

impl Supervisor {
    /// Starts the VMM. The error is one line for a person.
    pub fn start(config: Config, sockets: Sockets, oom_score_adj: &[u8]) -> Result<Self, String> {
        let open_log = |log: &crate::config::LogConfig| {
            RotatingLog::open(log).map_err(|error| format!("log {}: {error}", log.path.display()))
        };
        let console_log = open_log(&config.console_log)?;
        let output_log = CriLog::new(open_log(&config.output_log)?);
        crate::push::load_boot_document(&config.boot_document)?;
        let (vmm, console) = start_vmm(&config.vmm, oom_score_adj)?;
        let boot_deadline = config.boot_timeout.map(|time| Instant::now() + time);
        let mut supervisor = Self {
            config,
            state: State::new(),
            console_log,
            output_log,
            signals: sockets.signals,
            owner: sockets.owner,
            console: Some(console),
            push_listener: sockets.push,
            control_listener: sockets.control,
            pushes: Vec::new(),
            clients: Vec::new(),
            vmm: None,
            ending: Ending::default(),
            boot_deadline,
            violations: 0,
            phase: Phase::Running,
            record_written: false,
            notices: Notices::default(),
        };
        supervisor.adopt(vmm);
        Ok(supervisor)
    }

    /// The line for the ready descriptor.
    pub fn started_line(&self) -> String {
        self.state.history()
    }

    /// Serves until the machine has ended and is cleaned up; true if the exit record was written.
    pub fn run(&mut self) -> bool {
        while !matches!(self.phase, Phase::Done) {
            match self.wait_for_events() {
                Ok(ready) => {
                    for (token, flags) in ready {
                        self.dispatch(token, flags);
                    }
                    self.drop_dead_connections();
                }
                Err(error) => {
                    self.note(&format!("poll: {error}"));
                    self.kill(Reason::Killed);
                }
            }
            self.check_deadlines();
            self.advance();
        }
        self.record_written
    }

    fn wait_for_events(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut entries: Vec<(Token, BorrowedFd<'_>, PollFlags)> = vec![
            (Token::Signals, self.signals.as_fd(), PollFlags::IN),
            (Token::PushListener, self.push_listener.as_fd(), PollFlags::IN),
            (Token::ControlListener, self.control_listener.as_fd(), PollFlags::IN),
        ];
        if let Some(owner) = &self.owner {
            entries.push((Token::Owner, owner.as_fd(), PollFlags::IN));
        }
        if let Some(console) = &self.console {
            entries.push((Token::Console, console.as_fd(), PollFlags::IN));
        }
        for (index, connection) in self.pushes.iter().enumerate() {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, connection.wants_write());
            entries.push((Token::Push(index), connection.stream().as_fd(), flags));
        }
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, client.wants_read());
            flags.set(PollFlags::OUT, client.wants_write());
            entries.push((Token::Client(index), client.stream().as_fd(), flags));
        }
        let timeout = self.next_deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let mut fds: Vec<PollFd<'_>> =
            entries.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = entries.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((token, _, _), fd)| (*token, fd.revents())).collect())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Running => self.boot_deadline,
            Phase::Draining { until } | Phase::Entrusted { until } | Phase::Farewell { until } => Some(*until),
            Phase::Cleaning { until, .. } => Some(*until),
            Phase::Done => None,
        };
        let pushes = self.pushes.iter().filter_map(PushConnection::deadline);
        let notice = self.notices.deadline(&self.config.on_change, &self.state);
        pushes.chain(phase).chain(notice).chain(self.output_log.deadline()).min()
    }

    fn dispatch(&mut self, token: Token, flags: PollFlags) {
        match token {
            Token::Signals => self.take_signals(),
            Token::Owner => self.read_owner(),
            Token::Console => self.read_console(),
            Token::PushListener => self.accept_push(),
            Token::ControlListener => self.accept_client(),
            Token::Push(index) => self.serve_push(index, flags),
            Token::Client(index) => self.serve_client(index, flags),
        }
    }

    /// A byte releases the machine from its owner; the end of the file says that the owner is gone.
    fn read_owner(&mut self) {
        let Some(owner) = self.owner.take() else { return };
        let mut byte = [0_u8; 1];
        match rustix::io::read(&owner, &mut byte) {
            Ok(1) => {}
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => self.owner = Some(owner),
            _ => self.kill(Reason::OwnerGone),
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = sys::next_signal(&self.signals) {
            if signal == libc::SIGTERM || signal == libc::SIGINT {
                self.kill(Reason::Killed);
                if matches!(self.phase, Phase::Entrusted { .. }) {
                    // Whoever is at the clean-up wants us gone.
                    self.say_farewell();
                }
            }
        }
        while let Some((pid, ending)) = reap() {
            if self.vmm.as_ref().is_some_and(|vmm| vmm.pid == pid) {
                self.vmm = None;
                self.ending = ending;
                self.succeed_vmm();
            } else if self.notices.take_end(pid) {
                if ending.status != Some(0) {
                    self.note(&format!("telling of a change failed: {ending:?}"));
                }
            } else if let Phase::Cleaning { process, killed, .. } = &self.phase {
                if process.pid == pid {
                    let killed = *killed;
                    self.end_cleanup(ending, killed);
                }
            }
        }
    }

    /// The process that was the VMM has ended. A jailer that daemonizes leaves the VMM to us as its subreaper: then
    /// that is the VMM from here on. Anything else that is left is not allowed to outlive it.
    fn succeed_vmm(&mut self) {
        let daemonized =
            self.ending.status == Some(0) && !self.state.has(Kind::Booted) && self.state.reason() == Reason::Exit;
        let mut orphans = find_children();
        orphans.retain(|orphan| !self.notices.is_running(orphan.pid));
        if daemonized && !orphans.is_empty() {
            let vmm = orphans.swap_remove(0);
            self.adopt(vmm);
            return;
        }
        for orphan in orphans {
            self.note(&format!("killing leftover process {}", orphan.pid));
            orphan.kill();
        }
        self.state.record_vmm_exit(self.ending);
        self.boot_deadline = None;
        self.phase = Phase::Draining { until: Instant::now() + DRAIN_TIME };
    }

    fn adopt(&mut self, vmm: Process) {
        let pid = vmm.pid.as_raw_nonzero().get();
        let start_time = vmm.start_time;
        self.vmm = Some(vmm);
        if let Err(error) = write_atomically(&self.config.vmm_pid_file, format!("{pid}\n").as_bytes()) {
            self.note(&format!("{}: {error}", self.config.vmm_pid_file.display()));
        }
        let value = json!({"event": "started", "vmm_pid": pid, "vmm_start_time": start_time});
        self.emit(Kind::Started, &value);
    }

    fn kill(&mut self, reason: Reason) {
        if let Some(vmm) = &self.vmm {
            self.state.set_reason(reason);
            vmm.kill();
        }
    }

    fn read_console(&mut self) {
        let Some(console) = self.console.take() else { return };
        let mut file = std::fs::File::from(console);
        let mut buffer = vec![0_u8; 32 * 1024];
        let mut total = 0;
        let open = loop {
            match file.read(&mut buffer) {
                Ok(0) => break false,
                Ok(count) => {
                    self.console_log.append(buffer.get(..count).unwrap_or_default());
                    total += count;
                    if total >= CONSOLE_ROUND_BYTES {
                        break true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error.kind() == io::ErrorKind::WouldBlock,
            }
        };
        if open {
            self.console = Some(OwnedFd::from(file));
        }
    }

    fn accept_push(&mut self) {
        let Ok((stream, _)) = self.push_listener.accept() else { return };
        if self.pushes.len() >= MAX_PUSH_CONNECTIONS {
            self.violation("too many push connections");
            return;
        }
        match PushConnection::new(stream) {
            Ok(connection) => self.pushes.push(connection),
            Err(error) => self.note(&format!("push connection: {error}")),
        }
    }

    fn serve_push(&mut self, index: usize, flags: PollFlags) {
        let mut pushes = Vec::new();
        let Some(connection) = self.pushes.get_mut(index) else { return };
        if flags.contains(PollFlags::OUT) && !connection.flush() {
            connection.closed = true;
        }
        let outcome = connection.read(&self.config.boot_document, &mut pushes);
        if outcome != Outcome::Open {
            connection.closed = true;
        }
        for push in pushes {
            self.take_push(index, push);
        }
        if let Outcome::Violation(message) = outcome {
            self.violation(&message);
        }
    }

    fn take_push(&mut self, index: usize, push: Push) {
        match push {
            Push::Booted(value) => {
                // After a restore the guest connects anew: the older connection is history.
                for (other, connection) in self.pushes.iter_mut().enumerate() {
                    connection.closed |= other != index && connection.has_booted();
                }
                self.emit(Kind::Booted, &value);
            }
            Push::Step(value) => self.emit(Kind::Step, &value),
            Push::Ready(value) => {
                self.boot_deadline = None;
                self.emit(Kind::Ready, &value);
            }
            Push::Failed(value) => {
                self.boot_deadline = None;
                self.emit(Kind::Failed, &value);
            }
            Push::Restart(value) => self.emit(Kind::Restart, &value),
            Push::Health(value) => self.emit(Kind::Health, &value),
            Push::Exit(value) => {
                self.output_log.flush_partial();
                self.emit(Kind::Exit, &value);
            }
            Push::Output(source, bytes) => self.output_log.append(source, &bytes),
        }
    }

    fn accept_client(&mut self) {
        let Ok((stream, _)) = self.control_listener.accept() else { return };
        if self.clients.len() >= MAX_CLIENTS {
            return;
        }
        // What cannot be sent now is sent when it is polled; a client that has gone may still have left a request.
        if let Ok(client) = Client::new(stream, &self.state.history()) {
            self.clients.push(client);
        }
    }

    fn serve_client(&mut self, index: usize, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let gone = flags.contains(PollFlags::ERR) || (flags.contains(PollFlags::HUP) && !client.wants_read());
        let ops = if client.wants_read() && flags.intersects(PollFlags::IN | PollFlags::HUP) {
            client.read()
        } else {
            Some(Vec::new())
        };
        let broken = flags.contains(PollFlags::OUT) && !client.flush();
        client.closed |= gone || broken || ops.is_none();
        for op in ops.unwrap_or_default() {
            let answer = match op {
                Op::Kill => {
                    self.kill(Reason::Killed);
                    continue;
                }
                Op::Clean => {
                    if let Some(client) = self.clients.get_mut(index) {
                        client.cleans = true;
                    }
                    continue;
                }
                Op::Cleaned => {
                    let promised = self.clients.get(index).is_some_and(|client| client.cleans);
                    if promised && matches!(self.phase, Phase::Entrusted { .. }) {
                        self.say_farewell();
                    }
                    continue;
                }
                Op::Status => self.status(),
                Op::Unknown => json!({"event": "error", "message": "unknown request"}),
            };
            if let Some(client) = self.clients.get_mut(index) {
                client.closed |= !client.send(&format!("{answer}\n"));
            }
        }
    }

    fn status(&self) -> Value {
        json!({
            "event": "status",
            "id": self.config.id,
            "state": self.state.summary(),
            "restarts": self.state.restarts(),
            "health": self.state.health(),
            "vmm_pid": self.vmm.as_ref().map(|vmm| vmm.pid.as_raw_nonzero().get()),
            "violations": self.violations,
            "lost_bytes": self.console_log.lost_bytes() + self.output_log.lost_bytes(),
        })
    }

    fn emit(&mut self, kind: Kind, value: &Value) {
        let line = self.state.record(kind, value);
        for client in &mut self.clients {
            client.closed |= client.closed || !client.send(&line);
        }
    }

    fn violation(&mut self, message: &str) {
        self.violations += 1;
        // The first few are told; a guest that does nothing else must not fill the console log.
        if self.violations <= 16 {
            self.note(&format!("push stream closed: {message}"));
        }
        let value = json!({"event": "violation", "message": message, "count": self.violations});
        self.emit(Kind::Violation, &value);
    }

    fn note(&mut self, message: &str) {
        let line = format!("firebuild-supervisor: {message}\n");
        self.console_log.append(line.as_bytes());
    }

    fn drop_dead_connections(&mut self) {
        self.pushes.retain(|connection| !connection.closed);
        self.clients.retain(|client| !client.closed);
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        if self.boot_deadline.is_some_and(|deadline| deadline <= now) {
            self.boot_deadline = None;
            self.note("the guest was not ready in time");
            self.kill(Reason::BootTimeout);
        }
        if self.output_log.deadline().is_some_and(|deadline| deadline <= now) {
            self.output_log.flush_partial();
        }
        let late = |connection: &PushConnection| connection.deadline().is_some_and(|deadline| deadline <= now);
        if self.pushes.iter().any(late) {
            self.pushes.retain(|connection| !late(connection));
            self.violation("no boot request in time");
        }
        if let Phase::Cleaning { process, until, killed } = &mut self.phase {
            if *until <= now && !*killed {
                *killed = true;
                *until = now + CLEANUP_TIME;
                process.kill_group();
                record::note_cleanup(&self.config, "the clean-up took too long and was killed");
            } else if *until <= now {
                self.say_farewell();
            }
        }
    }

    /// Moves on to the next phase when the present one has nothing left to do.
    fn advance(&mut self) {
        let now = Instant::now();
        if matches!(self.phase, Phase::Running) {
            if let Err(error) = self.notices.tell(&self.config, &self.state, now) {
                self.note(&format!("telling of a change failed: {error}"));
            }
        }
        match self.phase {
            Phase::Draining { until } if until <= now || (self.console.is_none() && self.pushes.is_empty()) => {
                self.finish();
            }
            Phase::Entrusted { until } if until <= now || !self.clients.iter().any(|client| client.cleans) => {
                self.start_cleanup();
            }
            Phase::Farewell { until } => {
                let unread = self.clients.iter().any(Client::wants_write);
                if until <= now || !unread {
                    let _ = std::fs::remove_file(&self.config.control_socket);
                    self.phase = Phase::Done;
                }
            }
            _ => {}
        }
    }

    /// Everything has been read: make it durable, tell the clients, see to the clean-up.
    fn finish(&mut self) {
        self.console = None;
        self.pushes.clear();
        // The exit record tells the same.
        self.notices.stop();
        self.output_log.flush_partial();
        for result in [self.console_log.sync(), self.output_log.sync()] {
            if let Err(error) = result {
                self.note(&format!("log: {error}"));
            }
        }
        for path in [&self.config.push_socket, &self.config.vmm_pid_file] {
            let _ = std::fs::remove_file(path);
        }
        let record = self.state.exit_record(&self.config.id);
        match record::write_exit_record(&self.config.exit_record, &record) {
            Ok(()) => self.record_written = true,
            Err(error) => self.note(&format!("{}: {error}", self.config.exit_record.display())),
        }
        let ending = self.ending;
        let value = json!({"event": "vmm-exit", "status": ending.status, "signal": ending.signal});
        self.emit(Kind::VmmExit, &value);
        self.drop_dead_connections();
        if self.owner.is_some() {
            // An owner that is still there cleans up itself.
            self.say_farewell();
        } else if self.clients.iter().any(|client| client.cleans) {
            self.phase = Phase::Entrusted { until: Instant::now() + CLEANUP_TIME };
        } else {
            self.start_cleanup();
        }
    }

    fn start_cleanup(&mut self) {
        match record::start_cleanup(&self.config) {
            Ok(Some(process)) => {
                self.phase = Phase::Cleaning { process, until: Instant::now() + CLEANUP_TIME, killed: false };
            }
            Ok(None) | Err(_) => self.say_farewell(),
        }
    }

    fn say_farewell(&mut self) {
        self.phase = Phase::Farewell { until: Instant::now() + FAREWELL_TIME };
    }

    fn end_cleanup(&mut self, ending: Ending, killed: bool) {
        if ending.status != Some(0) && !killed {
            record::note_cleanup(&self.config, &format!("the clean-up failed: {ending:?}"));
        }
        self.say_farewell();
    }
}
