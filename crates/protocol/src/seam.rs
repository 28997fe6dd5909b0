//! The seam between `vminit` (streams, the reaper) and `layers` (the build operations).
//!
//! `layers` gives in return a `Builder`, whose `handle` carries out one operation from its REQUEST to its last
//! frame, each stream on a thread of its own, and `run_step`, which the vminit binary calls when it is started
//! as a child for a build step.

use crate::error::{ProtocolError, TaskError};
use crate::frame::{Frame, FrameType};
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;

/// One stream of frames, whatever carries it.
pub trait FrameStream: Send {
    /// The next frame, checked. [`ProtocolError::Closed`] when the peer has closed its side.
    fn read_frame(&mut self) -> Result<Frame, ProtocolError>;
    /// Send one frame; blocks while the peer does not read. The payload must fit one frame.
    fn write_frame(&mut self, frame_type: FrameType, payload: &[u8]) -> Result<(), ProtocolError>;
    /// The stream's descriptor, duplicated (close-on-exec), to poll it for the peer's going away.
    fn try_clone_fd(&self) -> io::Result<OwnedFd>;
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessExit {
    /// The exit code, or 128 + signal.
    pub code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
}

impl ProcessExit {
    /// The payload of the EXIT frame.
    pub fn to_json(self) -> Vec<u8> {
        let signal = self.signal.map_or_else(|| "null".to_owned(), |signal| signal.to_string());
        format!("{{\"code\":{},\"signal\":{}}}", self.code, signal).into_bytes()
    }
}

/// How a process is tied to its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Rows and columns of a terminal to give it; None: pipes.
    pub terminal: Option<(u16, u16)>,
    /// True: STDIN frames reach it (without a terminal; a terminal always has them). False: its input is empty.
    pub stdin: bool,
}

/// The process that reaps (PID 1). Nobody else may fork: a status would be lost.
pub trait ProcessHost: Send + Sync {
    /// Start a command whose standard streams the caller has set. The child gets `oom_score_adj` 0.
    /// Returns its pid, which stays valid (unreaped for others) until `wait` has returned its exit.
    fn spawn(&self, command: &mut Command) -> io::Result<u32>;

    /// Wait until that child has ended and forget it. Only once for each `spawn`.
    fn wait(&self, pid: u32) -> io::Result<ProcessExit>;

    /// Send a signal to a child that has not been waited for (`group`: to its process group).
    fn signal(&self, pid: u32, signal: i32, group: bool) -> io::Result<()>;

    /// Start the command as leader of a new session, send REPLY `{"pid": ...}`, then relay STDIN, RESIZE
    /// and SIGNAL down, STDOUT and STDERR up until it has ended and its output is drained. Sets the
    /// command's standard streams itself. Does NOT send EXIT: the caller does, after its own cleaning up.
    /// If the peer goes away the process group gets SIGHUP, two seconds later SIGKILL, and the exit is
    /// still waited for before the stream's error is returned.
    fn run_session(
        &self,
        command: Command,
        options: SessionOptions,
        stream: &mut dyn FrameStream,
    ) -> Result<ProcessExit, TaskError>;
}
