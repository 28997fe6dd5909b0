//! The control port: one request a stream, each on a thread of its own.

use crate::guest::{Guest, Order};
use crate::launch::{prepare, Launch};
use crate::path_stat;
use crate::processes;
use crate::session;
use crate::stream::FdStream;
use crate::util::{refuse, start_thread_with};
use crate::{attach, copy, resume, snapshot};
use firebuild_protocol::message::{
    op_of, ClockRequest, ContinueRequest, CopyRequest, ExecRequest, PlainRequest, Restart, RestartRequest,
    ResumeRequest, SignalRequest, StopRequest,
};
use firebuild_protocol::{
    ErrorCode, FrameStream, FrameType, ProtocolError, SessionOptions, TaskError, PROTOCOL_VERSION,
};
use serde::de::DeserializeOwned;
use serde_json::{json, Value};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::Arc;
use std::time::Duration;

const MOST_TASKS: usize = 256;
/// Build operations walk deep trees.
const TASK_STACK: usize = 1024 * 1024;
/// For the first frame of a stream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// For the host to read an answer to its end.
const LINGER: Duration = Duration::from_secs(5);
const LONGEST_STOP: Duration = Duration::from_secs(3600);

/// Serve every stream that comes, until the machine ends.
pub fn serve(guest: &Arc<Guest>, incoming: &Receiver<OwnedFd>) {
    let tasks = Arc::new(AtomicUsize::new(0));
    for fd in incoming {
        let mut stream = FdStream::new(fd);
        if tasks.fetch_add(1, Ordering::SeqCst) >= MOST_TASKS {
            tasks.fetch_sub(1, Ordering::SeqCst);
            stream.send_error(&TaskError::new(ErrorCode::Busy, "too many requests at once"));
            continue;
        }
        let (guest, counter) = (Arc::clone(guest), Arc::clone(&tasks));
        let started = start_thread_with("control", TASK_STACK, move || {
            if let Err(error) = serve_one(&guest, &mut stream) {
                stream.send_error(&error);
            }
            stream.linger(LINGER);
            counter.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = started {
            tasks.fetch_sub(1, Ordering::SeqCst);
            crate::log::error(&error.to_string());
        }
    }
}

fn serve_one(guest: &Arc<Guest>, stream: &mut FdStream) -> Result<(), TaskError> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT)).map_err(ProtocolError::from)?;
    let frame = stream.read_frame()?;
    stream.set_read_timeout(None).map_err(ProtocolError::from)?;
    if frame.frame_type != FrameType::Request {
        return Err(ProtocolError::Unexpected(format!("{} frame", frame.frame_type.name())).into());
    }
    let request = Value::Object(frame.object()?);
    let Some(op) = op_of(&request).map(str::to_owned) else {
        return refuse(ErrorCode::BadRequest, "the request has no op");
    };
    match op.as_str() {
        "hello" => hello(guest, request, stream),
        "exec" => exec(guest, &parse(request)?, stream),
        "attach" => attach::serve(guest, &parse(request)?, stream),
        "copy-in" => copy_in(guest, &parse(request)?, stream),
        "copy-out" => copy_out(guest, &parse(request)?, stream),
        "path-stat" => path_stat(guest, &parse(request)?, stream),
        "processes" => list_processes(guest, request, stream),
        "restart-policy" => set_restart(guest, &parse(request)?, stream),
        "signal" => signal(guest, &parse(request)?, stream),
        "clock" => {
            crate::boot::set_clock(parse::<ClockRequest>(request)?.clock_ns);
            reply(stream, &json!({}))
        }
        "pause-for-snapshot" => pause_for_snapshot(guest, request, stream),
        "continue" => go_on(guest, &parse(request)?, stream),
        "resume" => {
            let request: ResumeRequest = parse(request)?;
            guest.profile()?;
            reply(stream, &resume::resume(guest, &request)?)
        }
        "stop" => stop(guest, &parse(request)?, stream),
        "poweroff" => {
            parse::<PlainRequest>(request)?;
            reply(stream, &json!({}))?;
            power_off(guest);
            Ok(())
        }
        other if guest.is_build() => {
            guest.profile()?;
            let _work = guest.hold.work();
            guest.builder.handle(other, &request, stream, &guest.reaper)
        }
        other => refuse(ErrorCode::UnsupportedOp, format!("no op {other:?}")),
    }
}

fn parse<T: DeserializeOwned>(request: Value) -> Result<T, TaskError> {
    serde_json::from_value(request).map_err(|error| TaskError::new(ErrorCode::BadRequest, error.to_string()))
}

fn reply(stream: &mut FdStream, value: &Value) -> Result<(), TaskError> {
    Ok(stream.write_frame(FrameType::Reply, value.to_string().as_bytes())?)
}

