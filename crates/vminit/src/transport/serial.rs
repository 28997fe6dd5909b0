//! The mux thread: one virtio-serial port on one side, a socket pair for each stream on the other.

use super::port::Port;
use crate::util::{poll, refuse, start_thread, Context, Deadline};
use firebuild_protocol::mux::{Mux, MuxEvent, Side, MAX_CHUNK};
use firebuild_protocol::{ErrorCode, TaskError, CONTROL_PORT};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::time::Duration;

/// Streams at a time, of both sides together.
const MOST_STREAMS: usize = 512;
/// Records waiting for the port above which no stream is read.
const ENOUGH_OUTPUT: usize = 8;
/// How often a port without a host is looked at: the device has no event for the host's coming back.
const HOST_RECHECK: Duration = Duration::from_millis(50);

struct OpenRequest {
    port: u32,
    answer: Sender<OwnedFd>,
}

/// The way into the mux thread.
pub struct Handle {
    requests: Sender<OpenRequest>,
    wake: Arc<OwnedFd>,
}

impl Handle {
    pub fn open(&self, port: u32, deadline: Deadline) -> Result<OwnedFd, TaskError> {
        let (answer, answered) = channel();
        if self.requests.send(OpenRequest { port, answer }).is_err() {
            return refuse(ErrorCode::Internal, "the mux thread is gone");
        }
        rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()).doing("wake the mux thread")?;
        match answered.recv_timeout(deadline.remaining()) {
            Ok(fd) => Ok(fd),
            Err(RecvTimeoutError::Timeout) => refuse(ErrorCode::Io, format!("open port {port} of the host: no answer")),
            Err(RecvTimeoutError::Disconnected) => {
                refuse(ErrorCode::Io, format!("open port {port} of the host: refused"))
            }
        }
    }
}

/// Open the port and start the thread.
pub fn start(path: PathBuf, incoming: Sender<OwnedFd>) -> Result<Handle, TaskError> {
    let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).doing("eventfd")?);
    let port = Port::open(&path).doing(format_args!("open {}", path.display()))?;
    let (requests, receiver) = channel();
    let state = Switch {
        mux: Mux::new(Side::Guest),
        locals: BTreeMap::new(),
        opening: BTreeMap::new(),
        incoming,
        requests: receiver,
        waiting: Vec::new(),
        wake: Arc::clone(&wake),
        buffer: vec![0; MAX_CHUNK],
    };
    start_thread("mux", move || state.run(&path, port))?;
    Ok(Handle { requests, wake })
}

/// Our end of a stream's socket pair.
struct Local {
    fd: OwnedFd,
    /// Bytes of the host that the task has not taken yet: at most a window.
    pending: Vec<u8>,
    /// The host sends no more; told to the task when `pending` is empty.
    peer_finished: bool,
    told_finished: bool,
    /// The task sends no more.
    task_finished: bool,
}

impl Local {
    fn new(fd: OwnedFd) -> Self {
        Self { fd, pending: Vec::new(), peer_finished: false, told_finished: false, task_finished: false }
    }
}

struct Switch {
    mux: Mux,
    locals: BTreeMap<u32, Local>,
    /// Streams that we offered to the host: who waits for the answer.
    opening: BTreeMap<u32, Sender<OwnedFd>>,
    incoming: Sender<OwnedFd>,
    requests: Receiver<OpenRequest>,
    /// Requests that came before the greeting.
    waiting: Vec<OpenRequest>,
    wake: Arc<OwnedFd>,
    buffer: Vec<u8>,
}

impl Switch {
    fn run(mut self, path: &Path, mut port: Port) {
        self.mux.hello();
        loop {
            match self.turn(&mut port) {
                Ok(()) => {}
                Err(error) => {
                    crate::log::error(&format!("{}: {error}; opening it again", path.display()));
                    self.void();
                    drop(port);
                    port = reopen(path);
                    self.mux.hello();
                }
            }
        }
    }

