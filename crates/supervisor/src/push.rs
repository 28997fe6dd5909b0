//! The host's end of the push stream (PROTOCOL.md section 3): a state machine over bytes from a hostile guest.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use firebuild_protocol::frame::MAX_PAYLOAD;
use firebuild_protocol::{Frame, FrameType};
use serde_json::{json, Map, Value};

use crate::clock;
use crate::frames::{append_json, FrameBuffer};
use crate::logs::Source;

/// A connection that has not sent its whole boot request by then is closed.
const BOOT_REQUEST_TIME: Duration = Duration::from_secs(60);
/// Longest text that is kept of what a guest says in an event.
const MAX_TEXT: usize = 2048;
/// Longest output of one health check that is kept.
const MAX_HEALTH_OUTPUT: usize = 4096;
/// A year.
const LONGEST_CHECK_MS: u64 = 366 * 86_400_000;
/// Read at most this much of one connection in one round, so that a flood cannot starve the others.
const ROUND_BYTES: usize = 256 * 1024;

/// What a connection brought.
#[derive(Debug)]
pub enum Push {
    Booted(Value),
    Step(Value),
    Ready(Value),
    Failed(Value),
    Restart(Value),
    Health(Value),
    Exit(Value),
    Output(Source, Vec<u8>),
}

/// What a round of reading ended with.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Open,
    Closed,
    Violation(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    AwaitBoot,
    Booted,
    Ready,
    Exited,
}

/// One push connection.
pub struct PushConnection {
    stream: UnixStream,
    input: FrameBuffer,
    output: Vec<u8>,
    phase: Phase,
    accepted: Instant,
    /// Set when it is to be dropped after the present round.
    pub closed: bool,
}

impl PushConnection {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: FrameBuffer::default(),
            output: Vec::new(),
            phase: Phase::AwaitBoot,
            accepted: Instant::now(),
            closed: false,
        })
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub fn has_booted(&self) -> bool {
        self.phase != Phase::AwaitBoot
    }

    pub fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// When this connection is closed if nothing changes.
    pub fn deadline(&self) -> Option<Instant> {
        (self.phase == Phase::AwaitBoot).then(|| self.accepted + BOOT_REQUEST_TIME)
    }

    /// Reads what is there (up to a bound) and appends what it means to `pushes`.
    pub fn read(&mut self, boot_document: &Path, pushes: &mut Vec<Push>) -> Outcome {
        let mut buffer = vec![0_u8; 32 * 1024];
        let mut total = 0;
        while total < ROUND_BYTES {
            let count = match self.stream.read(&mut buffer) {
                Ok(0) => return Outcome::Closed,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Outcome::Closed,
            };
            total += count;
            self.input.extend(buffer.get(..count).unwrap_or_default());
            loop {
                match self.input.next_frame() {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        if let Err(message) = self.take(frame, boot_document, pushes) {
                            return self.refuse(message);
                        }
                    }
                    Err(error) => return self.refuse(error.to_string()),
                }
            }
        }
        Outcome::Open
    }

    /// Sends what is due; false when the connection is broken.
    pub fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(count) => {
                    self.output.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn refuse(&mut self, message: String) -> Outcome {
        let error = json!({"code": "protocol", "message": message});
        // One try: a guest that does not read gets no answer.
        if append_json(&mut self.output, FrameType::Error, &error).is_ok() {
            self.flush();
        }
        Outcome::Violation(message)
    }

    fn take(&mut self, frame: Frame, boot_document: &Path, pushes: &mut Vec<Push>) -> Result<(), String> {
        let name = frame.frame_type.name();
        let push = match (self.phase, frame.frame_type) {
            (Phase::AwaitBoot, FrameType::Request) => self.boot(&object(&frame)?, boot_document)?,
            (Phase::AwaitBoot, _) => return Err(format!("{name} before the boot request")),
            // The steps of the way down are told after the entrypoint's end; anything else has ended with it.
            (Phase::Exited, kind) if kind != FrameType::Event => return Err(format!("{name} after EXIT")),
            (_, FrameType::Event) => match self.event(&object(&frame)?)? {
                Some(push) => push,
                None => return Ok(()),
            },
            (_, FrameType::Stdout) => Push::Output(Source::Stdout, frame.payload),
            (_, FrameType::Stderr) => Push::Output(Source::Stderr, frame.payload),
            (_, FrameType::Exit) => self.exit(&object(&frame)?)?,
            _ => return Err(format!("{name} from a guest")),
        };
        pushes.push(push);
        Ok(())
    }

    fn boot(&mut self, request: &Map<String, Value>, boot_document: &Path) -> Result<Push, String> {
        if request.get("op").and_then(Value::as_str) != Some("boot") {
            return Err("the first request is not boot".to_owned());
        }
        if request.get("protocol").and_then(Value::as_u64) != Some(1) {
            return Err("the guest speaks another protocol version".to_owned());
        }
        let document = load_boot_document(boot_document)?;
        let clock_ns = u64::try_from(clock::now_ns()).unwrap_or(u64::MAX);
        let reply = json!({"protocol": 1, "clock_ns": clock_ns, "boot": document});
        append_json(&mut self.output, FrameType::Reply, &reply).map_err(|error| error.to_string())?;
        self.flush();
        self.phase = Phase::Booted;
        Ok(Push::Booted(json!({
            "event": "booted",
            "version": text(request, "version")?,
            "kernel": text(request, "kernel")?,
            "boot_id": text(request, "boot_id")?,
        })))
    }

    fn event(&mut self, event: &Map<String, Value>) -> Result<Option<Push>, String> {
        match event.get("event").and_then(Value::as_str) {
            Some("step") => {
                let value = json!({"event": "step", "name": text(event, "name")?});
                Ok(Some(Push::Step(value)))
            }
            Some("ready") if self.phase != Phase::Booted => Err("ready twice or after EXIT".to_owned()),
            Some("ready") => {
                self.phase = Phase::Ready;
                let uptime_ms = event.get("uptime_ms").and_then(Value::as_u64);
                let entrypoint_pid = event.get("entrypoint_pid").and_then(Value::as_u64);
                Ok(Some(Push::Ready(json!({
                    "event": "ready",
                    "uptime_ms": uptime_ms.ok_or("ready without uptime_ms")?,
                    "entrypoint_pid": entrypoint_pid,
                }))))
            }
            Some("failed") => {
                let code = text(event, "code")?;
                let message = text(event, "message")?;
                let value = json!({"event": "failed", "code": code, "message": message});
                Ok(Some(Push::Failed(value)))
            }
            Some("restart") => {
                let count = event.get("count").and_then(Value::as_u64).filter(|count| *count <= u64::from(u32::MAX));
                let (code, signal) = ending(event)?;
                let count = count.ok_or("restart without a count")?;
                let value = json!({"event": "restart", "count": count, "code": code, "signal": signal});
                Ok(Some(Push::Restart(value)))
            }
            Some("health") => Ok(Some(Push::Health(health(event)?))),
            // A newer guest may tell more than this version knows.
            Some(_) => Ok(None),
            None => Err("an EVENT without a name".to_owned()),
        }
    }

    fn exit(&mut self, exit: &Map<String, Value>) -> Result<Push, String> {
        let (code, signal) = ending(exit)?;
        self.phase = Phase::Exited;
        Ok(Push::Exit(json!({"event": "exit", "code": code, "signal": signal})))
    }
}

