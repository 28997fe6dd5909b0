//! A process tied to a stream: its input, output, terminal and signals relayed until it has ended.

use crate::outputs::{Outputs, OutputsReady};
use crate::reaper::{Reaper, Started};
use crate::sys::ChildSetup;
use crate::util::{poll, Context};
use firebuild_protocol::message::{Resize, Signal};
use firebuild_protocol::{
    ErrorCode, Frame, FrameStream, FrameType, ProcessExit, ProcessHost, ProtocolError, SessionOptions, TaskError,
};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Most bytes of input held for a process that does not read: above it the stream is not read either.
const MOST_INPUT: usize = 256 * 1024;
/// How long a process group has between SIGHUP and SIGKILL when its stream has gone.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// Our ends of a process's standard streams: a terminal's master, or pipes.
pub struct Ends {
    pub input: Option<OwnedFd>,
    pub outputs: Outputs,
}

/// See [`ProcessHost::run_session`]; `setup` says who the process is and where it starts.
pub fn run(
    reaper: &Reaper,
    mut command: Command,
    mut setup: ChildSetup,
    options: SessionOptions,
    stream: &mut dyn FrameStream,
) -> Result<ProcessExit, TaskError> {
    let owner = setup.identity.as_ref().map(|(uid, _, _)| *uid);
    let ends = match options.terminal {
        Some((rows, cols)) => give_terminal(&mut command, rows, cols, owner)?,
        None => give_pipes(&mut command, options.stdin, owner)?,
    };
    setup.new_session = true;
    setup.controlling_terminal = options.terminal.is_some();
    let started = reaper.start_child(&mut command, setup).map_err(|error| start_error(&command, &error))?;
    // Our copies of the child's ends go with the command; else no end of file would ever come.
    drop(command);
    let mut session = Session { ends, pending: Vec::new(), input_ended: false };
    let relayed = session.relay(reaper, &started, stream);
    // Closes a terminal, which hangs up whoever still uses it.
    drop(session);
    match relayed {
        Ok(()) => reaper.wait(started.pid).doing("wait for the process"),
        Err(error) => {
            hang_up(reaper, &started)?;
            Err(error.into())
        }
    }
}

/// Start it in a session of its own, without input and output; nobody waits for it. Returns its pid.
pub fn run_detached(reaper: &Reaper, mut command: Command, mut setup: ChildSetup) -> Result<u32, TaskError> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    setup.new_session = true;
    let started = reaper.start_child(&mut command, setup).map_err(|error| start_error(&command, &error))?;
    reaper.forget(started.pid);
    Ok(started.pid)
}

/// Why a program could not be started, in the protocol's codes.
pub fn start_error(command: &Command, error: &io::Error) -> TaskError {
    let program = command.get_program().to_string_lossy();
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            TaskError::new(ErrorCode::NotFound, format!("{program}: not found, or its interpreter is missing"))
        }
        Some(libc::EACCES) => TaskError::new(ErrorCode::NotExecutable, format!("{program}: permission denied")),
        Some(libc::ENOEXEC | libc::EISDIR | libc::ELIBBAD | libc::ENOTDIR) => {
            TaskError::new(ErrorCode::NotExecutable, format!("{program}: {error}"))
        }
        _ => TaskError::io(format_args!("start {program}"), error),
    }
}

/// A terminal as all three standard streams, owned by that user.
pub fn give_terminal(command: &mut Command, rows: u16, cols: u16, owner: Option<u32>) -> Result<Ends, TaskError> {
    const TTY_GROUP: u32 = 5;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).doing("open a terminal")?;
    rustix::pty::unlockpt(&master).doing("unlock a terminal")?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).doing("open a terminal's other side")?;
    crate::outputs::set_size(&master, rows, cols).doing("set a terminal's size")?;
    if let Some(uid) = owner {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(TTY_GROUP));
        rustix::fs::fchown(&slave, Some(uid), Some(gid)).doing("give a terminal to its user")?;
    }
    let again = |fd: &OwnedFd| fd.try_clone().doing("duplicate a terminal");
    command.stdin(again(&slave)?).stdout(again(&slave)?).stderr(slave);
    rustix::io::ioctl_fionbio(&master, true).doing("set up a terminal")?;
    Ok(Ends { input: Some(again(&master)?), outputs: Outputs::new(true, master, None) })
}

