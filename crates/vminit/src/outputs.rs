//! What a process writes: read from its terminal or its pipes and handed on as frames until it has ended.

use crate::util::{poll, Deadline};
use firebuild_protocol::{FrameType, ProtocolError};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::termios::Winsize;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long output is awaited that a terminal still holds after its process has ended.
const TERMINAL_FLUSH: Duration = Duration::from_millis(200);

/// Where the frames go.
pub type Sink<'a> = dyn FnMut(FrameType, &[u8]) -> Result<(), ProtocolError> + 'a;

pub struct Outputs {
    pub terminal: bool,
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
    buffer: Vec<u8>,
}

/// What poll(2) said.
#[derive(Debug, Default)]
pub struct OutputsReady {
    /// The process has ended.
    pub ended: bool,
    output: bool,
    errors: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pumped {
    Some,
    Nothing,
    End,
}

impl Outputs {
    /// The descriptors must not block.
    pub fn new(terminal: bool, output: OwnedFd, errors: Option<OwnedFd>) -> Self {
        Self { terminal, output: Some(output), errors, buffer: vec![0; 32_768] }
    }

    /// Wait for output, for the process's end, or for one of the extra descriptors; says which of those.
    pub fn wait<'a>(&'a self, pidfd: &'a OwnedFd, extra: Vec<PollFd<'a>>) -> io::Result<(OutputsReady, Vec<bool>)> {
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        fds.extend(self.output.iter().chain(&self.errors).map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(extra);
        poll(&mut fds, None)?;
        let mut flags = fds.iter().map(|fd| !fd.revents().is_empty());
        let ready = OutputsReady {
            ended: flags.next().unwrap_or(false),
            output: self.output.is_some() && flags.next().unwrap_or(false),
            errors: self.errors.is_some() && flags.next().unwrap_or(false),
        };
        Ok((ready, flags.collect()))
    }

    /// Hand on what is there.
    pub fn pump_ready(&mut self, ready: &OutputsReady, sink: &mut Sink<'_>) -> Result<(), ProtocolError> {
        if ready.output && self.pump_output(sink)? == Pumped::End {
            self.output = None;
        }
        if ready.errors && self.pump_errors(sink)? == Pumped::End {
            self.errors = None;
        }
        Ok(())
    }

    /// After its end: what the process had written is in the pipes; others may hold them open for ever.
    pub fn drain(&mut self, sink: &mut Sink<'_>) -> Result<(), ProtocolError> {
        let deadline = Deadline::after(TERMINAL_FLUSH);
        loop {
            match self.pump_output(sink)? {
                Pumped::Some => {}
                Pumped::End => break,
                Pumped::Nothing if !self.terminal || deadline.has_passed() => break,
                // A terminal hands its bytes on a little later.
                Pumped::Nothing => {
                    if let Some(output) = &self.output {
                        poll(&mut [PollFd::new(output, PollFlags::IN)], Some(deadline.remaining()))?;
                    }
                }
            }
        }
        while self.pump_errors(sink)? == Pumped::Some {}
        Ok(())
    }

    /// Tell a terminal its size. One whose last user has closed it needs none.
    pub fn resize(&self, rows: u16, cols: u16) {
        if let Some(master) = self.output.as_ref().filter(|_| self.terminal) {
            let _ = set_size(master, rows, cols);
        }
    }

    fn pump_output(&mut self, sink: &mut Sink<'_>) -> Result<Pumped, ProtocolError> {
        pump(self.output.as_ref(), &mut self.buffer, FrameType::Stdout, sink)
    }

    fn pump_errors(&mut self, sink: &mut Sink<'_>) -> Result<Pumped, ProtocolError> {
        pump(self.errors.as_ref(), &mut self.buffer, FrameType::Stderr, sink)
    }
}

/// One read, one frame.
fn pump(
    fd: Option<&OwnedFd>,
    buffer: &mut [u8],
    frame_type: FrameType,
    sink: &mut Sink<'_>,
) -> Result<Pumped, ProtocolError> {
    let Some(fd) = fd else { return Ok(Pumped::End) };
    match rustix::io::read(fd, &mut *buffer) {
        Ok(0) => Ok(Pumped::End),
        Ok(count) => {
            sink(frame_type, buffer.get(..count).unwrap_or_default())?;
            Ok(Pumped::Some)
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(Pumped::Nothing),
        // A terminal says EIO when its last user has closed it.
        Err(_) => Ok(Pumped::End),
    }
}

pub fn set_size(terminal: &OwnedFd, rows: u16, cols: u16) -> rustix::io::Result<()> {
    rustix::termios::tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })
}