fn hello(guest: &Guest, request: Value, stream: &mut FdStream) -> Result<(), TaskError> {
    parse::<PlainRequest>(request)?;
    let features: &[&str] =
        if guest.is_build() { &["exec", "copy", "build", "snapshot"] } else { &["exec", "copy", "attach", "snapshot"] };
    reply(stream, &json!({"protocol": PROTOCOL_VERSION, "version": crate::VERSION, "features": features}))
}

fn exec(guest: &Guest, request: &ExecRequest, stream: &mut FdStream) -> Result<(), TaskError> {
    let profile = guest.profile()?;
    if request.detach && (request.tty || request.stdin) {
        return refuse(ErrorCode::BadRequest, "who is detached has neither a terminal nor input");
    }
    let launch = Launch {
        argv: &request.argv,
        env: &request.env,
        user: &request.user,
        workdir: &request.workdir,
        tty: request.tty,
        make_workdir: false,
    };
    let (command, setup) = prepare(&profile, &launch)?;
    if request.detach {
        let pid = session::run_detached(&guest.reaper, command, setup)?;
        return reply(stream, &json!({"pid": pid}));
    }
    let terminal = request.tty.then_some((request.rows, request.cols));
    let options = SessionOptions { terminal, stdin: request.stdin };
    let exit = session::run(&guest.reaper, command, setup, options, stream)?;
    Ok(stream.write_frame(FrameType::Exit, &exit.to_json())?)
}

fn copy_in(guest: &Guest, request: &CopyRequest, stream: &mut FdStream) -> Result<(), TaskError> {
    guest.profile()?;
    let _work = guest.hold.work();
    let (entries, bytes) = copy::copy_in(&request.path, stream)?;
    reply(stream, &json!({"entries": entries, "bytes": bytes}))
}

fn copy_out(guest: &Guest, request: &CopyRequest, stream: &mut FdStream) -> Result<(), TaskError> {
    guest.profile()?;
    let _work = guest.hold.work();
    copy::copy_out(&request.path, stream)
}

fn path_stat(guest: &Guest, request: &CopyRequest, stream: &mut FdStream) -> Result<(), TaskError> {
    guest.profile()?;
    reply(stream, &path_stat::stat(&request.path)?)
}

fn signal(guest: &Guest, request: &SignalRequest, stream: &mut FdStream) -> Result<(), TaskError> {
    guest.profile()?;
    check_signal(request.signal)?;
    if guest.supervision.pid().is_none() {
        return refuse(ErrorCode::NotFound, "no entrypoint runs");
    }
    guest.order(Order::Signal(request.signal));
    reply(stream, &json!({}))
}

fn list_processes(guest: &Guest, request: Value, stream: &mut FdStream) -> Result<(), TaskError> {
    parse::<PlainRequest>(request)?;
    guest.profile()?;
    let (listed, more) = processes::list();
    reply(stream, &json!({"processes": listed, "more": more}))
}

/// In system mode the entrypoint's service is told.
fn set_restart(guest: &Guest, request: &RestartRequest, stream: &mut FdStream) -> Result<(), TaskError> {
    guest.profile()?;
    guest.order(Order::Restart(Restart { policy: request.policy, most: request.most }));
    reply(stream, &json!({}))
}

fn pause_for_snapshot(guest: &Guest, request: Value, stream: &mut FdStream) -> Result<(), TaskError> {
    parse::<PlainRequest>(request)?;
    guest.profile()?;
    reply(stream, &json!({ "held_by": snapshot::pause(guest)? }))
}

fn go_on(guest: &Guest, request: &ContinueRequest, stream: &mut FdStream) -> Result<(), TaskError> {
    guest.profile()?;
    crate::boot::set_clock(request.clock_ns);
    snapshot::go_on(guest)?;
    reply(stream, &json!({}))
}

/// Who is held ends without going on.
fn power_off(guest: &Guest) {
    if guest.hold.is_held() {
        snapshot::give_up(guest);
    }
    guest.order(Order::PowerOff);
}

fn check_signal(signal: i32) -> Result<(), TaskError> {
    if (1..=64).contains(&signal) {
        return Ok(());
    }
    refuse(ErrorCode::BadRequest, format!("{signal} is no signal"))
}

fn stop(guest: &Guest, request: &StopRequest, stream: &mut FdStream) -> Result<(), TaskError> {
    check_signal(request.signal)?;
    let timeout = Duration::from_millis(request.timeout_ms).min(LONGEST_STOP);
    reply(stream, &json!({}))?;
    if guest.hold.is_held() {
        power_off(guest);
        return Ok(());
    }
    guest.order(Order::Stop { signal: request.signal, timeout });
    Ok(())
}
