//! The entrypoint's service, which the image's init starts: the entrypoint's parent, and its tie to the agent.
//!
//! To the agent it speaks the protocol's frames: EVENT `ready` once the entrypoint is executed (or `failed`), STDOUT
//! and STDERR, EVENT `step` when the init has asked for the end, EXIT. From it: SIGNAL; RESIZE and EVENT `step` named `start`
//! for an entrypoint that waits for somebody to attach. Its input is lent to the agent (`lend.rs`).

use crate::handover::{load_document, AGENT_SOCKET, FOLDER, STARTED, STARTED_NAME};
use crate::health::Monitor;
use crate::launch::exit_code_for;
use crate::metadata::{self, Profile};
use crate::reaper::Reaper;
use crate::stream::FdStream;
use crate::supervise::{follow_all, Supervision};
use crate::util::{lock, start_thread, Context, Deadline};
use crate::{boot, entrypoint, files, lend, log, sys};
use firebuild_protocol::message::{to_json, BootDocument, PushEvent, Resize, Signal};
use firebuild_protocol::{FrameStream, FrameType, ProcessExit, ProcessHost, TaskError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// For the agent to listen.
const AGENT_TAKES: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
/// For the agent to read the last frames.
const AGENT_READS: Duration = Duration::from_secs(5);

/// The agent's word for: start the entrypoint that has waited for somebody to attach.
pub const START: &str = "start";

type Writer = Arc<Mutex<FdStream>>;

/// The program; returns its exit code: the entrypoint's, or 0 if the init has asked for its end.
pub fn run() -> i32 {
    sys::block_signals(&sys::FORWARDED_SIGNALS);
    match serve() {
        Ok(code) => code,
        Err(error) => {
            log::error(&format!("service: {error}"));
            1
        }
    }
}

fn serve() -> Result<i32, TaskError> {
    let document = load_document()?;
    let profile = metadata::load(&document, Deadline::after(Duration::ZERO))?;
    let reader = connect()?;
    let writer: Writer = Arc::new(Mutex::new(reader.try_clone().doing("duplicate a stream")?));
    if !document.start_entrypoint || profile.entrypoint.argv().is_empty() {
        send_event(&writer, &boot::ready_event(None));
        lock(&writer).linger(AGENT_READS);
        return Ok(0);
    }
    run_entrypoint(&document, &profile, reader, &writer)
}

fn run_entrypoint(
    document: &BootDocument,
    profile: &Profile,
    reader: FdStream,
    writer: &Writer,
) -> Result<i32, TaskError> {
    let reaper = Reaper::start()?;
    let asked = Arc::new(Mutex::new(false));
    let supervision = Arc::new(Supervision::default());
    supervision.set_lender(Box::new(|input| {
        if let Err(error) = lend::lend(&input) {
            log::error(&format!("service: {error}"));
        }
    }));
    let (own, halting) = (reaper.clone(), Arc::clone(&supervision));
    start_thread("agent", move || obey(&own, &halting, reader))?;
    let (own, halting, writing, told) =
        (reaper.clone(), Arc::clone(&supervision), Arc::clone(writer), Arc::clone(&asked));
    let stop_signal = document.stop_signal;
    start_thread("signals", move || forward(&own, &halting, stop_signal, &writing, &told))?;
    let pause = if awaits_attach(document)? { boot::ATTACH_TAKES } else { Duration::ZERO };
    if !pause.is_zero() {
        send_event(writer, &boot::ready_event(None));
    }
    let start = || {
        entrypoint::launch(&reaper, profile, document, supervision.attached.size()).map(|(started, mut ends)| {
            supervision.lend(&mut ends);
            (started.pid, (started, ends))
        })
    };
    let (started, ends) = match supervision.start_after(pause, start) {
        Some(Ok(launched)) => launched,
        Some(Err(error)) => {
            let code = exit_code_for(&error);
            send_event(writer, &boot::failed_event(&error));
            end(writer, ProcessExit { code, signal: None });
            return Ok(code);
        }
        // Stopped before somebody came.
        None => {
            end(writer, ProcessExit { code: 0, signal: None });
            return Ok(0);
        }
    };
    send_event(writer, &boot::ready_event(Some(started.pid)));
    if let Some(check) = &document.health {
        let own = Arc::clone(writer);
        let tell = Box::new(move |event: &PushEvent| send_event(&own, event));
        supervision.set_health(Monitor::new(reaper.clone(), profile.clone(), check.clone(), tell));
        supervision.begin_health();
    }
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let mut sink = |frame_type, bytes: &[u8]| {
        if journal {
            write_through(frame_type, bytes);
        }
        lock(writer).write_frame(frame_type, bytes)
    };
    let mut tell = |event: &PushEvent| send_event(writer, event);
    let exit = follow_all(&reaper, profile, document, &supervision, (started, ends), &mut sink, &mut tell);
    let asked = *lock(&asked);
    end(writer, exit);
    Ok(if asked { 0 } else { exit.code })
}

/// Whether the entrypoint waits for somebody: only the first of a boot, and not one that the init has started again.
fn awaits_attach(document: &BootDocument) -> Result<bool, TaskError> {
    let first = !files::exists(STARTED);
    files::replace(FOLDER, STARTED_NAME, "")?;
    Ok(document.await_attach && first)
}

fn connect() -> Result<FdStream, TaskError> {
    let deadline = Deadline::after(AGENT_TAKES);
    let address = SocketAddrUnix::new(AGENT_SOCKET).doing("name the agent's socket")?;
    loop {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .doing("open a socket")?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(FdStream::new(socket)),
            // The init may be faster than the agent's first steps.
            Err(_) if !deadline.has_passed() => std::thread::sleep(PAUSE),
            Err(errno) => return Err(errno).doing("connect to the agent"),
        }
    }
}