/// A pipe for each standard stream, owned by that user, who may then open `/dev/stdout`; without input `/dev/null`.
pub fn give_pipes(command: &mut Command, with_input: bool, owner: Option<u32>) -> Result<Ends, TaskError> {
    let pipe = || {
        let ends = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing("open a pipe")?;
        if let Some(uid) = owner {
            // Both ends are one inode.
            let uid = rustix::fs::Uid::from_raw(uid);
            rustix::fs::fchown(&ends.0, Some(uid), None).doing("give a pipe to its user")?;
        }
        Ok::<_, TaskError>(ends)
    };
    let ours = |fd: OwnedFd| rustix::io::ioctl_fionbio(&fd, true).doing("set up a pipe").map(|()| fd);
    let input = if with_input {
        let (theirs, writer) = pipe()?;
        command.stdin(theirs);
        Some(ours(writer)?)
    } else {
        command.stdin(Stdio::null());
        None
    };
    let (output, theirs) = pipe()?;
    command.stdout(theirs);
    let (errors, theirs) = pipe()?;
    command.stderr(theirs);
    Ok(Ends { input, outputs: Outputs::new(false, ours(output)?, Some(ours(errors)?)) })
}

/// The peer has gone: the process group goes too.
fn hang_up(reaper: &Reaper, started: &Started) -> Result<(), TaskError> {
    // Errors of these mean that the group is gone already.
    let _ = reaper.signal(started.pid, libc::SIGHUP, true);
    let mut fds = [PollFd::new(&started.pidfd, PollFlags::IN)];
    poll(&mut fds, Some(HANGUP_GRACE)).doing("poll")?;
    let _ = reaper.signal(started.pid, libc::SIGKILL, true);
    reaper.wait(started.pid).doing("wait for the process").map(|_| ())
}

struct Session {
    ends: Ends,
    /// Input that the process has not taken yet.
    pending: Vec<u8>,
    input_ended: bool,
}

impl Session {
    fn relay(&mut self, reaper: &Reaper, started: &Started, stream: &mut dyn FrameStream) -> Result<(), ProtocolError> {
        let stream_fd = stream.try_clone_fd()?;
        stream.write_frame(FrameType::Reply, format!("{{\"pid\":{}}}", started.pid).as_bytes())?;
        loop {
            let (ready, stream_is_ready) = self.wait(started, &stream_fd)?;
            if stream_is_ready {
                self.on_frame(reaper, started, &stream.read_frame()?)?;
            }
            self.feed();
            let mut sink = |frame_type, bytes: &[u8]| stream.write_frame(frame_type, bytes);
            self.ends.outputs.pump_ready(&ready, &mut sink)?;
            if ready.ended {
                return self.ends.outputs.drain(&mut sink);
            }
        }
    }

    fn wait(&self, started: &Started, stream_fd: &OwnedFd) -> io::Result<(OutputsReady, bool)> {
        let mut extra = Vec::new();
        let reads_stream = self.pending.len() < MOST_INPUT;
        if reads_stream {
            extra.push(PollFd::new(stream_fd, PollFlags::IN));
        }
        if let Some(input) = self.ends.input.as_ref().filter(|_| !self.pending.is_empty()) {
            extra.push(PollFd::new(input, PollFlags::OUT));
        }
        let (ready, extra) = self.ends.outputs.wait(&started.pidfd, extra)?;
        Ok((ready, reads_stream && extra.first().copied().unwrap_or(false)))
    }

    fn on_frame(&mut self, reaper: &Reaper, started: &Started, frame: &Frame) -> Result<(), ProtocolError> {
        match frame.frame_type {
            FrameType::Stdin if self.input_ended => {
                return Err(ProtocolError::Unexpected("STDIN after its end".to_owned()));
            }
            FrameType::Stdin if frame.payload.is_empty() => {
                self.input_ended = true;
                if self.ends.outputs.terminal {
                    // What a person's Ctrl-D is: a terminal cannot be half-closed.
                    self.pending.push(0x04);
                }
            }
            FrameType::Stdin if self.ends.input.is_some() => self.pending.extend_from_slice(&frame.payload),
            // The process has closed its input or was given none: nobody will read this.
            FrameType::Stdin => {}
            FrameType::Resize => {
                let size: Resize = frame.message()?;
                self.ends.outputs.resize(size.rows, size.cols);
            }
            FrameType::Signal => {
                let signal: Signal = frame.message()?;
                if !(1..=64).contains(&signal.signal) {
                    return Err(ProtocolError::Unexpected(format!("signal number {}", signal.signal)));
                }
                // It may have ended a moment ago.
                let _ = reaper.signal(started.pid, signal.signal, true);
            }
            other => return Err(ProtocolError::Unexpected(format!("{} frame", other.name()))),
        }
        Ok(())
    }

    /// Give the process its input, as much as it takes now.
    fn feed(&mut self) {
        let mut taken = 0;
        if let Some(input) = &self.ends.input {
            while let Some(rest) = self.pending.get(taken..).filter(|rest| !rest.is_empty()) {
                match rustix::io::write(input, rest) {
                    Ok(count) => taken += count,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(_) => {
                        // It reads no more.
                        self.ends.input = None;
                        self.pending.clear();
                        return;
                    }
                }
            }
        }
        self.pending.drain(..taken);
        if self.pending.is_empty() && self.input_ended && !self.ends.outputs.terminal {
            self.ends.input = None;
        }
    }
}