    /// Wait for something to happen, and do all that is to do. An error means: the port must be closed.
    fn turn(&mut self, port: &mut Port) -> Result<(), TaskError> {
        let ready = self.wait(port)?;
        if ready.no_host {
            if self.mux.is_greeted() {
                self.void();
                port.forget();
                self.mux.hello();
            }
            return self.wait_for_host();
        }
        self.take_requests();
        if ready.port_readable {
            self.read_port(port)?;
        }
        for (stream, flags) in ready.streams {
            self.serve_stream(stream, flags);
        }
        self.write_port(port)
    }

    fn wait_for_host(&mut self) -> Result<(), TaskError> {
        let mut fds = [PollFd::new(&*self.wake, PollFlags::IN)];
        poll(&mut fds, Some(HOST_RECHECK)).doing("poll")?;
        self.take_requests();
        Ok(())
    }

    fn wait(&self, port: &Port) -> Result<Ready, TaskError> {
        let wants_write = port.is_writing() || self.mux.has_output();
        let port_flags = if wants_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let port_fd = port.as_fd();
        let may_read_tasks = self.mux.output_length() < ENOUGH_OUTPUT;
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN), PollFd::new(&port_fd, port_flags)];
        let mut ids = Vec::with_capacity(self.locals.len());
        for (stream, local) in &self.locals {
            let mut flags = PollFlags::empty();
            if may_read_tasks && !local.task_finished && self.mux.send_capacity(*stream) > 0 {
                flags |= PollFlags::IN;
            }
            if !local.pending.is_empty() {
                flags |= PollFlags::OUT;
            }
            // A descriptor that we want nothing of would still report its hang-up, again and again.
            if !flags.is_empty() {
                fds.push(PollFd::new(&local.fd, flags));
                ids.push(*stream);
            }
        }
        poll(&mut fds, None).doing("poll")?;
        let mut results = fds.iter().map(PollFd::revents);
        let (_wake, port) = (results.next(), results.next().unwrap_or_else(PollFlags::empty));
        let streams = ids.into_iter().zip(results).filter(|(_, flags)| !flags.is_empty()).collect();
        let no_host = port.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        Ok(Ready { no_host, port_readable: port.contains(PollFlags::IN), streams })
    }

    fn take_requests(&mut self) {
        let mut counter = [0_u8; 8];
        // EAGAIN: nobody has rung.
        let _ = rustix::io::read(&*self.wake, counter.as_mut_slice());
        self.waiting.extend(self.requests.try_iter());
        if self.mux.is_greeted() {
            for request in std::mem::take(&mut self.waiting) {
                // Dropping the request tells its sender that it is refused.
                if self.locals.len() + self.opening.len() < MOST_STREAMS {
                    if let Some(stream) = self.mux.open(request.port) {
                        self.opening.insert(stream, request.answer);
                    }
                }
            }
        }
    }

    fn read_port(&mut self, port: &mut Port) -> Result<(), TaskError> {
        port.read().doing("read")?;
        loop {
            let event = match port.next_record() {
                Ok(None) => break,
                Ok(Some(record)) => self.mux.on_record(record).map_err(|mismatch| {
                    TaskError::new(ErrorCode::Protocol, format!("the host speaks mux version {}", mismatch.0))
                })?,
                Err(error) => match error.stream() {
                    Some(stream) => self.mux.on_violation(stream),
                    None => return refuse(ErrorCode::Protocol, error.to_string()),
                },
            };
            if let Some(event) = event {
                self.on_event(event);
            }
        }
        Ok(())
    }

    fn write_port(&mut self, port: &mut Port) -> Result<(), TaskError> {
        loop {
            if !port.write().doing("write")? {
                return Ok(());
            }
            match self.mux.next_output() {
                Some(record) => port.start_record(&record),
                None => return Ok(()),
            }
        }
    }

    fn on_event(&mut self, event: MuxEvent) {
        match event {
            MuxEvent::Greeted => {
                self.locals.clear();
                self.opening.clear();
                self.take_requests();
            }
            MuxEvent::Opened { stream, port } => self.on_opened(stream, port),
            MuxEvent::Accepted { stream } => self.on_accepted(stream),
            MuxEvent::Data { stream, payload } => {
                if let Some(local) = self.locals.get_mut(&stream) {
                    local.pending.extend_from_slice(&payload);
                    self.pass_on(stream);
                }
            }
            MuxEvent::Finished { stream } => {
                if let Some(local) = self.locals.get_mut(&stream) {
                    local.peer_finished = true;
                    self.pass_on(stream);
                }
            }
            MuxEvent::Reset { stream } => {
                self.locals.remove(&stream);
                self.opening.remove(&stream);
            }
            MuxEvent::Writable { .. } => {}
        }
    }

    fn on_opened(&mut self, stream: u32, port: u32) {
        let is_welcome = port == CONTROL_PORT && self.locals.len() + self.opening.len() < MOST_STREAMS;
        match socket_pair() {
            Ok((ours, theirs)) if is_welcome && self.mux.accept(stream) => {
                self.locals.insert(stream, Local::new(ours));
                if self.incoming.send(theirs).is_err() {
                    self.abort(stream);
                }
            }
            _ => self.mux.reset(stream),
        }
    }

    fn on_accepted(&mut self, stream: u32) {
        let Some(answer) = self.opening.remove(&stream) else { return };
        match socket_pair() {
            Ok((ours, theirs)) => {
                self.locals.insert(stream, Local::new(ours));
                if answer.send(theirs).is_err() {
                    self.abort(stream);
                }
            }
            Err(_) => self.abort(stream),
        }
    }

    fn serve_stream(&mut self, stream: u32, flags: PollFlags) {
        if flags.contains(PollFlags::OUT) {
            self.pass_on(stream);
        }
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.take_from_task(stream);
        }
    }

    /// Read from a task, as much as its window takes.
    fn take_from_task(&mut self, stream: u32) {
        let capacity = self.mux.send_capacity(stream).min(self.buffer.len());
        let Some(local) = self.locals.get_mut(&stream).filter(|local| !local.task_finished && capacity > 0) else {
            return;
        };
        let Some(room) = self.buffer.get_mut(..capacity) else { return };
        match rustix::io::read(&local.fd, room) {
            Ok(0) => {
                local.task_finished = true;
                self.mux.finish(stream);
                self.drop_if_done(stream);
            }
            Ok(count) => {
                self.mux.send(stream, self.buffer.get(..count).unwrap_or_default());
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.abort(stream),
        }
    }

    /// Hand a task what has come for it, as much as it takes now.
    fn pass_on(&mut self, stream: u32) {
        let Some(local) = self.locals.get_mut(&stream) else { return };
        let mut passed = 0;
        let mut broken = false;
        while let Some(rest) = local.pending.get(passed..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(&local.fd, rest) {
                Ok(count) => passed += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        local.pending.drain(..passed);
        self.mux.consumed(stream, passed);
        if broken {
            self.abort(stream);
            return;
        }
        if local.pending.is_empty() && local.peer_finished && !local.told_finished {
            local.told_finished = true;
            // The task may be gone already.
            let _ = rustix::net::shutdown(&local.fd, Shutdown::Write);
        }
        self.drop_if_done(stream);
    }

    fn drop_if_done(&mut self, stream: u32) {
        if self.locals.get(&stream).is_some_and(|local| local.task_finished && local.told_finished) {
            self.locals.remove(&stream);
        }
    }

    fn abort(&mut self, stream: u32) {
        self.mux.reset(stream);
        self.locals.remove(&stream);
    }

    /// All streams are gone: tasks see the end of theirs.
    fn void(&mut self) {
        self.locals.clear();
        self.opening.clear();
    }
}

struct Ready {
    no_host: bool,
    port_readable: bool,
    streams: Vec<(u32, PollFlags)>,
}

/// Our end does not block, the task's does.
fn socket_pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(ours.as_fd(), true)?;
    Ok((ours, theirs))
}

/// Open the port again until that succeeds: without it the machine is of no use to anybody.
fn reopen(path: &Path) -> Port {
    const PAUSE: Duration = Duration::from_millis(200);
    loop {
        std::thread::sleep(PAUSE);
        if let Ok(port) = Port::open(path) {
            return port;
        }
    }
}
