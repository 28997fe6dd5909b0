//! Who is attached to the entrypoint: its output goes to each of them, what they type goes to it.

use crate::guest::{Guest, Order};
use crate::outputs::set_size;
use crate::stream::{error_payload, FdStream};
use crate::util::{lock, poll, refuse, Deadline};
use firebuild_protocol::frame::encode_header;
use firebuild_protocol::message::{to_json, AttachReply, AttachRequest, Resize};
use firebuild_protocol::{ErrorCode, Frame, FrameStream, FrameType, ProcessExit, ProtocolError, TaskError};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The size of a terminal that nobody looks at.
pub const ROWS: u16 = 24;
pub const COLS: u16 = 80;
/// How often a wait for a client that does not read looks whether it is given up.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The entrypoint's side of all attach streams.
#[derive(Default)]
pub struct Attached {
    state: Mutex<State>,
    changed: Condvar,
    /// When to stop waiting for clients that do not read. Beside the state, for it is asked while a write waits.
    give_up: Mutex<Option<Deadline>>,
}

#[derive(Default)]
struct State {
    clients: Vec<Client>,
    ids: u64,
    input: Option<Input>,
    /// Rows and columns that a client has told.
    size: Option<(u16, u16)>,
    begun: bool,
    ended: bool,
}

#[derive(Clone)]
struct Client {
    id: u64,
    stream: Arc<FdStream>,
}

/// Our end of the entrypoint's input: a terminal's master, or a pipe.
#[derive(Clone)]
struct Input {
    fd: Arc<OwnedFd>,
    terminal: bool,
    /// False: a terminal that nobody types on.
    open: bool,
}

impl Attached {
    /// The size that a client has told.
    pub fn told_size(&self) -> Option<(u16, u16)> {
        lock(&self.state).size
    }

    /// The size that the entrypoint's terminal begins with.
    pub fn size(&self) -> (u16, u16) {
        lock(&self.state).size.unwrap_or((ROWS, COLS))
    }

    /// What a client has told another process.
    pub fn set_size(&self, size: (u16, u16)) {
        lock(&self.state).resize(Some(size));
    }

    /// A life of the entrypoint begins, with this input.
    pub fn begin(&self, fd: Option<OwnedFd>, terminal: bool, open: bool) {
        let mut state = lock(&self.state);
        state.input = fd.map(|fd| Input { fd: Arc::new(fd), terminal, open });
        state.begun = true;
        // Whoever has started it may not have known what a client has told.
        let size = state.size;
        state.resize(size);
        self.changed.notify_all();
    }

    /// A life is over. Closing a terminal hangs up whoever still uses it.
    pub fn close_input(&self) {
        lock(&self.state).input = None;
    }

    /// Output, to everybody. Waits for those who do not read, until [`Attached::give_up_after`] says for how long.
    pub fn send(&self, frame_type: FrameType, payload: &[u8]) {
        let clients = lock(&self.state).clients.clone();
        let Ok(header) = encode_header(frame_type, payload.len()) else { return };
        if clients.is_empty() {
            return;
        }
        let frame = [header.as_slice(), payload].concat();
        for client in clients {
            if !self.write(&client.stream, &frame) {
                self.leave(client.id);
            }
        }
    }

    /// The entrypoint's last end.
    pub fn end(&self, exit: ProcessExit) {
        self.finish(FrameType::Exit, &exit.to_json());
    }

    /// It could not be started.
    pub fn fail(&self, error: &TaskError) {
        let (code, message) = error.as_error_frame().unwrap_or((ErrorCode::Io, error.to_string()));
        self.fail_as(code.as_str(), &message);
    }

    /// The same, as its service has told it.
    pub fn fail_as(&self, code: &str, message: &str) {
        self.finish(FrameType::Error, &error_payload(code, message));
    }

    /// From now on nobody is waited for longer than that. The earliest of several calls counts.
    pub fn give_up_after(&self, duration: Duration) {
        let mut give_up = lock(&self.give_up);
        if give_up.map_or(true, |deadline| deadline.remaining() > duration) {
            *give_up = Some(Deadline::after(duration));
        }
    }

