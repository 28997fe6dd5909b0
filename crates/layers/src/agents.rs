//! SSH agents for steps: a socket in the step's tree whose connections the host takes one by one, while the step runs.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use firebuild_protocol::{ErrorCode, FrameStream, FrameType, ProtocolError, TaskError};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::io::Errno;

const CHUNK_BYTES: usize = 64 * 1024;

/// The sockets of the steps that run, by the names that the host gave them.
#[derive(Debug, Default)]
pub struct Agents {
    open: Mutex<BTreeMap<String, Arc<Agent>>>,
}

#[derive(Debug)]
struct Agent {
    listener: UnixListener,
    /// Hangs up when the step has ended.
    ended: OwnedFd,
}

/// A socket for one step; nobody is served any more when it is dropped.
pub struct OpenAgent<'a> {
    agents: &'a Agents,
    name: String,
    /// Its closing is what `ended` sees.
    _alive: OwnedFd,
}

impl Agents {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Agent>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a socket at `path`. `owner`: (uid, gid).
    pub fn open(&self, name: &str, path: &Path, mode: u32, owner: (u32, u32)) -> Result<OpenAgent<'_>, TaskError> {
        let failed = |error: io::Error| TaskError::io("making a socket for an SSH agent", &error);
        let mut open = self.lock();
        if open.contains_key(name) {
            return Err(TaskError::new(ErrorCode::Exists, format!("the socket {name} exists already")));
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1)).map_err(failed)?;
        rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o777)).map_err(|error| failed(error.into()))?;
        // Several streams may wait for one connection.
        listener.set_nonblocking(true).map_err(failed)?;
        let (ended, alive) = UnixStream::pair().map_err(failed)?;
        open.insert(name.to_owned(), Arc::new(Agent { listener, ended: ended.into() }));
        Ok(OpenAgent { agents: self, name: name.to_owned(), _alive: alive.into() })
    }

    /// Waits for the next connection to a step's socket and relays it over the stream.
    pub fn serve(&self, name: &str, stream: &mut dyn FrameStream) -> Result<(), TaskError> {
        let gone = || TaskError::new(ErrorCode::NotFound, format!("no socket {name}, or its step has ended"));
        let agent = self.lock().get(name).cloned().ok_or_else(gone)?;
        let stream_fd = stream.try_clone_fd().map_err(ProtocolError::from)?;
        let socket = loop {
            let [connected, host, ended] =
                wait([(agent.listener.as_fd(), true), (stream_fd.as_fd(), true), (agent.ended.as_fd(), true)])?;
            if ended {
                return Err(gone());
            }
            if host {
                // It has nothing to say before the connection: this is its end, or a violation.
                return Err(match stream.read_frame() {
                    Ok(frame) => ProtocolError::Unexpected(format!("{} frame", frame.frame_type.name())).into(),
                    Err(error) => error.into(),
                });
            }
            if connected {
                match agent.listener.accept() {
                    Ok((socket, _)) => break socket,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(TaskError::io("taking a connection", &error)),
                }
            }
        };
        socket.set_nonblocking(false).map_err(|error| TaskError::io("taking a connection", &error))?;
        stream.write_frame(FrameType::Reply, b"{}")?;
        relay(&agent, socket, stream, &stream_fd)
    }
}

impl Drop for OpenAgent<'_> {
    fn drop(&mut self) {
        self.agents.lock().remove(&self.name);
    }
}

/// Carries bytes both ways until both sides have ended, or the step has.
fn relay(
    agent: &Agent,
    mut socket: UnixStream,
    stream: &mut dyn FrameStream,
    stream_fd: &OwnedFd,
) -> Result<(), TaskError> {
    let (mut asks, mut answers) = (true, true);
    let mut buffer = vec![0; CHUNK_BYTES];
    while asks || answers {
        let [socket_ready, stream_ready, ended] =
            wait([(socket.as_fd(), asks), (stream_fd.as_fd(), answers), (agent.ended.as_fd(), true)])?;
        if ended {
            return Ok(());
        }
        if socket_ready {
            // A client that broke off has ended too.
            let count = socket.read(&mut buffer).unwrap_or(0);
            stream.write_frame(FrameType::Data, buffer.get(..count).unwrap_or_default())?;
            asks = count > 0;
        }
        if stream_ready {
            let frame = stream.read_frame()?;
            if frame.frame_type != FrameType::Data {
                return Err(ProtocolError::Unexpected(format!("{} frame", frame.frame_type.name())).into());
            }
            answers = !frame.payload.is_empty();
            // A client that has gone needs no answer.
            if !answers {
                let _ = socket.shutdown(Shutdown::Write);
            } else if socket.write_all(&frame.payload).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Which of these, as far as they are wanted, can be read or have hung up. Unwanted ones are not even polled: one that
/// has hung up would never let it sleep.
fn wait(fds: [(BorrowedFd<'_>, bool); 3]) -> Result<[bool; 3], TaskError> {
    let wanted = fds.iter().filter(|(_, wanted)| *wanted);
    let mut polled: Vec<_> = wanted.map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut polled, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(TaskError::io("waiting for an SSH agent", &error.into())),
        }
    }
    let mut results = polled.iter().map(|fd| !fd.revents().is_empty());
    Ok(fds.map(|(_, wanted)| wanted && results.next().unwrap_or(false)))
}