fn send_event(writer: &Writer, event: &PushEvent) {
    // An agent that is gone has nobody to tell it to.
    let _ = lock(writer).write_frame(FrameType::Event, &to_json(event));
}

fn end(writer: &Writer, exit: ProcessExit) {
    let mut stream = lock(writer);
    let _ = stream.write_frame(FrameType::Exit, &exit.to_json());
    stream.linger(AGENT_READS);
}

/// What the agent asks for: an EVENT is a user's stop, a SIGNAL is the entrypoint's.
fn obey(reaper: &Reaper, supervision: &Supervision, mut reader: FdStream) {
    while let Ok(frame) = reader.read_frame() {
        if frame.frame_type == FrameType::Event {
            match frame.message() {
                Ok(PushEvent::Policy { restart }) => supervision.set_restart(restart),
                Ok(PushEvent::Step { name }) if name == START => supervision.hurry(),
                _ => {
                    supervision.halt();
                }
            }
        } else if let (FrameType::Resize, Ok(size)) = (frame.frame_type, frame.message::<Resize>()) {
            supervision.attached.set_size((size.rows, size.cols));
        } else if let (FrameType::Signal, Ok(signal)) = (frame.frame_type, frame.message::<Signal>()) {
            if let Some(pid) = supervision.pid() {
                // It may have ended a moment ago.
                let _ = reaper.signal(pid, signal.signal, false);
            }
        }
    }
}

/// Signals that the init or a user sends: handed on, SIGTERM as the image's stop signal.
fn forward(reaper: &Reaper, supervision: &Supervision, stop_signal: i32, writer: &Writer, asked: &Mutex<bool>) {
    while let Ok(signal) = sys::wait_for_signal(&sys::FORWARDED_SIGNALS) {
        let (pid, signal) = if signal == libc::SIGTERM {
            *lock(asked) = true;
            send_event(writer, &PushEvent::Step { name: "stop".to_owned() });
            (supervision.halt(), stop_signal)
        } else {
            (supervision.pid(), signal)
        };
        if let Some(pid) = pid {
            let _ = reaper.signal(pid, signal, false);
        }
    }
}

/// To the init's journal as well, as far as it takes it.
fn write_through(frame_type: FrameType, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = match frame_type {
            FrameType::Stderr => rustix::io::write(rustix::stdio::stderr(), bytes),
            _ => rustix::io::write(rustix::stdio::stdout(), bytes),
        };
        match written {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
