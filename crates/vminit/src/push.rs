//! The push stream: what the guest tells the host. Opened at boot, and again whenever it is lost (a restore).

use crate::stream::FdStream;
use crate::transport::Transport;
use crate::util::{lock, refuse, start_thread, Deadline};
use firebuild_protocol::frame::encode_header;
use firebuild_protocol::message::{to_json, BootReply, BootRequest, PushEvent};
use firebuild_protocol::{
    ErrorCode, FrameStream, FrameType, ProcessExit, ProtocolError, TaskError, PROTOCOL_VERSION, PUSH_PORT,
};
use rustix::io::Errno;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long a try to open the stream may take.
const TRY: Duration = Duration::from_secs(10);
/// Between tries when the host is not listening.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a wait for the host looks whether it is given up.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

struct Link {
    stream: Option<FdStream>,
    /// No stream is opened until [`Push::reopen`].
    is_suspended: bool,
    /// Counts the streams opened, so that the end of an old one is not taken for the end of the new one.
    generation: u64,
}

/// Cheap to clone: all clones write to one stream.
#[derive(Clone)]
pub struct Push {
    shared: Arc<Shared>,
}

struct Shared {
    transport: Arc<Transport>,
    request: BootRequest,
    link: Mutex<Link>,
    changed: Condvar,
    /// When to stop waiting for a host that does not read, or is not there. Beside the link, whose lock is
    /// held while a write waits.
    give_up: Mutex<Option<Deadline>>,
}

impl Push {
    /// Open the stream and get the boot document.
    pub fn connect(transport: Arc<Transport>, deadline: Deadline) -> Result<(Self, BootReply), TaskError> {
        let request = boot_request();
        let link = Link { stream: None, is_suspended: false, generation: 0 };
        let shared =
            Shared { transport, request, link: Mutex::new(link), changed: Condvar::new(), give_up: Mutex::new(None) };
        let push = Self { shared: Arc::new(shared) };
        loop {
            match push.greet() {
                Ok((stream, reply)) => {
                    push.install(stream)?;
                    return Ok((push, reply));
                }
                // A host that answers but not rightly will not do better the next time.
                Err(error @ TaskError::Refused { code: ErrorCode::Protocol | ErrorCode::BadRequest, .. }) => {
                    return Err(error);
                }
                Err(error) if deadline.has_passed() => return Err(error),
                Err(_) => std::thread::sleep(PAUSE.min(deadline.remaining())),
            }
        }
    }

    pub fn step(&self, name: &str) {
        self.event(&PushEvent::Step { name: name.to_owned() });
    }

    pub fn event(&self, event: &PushEvent) {
        self.send(FrameType::Event, &to_json(event));
    }