    fn finish(&self, frame_type: FrameType, payload: &[u8]) {
        // Who joins from here on is told that it has ended.
        lock(&self.state).ended = true;
        self.changed.notify_all();
        self.send(frame_type, payload);
        for client in lock(&self.state).clients.drain(..) {
            client.stream.finish();
        }
    }

    /// A whole frame; false if the stream is broken, or given up.
    fn write(&self, stream: &FdStream, mut frame: &[u8]) -> bool {
        while !frame.is_empty() {
            match rustix::io::write(stream, frame) {
                Ok(count) => frame = frame.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                // The stream's write timeout: the client does not read.
                Err(Errno::AGAIN) if !lock(&self.give_up).is_some_and(Deadline::has_passed) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Answer, and take the client in: under one lock, so that the answer comes before all output and no end is missed.
    fn join(
        &self,
        stream: &mut FdStream,
        reply: &[u8],
        size: Option<(u16, u16)>,
        waits: bool,
    ) -> Result<u64, TaskError> {
        let own = stream.try_clone().map_err(ProtocolError::from)?;
        let mut state = lock(&self.state);
        if state.ended {
            return refuse(ErrorCode::NotFound, "the entrypoint has ended");
        }
        if !state.begun && !waits {
            return refuse(ErrorCode::NotFound, "no entrypoint runs");
        }
        stream.write_frame(FrameType::Reply, reply)?;
        own.set_write_timeout(Some(LOOK_AGAIN)).map_err(ProtocolError::from)?;
        state.ids += 1;
        let id = state.ids;
        state.clients.push(Client { id, stream: Arc::new(own) });
        state.resize(size);
        Ok(id)
    }

    fn leave(&self, id: u64) {
        lock(&self.state).clients.retain(|client| client.id != id);
    }

    fn await_begin(&self) {
        let mut state = lock(&self.state);
        while !state.begun && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(&self, frame: &Frame, peer: BorrowedFd<'_>) -> Result<(), ProtocolError> {
        match frame.frame_type {
            FrameType::Stdin if frame.payload.is_empty() => self.end_input(peer),
            FrameType::Stdin => self.feed(&frame.payload, peer),
            FrameType::Resize => {
                let size: Resize = frame.message()?;
                lock(&self.state).resize(Some((size.rows, size.cols)));
                Ok(())
            }
            other => Err(ProtocolError::Unexpected(format!("{} frame", other.name()))),
        }
    }

    /// Input that nobody will read is dropped; for one who does not read yet it waits as long as the peer stays.
    fn feed(&self, mut bytes: &[u8], peer: BorrowedFd<'_>) -> Result<(), ProtocolError> {
        while !bytes.is_empty() {
            let Some(input) = lock(&self.state).input.clone().filter(|input| input.open) else { return Ok(()) };
            match rustix::io::write(&input.fd, bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds =
                        [PollFd::new(&input.fd, PollFlags::OUT), PollFd::from_borrowed_fd(peer, PollFlags::RDHUP)];
                    poll(&mut fds, None)?;
                    if fds.iter().skip(1).any(|fd| !fd.revents().is_empty()) {
                        return Err(ProtocolError::Closed);
                    }
                }
                Err(_) => {
                    self.drop_input(&input);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The end of the input: a terminal, which cannot be half-closed, gets what a person's Ctrl-D is.
    fn end_input(&self, peer: BorrowedFd<'_>) -> Result<(), ProtocolError> {
        let input = lock(&self.state).input.clone();
        match input {
            Some(input) if input.terminal => self.feed(&[0x04], peer),
            Some(input) => {
                self.drop_input(&input);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Unless the next life has begun meanwhile.
    fn drop_input(&self, input: &Input) {
        let mut state = lock(&self.state);
        if state.input.as_ref().is_some_and(|known| Arc::ptr_eq(&known.fd, &input.fd)) {
            state.input = None;
        }
    }
}

impl State {
    fn resize(&mut self, size: Option<(u16, u16)>) {
        let Some((rows, cols)) = size else { return };
        self.size = size;
        if let Some(input) = self.input.as_ref().filter(|input| input.terminal) {
            // One whose last user has closed it needs no size.
            let _ = set_size(&input.fd, rows, cols);
        }
    }
}

/// `attach`: until the entrypoint has ended or the client has gone.
pub fn serve(guest: &Guest, request: &AttachRequest, stream: &mut FdStream) -> Result<(), TaskError> {
    guest.profile()?;
    let document = guest.document();
    let reply = to_json(&AttachReply { tty: document.tty, stdin: document.stdin });
    let size = (request.rows > 0 && request.cols > 0).then_some((request.rows, request.cols));
    let attached = &guest.supervision.attached;
    let id = attached.join(stream, &reply, size, document.await_attach)?;
    if document.await_attach {
        guest.order(Order::Start);
    }
    attached.await_begin();
    // What a client does wrong costs it the stream: an ERROR could meet output that is being written.
    while let Ok(frame) = stream.read_frame() {
        if attached.take(&frame, stream.as_fd()).is_err() {
            break;
        }
    }
    attached.leave(id);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (FdStream, FdStream) {
        let (one, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        (FdStream::new(one), FdStream::new(other))
    }

    fn join(attached: &Attached) -> FdStream {
        let (mut ours, mut theirs) = pair();
        attached.join(&mut ours, b"{}", None, false).unwrap();
        assert_eq!(theirs.read_frame().unwrap().frame_type, FrameType::Reply);
        theirs
    }

    #[test]
    fn everybody_gets_the_output_and_the_end() {
        let attached = Attached::default();
        attached.begin(None, false, false);
        let mut clients = [join(&attached), join(&attached)];
        attached.send(FrameType::Stdout, b"hello");
        attached.end(ProcessExit { code: 3, signal: None });
        for client in &mut clients {
            assert_eq!(client.read_frame().unwrap().payload, b"hello");
            assert_eq!(client.read_frame().unwrap().frame_type, FrameType::Exit);
            assert!(client.read_frame().is_err());
        }
        let (mut late, _peer) = pair();
        assert!(attached.join(&mut late, b"{}", None, true).is_err());
    }

    #[test]
    fn who_has_gone_or_does_not_read_holds_nothing_up_for_ever() {
        let attached = Attached::default();
        attached.begin(None, false, false);
        drop(join(&attached));
        let _deaf = join(&attached);
        attached.give_up_after(Duration::ZERO);
        attached.send(FrameType::Stdout, &vec![b'x'; 1 << 20 >> 1]);
        attached.send(FrameType::Stdout, &vec![b'x'; 1 << 20 >> 1]);
        assert!(lock(&attached.state).clients.is_empty());
    }

    #[test]
    fn input_reaches_the_pipe_and_its_end_closes_it() {
        let attached = Attached::default();
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        attached.begin(Some(writer), false, true);
        let (peer, _other) = pair();
        let frame = |payload: &[u8]| Frame::new(FrameType::Stdin, payload.to_vec()).unwrap();
        attached.take(&frame(b"typed"), peer.as_fd()).unwrap();
        attached.take(&frame(b""), peer.as_fd()).unwrap();
        attached.take(&frame(b"too late"), peer.as_fd()).unwrap();
        let mut buffer = [0_u8; 64];
        assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 5);
        assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 0);
        let exit = Frame::new(FrameType::Exit, b"{}".to_vec()).unwrap();
        assert!(attached.take(&exit, peer.as_fd()).is_err());
    }

    #[test]
    fn a_client_that_goes_away_ends_the_wait_for_a_reader() {
        let attached = Attached::default();
        let (_reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        attached.begin(Some(writer), false, true);
        let (peer, other) = pair();
        drop(other);
        let flood = Frame::new(FrameType::Stdin, vec![b'y'; 1 << 19]).unwrap();
        assert!(matches!(attached.take(&flood, peer.as_fd()), Err(ProtocolError::Closed)));
    }

    #[test]
    fn the_size_is_kept_for_the_next_life() {
        let attached = Attached::default();
        assert_eq!(attached.size(), (ROWS, COLS));
        let resize = Frame::new(FrameType::Resize, br#"{"rows":50,"cols":132}"#.to_vec()).unwrap();
        let (peer, _other) = pair();
        attached.take(&resize, peer.as_fd()).unwrap();
        assert_eq!(attached.size(), (50, 132));
    }
}