/// A health event. Times are this host's: the guest says only how long its check took.
fn health(event: &Map<String, Value>) -> Result<Value, String> {
    let status = event.get("status").and_then(Value::as_str);
    let status = status.filter(|status| matches!(*status, "starting" | "healthy" | "unhealthy"));
    let streak = event.get("failing_streak").and_then(Value::as_u64).filter(|streak| *streak <= u64::from(u32::MAX));
    let result = match event.get("result") {
        None | Some(Value::Null) => Value::Null,
        Some(Value::Object(result)) => {
            let code = result.get("code").and_then(Value::as_i64).filter(|code| (-1..=255).contains(code));
            let took = result.get("duration_ms").and_then(Value::as_u64).filter(|took| *took <= LONGEST_CHECK_MS);
            let took = took.ok_or("a health check without its time")?;
            let now = clock::now_ns();
            json!({
                "start": clock::rfc3339(now.saturating_sub(u128::from(took) * 1_000_000)),
                "end": clock::rfc3339(now),
                "code": code.ok_or("a health check without a code from -1 to 255")?,
                "output": shortened(result, "output", MAX_HEALTH_OUTPUT)?,
            })
        }
        Some(_) => return Err("a health check's result that is none".to_owned()),
    };
    Ok(json!({
        "event": "health",
        "status": status.ok_or("health without a status")?,
        "failing_streak": streak.ok_or("health without a failing_streak")?,
        "result": result,
    }))
}

/// Code and signal of an entrypoint's end.
fn ending(exit: &Map<String, Value>) -> Result<(u64, Option<u64>), String> {
    let code = exit
        .get("code")
        .and_then(Value::as_u64)
        .filter(|code| *code <= 255)
        .ok_or("an end without a code from 0 to 255")?;
    let signal = match exit.get("signal") {
        None | Some(Value::Null) => None,
        Some(value) => {
            Some(value.as_u64().filter(|signal| (1..=64).contains(signal)).ok_or("an end with a signal that is none")?)
        }
    };
    Ok((code, signal))
}

/// Reads the JSON object that goes into the reply's `boot`.
pub fn load_boot_document(path: &Path) -> Result<Value, String> {
    let named = |reason: String| format!("boot document {}: {reason}", path.display());
    let bytes = std::fs::read(path).map_err(|error| named(error.to_string()))?;
    if bytes.len() > MAX_PAYLOAD / 2 {
        return Err(named("too large".to_owned()));
    }
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(named("not an object".to_owned())),
        Err(error) => Err(named(error.to_string())),
    }
}

fn object(frame: &Frame) -> Result<Map<String, Value>, String> {
    frame.object().map_err(|error| error.to_string())
}

/// A text that the guest sent, shortened to what is kept of it.
fn text(value: &Map<String, Value>, key: &str) -> Result<String, String> {
    shortened(value, key, MAX_TEXT)
}

fn shortened(value: &Map<String, Value>, key: &str, most: usize) -> Result<String, String> {
    let text = value.get(key).and_then(Value::as_str).ok_or_else(|| format!("{key} is missing"))?;
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Ok(text.get(..end).unwrap_or_default().to_owned())
}