    /// Send a frame, over the next stream if this one is lost. Waits for a host that does not read, until
    /// [`Push::give_up_after`] says for how long.
    pub fn send(&self, frame_type: FrameType, payload: &[u8]) {
        let Ok(header) = encode_header(frame_type, payload.len()) else { return };
        let frame = [header.as_slice(), payload].concat();
        let mut link = lock(&self.shared.link);
        loop {
            match &link.stream {
                Some(stream) => {
                    if self.write(stream, &frame) {
                        return;
                    }
                    link.stream = None;
                }
                None if self.has_given_up() => return,
                None => {
                    let waited = self.shared.changed.wait_timeout(link, LOOK_AGAIN);
                    link = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Write a whole frame; false if the stream is broken, or given up.
    fn write(&self, stream: &FdStream, mut frame: &[u8]) -> bool {
        while !frame.is_empty() {
            match rustix::io::write(stream, frame) {
                Ok(count) => frame = frame.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                // The stream's write timeout: the host does not read.
                Err(Errno::AGAIN) if !self.has_given_up() => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn has_given_up(&self) -> bool {
        lock(&self.shared.give_up).is_some_and(Deadline::has_passed)
    }

    /// From now on nothing waits longer than that for the host. The earliest of several calls counts.
    pub fn give_up_after(&self, duration: Duration) {
        let mut give_up = lock(&self.shared.give_up);
        if give_up.map_or(true, |deadline| deadline.remaining() > duration) {
            *give_up = Some(Deadline::after(duration));
        }
    }

    pub fn exit(&self, exit: ProcessExit) {
        self.send(FrameType::Exit, &exit.to_json());
    }

    /// Send no more, and wait until the host has taken everything and closed its side.
    pub fn close(&self, timeout: Duration) {
        self.give_up_after(Duration::ZERO);
        if let Some(stream) = lock(&self.shared.link).stream.take() {
            // The reader thread sees the host's end of the stream; this waits for the same.
            stream.linger(timeout);
        }
    }

    /// Let the stream go and open no other: a snapshot must not hold one. What is to be sent waits.
    pub fn suspend(&self, timeout: Duration) {
        let stream = {
            let mut link = lock(&self.shared.link);
            link.is_suspended = true;
            link.stream.take()
        };
        if let Some(stream) = stream {
            stream.linger(timeout);
        }
    }

    /// Open the stream again after [`Push::suspend`]. Tries until the deadline; without success the next call may.
    pub fn reopen(&self, deadline: Deadline) -> Result<(), TaskError> {
        let mut link = lock(&self.shared.link);
        if !std::mem::replace(&mut link.is_suspended, false) {
            return Ok(());
        }
        drop(link);
        loop {
            match self.greet() {
                Ok((stream, reply)) => {
                    crate::boot::set_clock(reply.clock_ns);
                    return self.install(stream);
                }
                Err(error) if deadline.has_passed() => {
                    lock(&self.shared.link).is_suspended = true;
                    return Err(error);
                }
                Err(_) => std::thread::sleep(PAUSE.min(deadline.remaining())),
            }
        }
    }

    fn greet(&self) -> Result<(FdStream, BootReply), TaskError> {
        let deadline = Deadline::after(TRY);
        let mut stream = self.shared.transport.open(PUSH_PORT, deadline)?;
        stream.write_frame(FrameType::Request, &to_json(&self.shared.request))?;
        stream.set_read_timeout(Some(TRY)).map_err(ProtocolError::from)?;
        let frame = stream.read_frame()?;
        stream.set_read_timeout(None).map_err(ProtocolError::from)?;
        if frame.frame_type != FrameType::Reply {
            return refuse(ErrorCode::Protocol, format!("the host answered boot with {}", frame.frame_type.name()));
        }
        let reply: BootReply = match frame.message() {
            Ok(reply) => reply,
            Err(error) => {
                let message = format!("boot document: {error}");
                let code = ErrorCode::BadRequest.as_str().to_owned();
                let failed = PushEvent::Failed { code, message: message.clone() };
                stream.write_frame(FrameType::Event, &to_json(&failed))?;
                stream.linger(PAUSE);
                return refuse(ErrorCode::BadRequest, message);
            }
        };
        if reply.protocol != PROTOCOL_VERSION {
            return refuse(ErrorCode::Protocol, format!("the host speaks protocol {}", reply.protocol));
        }
        Ok((stream, reply))
    }

    fn install(&self, stream: FdStream) -> Result<(), TaskError> {
        let reader = stream.try_clone().map_err(ProtocolError::from)?;
        stream.set_write_timeout(Some(LOOK_AGAIN)).map_err(ProtocolError::from)?;
        let mut link = lock(&self.shared.link);
        link.generation += 1;
        let generation = link.generation;
        link.stream = Some(stream);
        drop(link);
        self.shared.changed.notify_all();
        let own = self.clone();
        start_thread("push", move || own.watch(reader, generation))
    }

    /// The host says nothing on this stream; its end means that another has to be opened.
    fn watch(self, mut reader: FdStream, generation: u64) {
        while reader.read_frame().is_ok() {}
        drop(reader);
        {
            let mut link = lock(&self.shared.link);
            if link.generation == generation {
                link.stream = None;
            }
        }
        loop {
            if self.has_given_up() || lock(&self.shared.link).is_suspended {
                return;
            }
            if let Ok((stream, reply)) = self.greet() {
                crate::boot::set_clock(reply.clock_ns);
                if let Err(error) = self.install(stream) {
                    crate::log::error(&format!("push stream: {error}"));
                }
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn boot_request() -> BootRequest {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    BootRequest {
        op: "boot".to_owned(),
        protocol: PROTOCOL_VERSION,
        version: crate::VERSION.to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        boot_id: boot_id.trim().replace('-', ""),
    }
}
