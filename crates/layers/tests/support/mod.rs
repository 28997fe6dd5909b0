//! A build machine on the host: loop devices for drives, a socket pair for a stream, a host that starts processes.
// Each test program uses a part of it.
#![allow(dead_code)]

pub mod steps;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use firebuild_layers::{Builder, Settings};
use firebuild_protocol::frame::{read_frame, write_frame};
use firebuild_protocol::{
    Frame, FrameStream, FrameType, ProcessExit, ProcessHost, ProtocolError, SessionOptions, TaskError,
};
use serde_json::{json, Value};

pub struct SocketStream(pub UnixStream);

impl FrameStream for SocketStream {
    fn read_frame(&mut self) -> Result<Frame, ProtocolError> {
        read_frame(&mut self.0)
    }

    fn write_frame(&mut self, frame_type: FrameType, payload: &[u8]) -> Result<(), ProtocolError> {
        write_frame(&mut self.0, frame_type, payload)
    }

    fn try_clone_fd(&self) -> std::io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }
}

/// Starts processes and relays their output; what a peer sends goes to standard input, as vminit does it.
#[derive(Default)]
pub struct Host;

impl ProcessHost for Host {
    fn spawn(&self, command: &mut Command) -> std::io::Result<u32> {
        command.spawn().map(|child| child.id())
    }

    fn wait(&self, _pid: u32) -> std::io::Result<ProcessExit> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn signal(&self, pid: u32, signal: i32, group: bool) -> std::io::Result<()> {
        let target = if group { format!("-{pid}") } else { pid.to_string() };
        Command::new("kill").args([&format!("-{signal}"), "--", &target]).status().map(|_| ())
    }

    fn run_session(
        &self,
        mut command: Command,
        options: SessionOptions,
        stream: &mut dyn FrameStream,
    ) -> Result<ProcessExit, TaskError> {
        let stdin = if options.stdin { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| TaskError::io("start", &error))?;
        let pid = child.id();
        stream.write_frame(FrameType::Reply, format!("{{\"pid\":{pid}}}").as_bytes())?;
        let socket = UnixStream::from(stream.try_clone_fd().map_err(ProtocolError::from)?);
        let writer = Arc::new(Mutex::new(socket.try_clone().expect("clone")));
        let outputs = [
            relay(child.stdout.take(), FrameType::Stdout, &writer),
            relay(child.stderr.take(), FrameType::Stderr, &writer),
        ];
        let gone = watch(socket.try_clone().expect("clone"), &mut child);
        let status = child.wait().expect("wait");
        for output in outputs {
            output.join().expect("relay");
        }
        // The step has ended: whoever waits for the peer's next frame need not any more.
        socket.shutdown(std::net::Shutdown::Read).expect("shutdown");
        if gone.join().expect("watch") && status.signal().is_some() {
            return Err(ProtocolError::Closed.into());
        }
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(ProcessExit { code, signal: status.signal() })
    }
}

fn relay(
    source: Option<impl Read + Send + 'static>,
    frame_type: FrameType,
    writer: &Arc<Mutex<UnixStream>>,
) -> std::thread::JoinHandle<()> {
    let writer = Arc::clone(writer);
    std::thread::spawn(move || {
        let mut source = source.expect("pipe");
        let mut buffer = [0; 65536];
        while let Ok(count) = source.read(&mut buffer) {
            if count == 0 {
                break;
            }
            let _ = write_frame(&mut *writer.lock().expect("lock"), frame_type, &buffer[..count]);
        }
    })
}

/// Feeds input and signals; true when the peer went away while the process ran, which is then killed.
fn watch(mut socket: UnixStream, child: &mut Child) -> std::thread::JoinHandle<bool> {
    let mut input = child.stdin.take();
    let pid = child.id();
    std::thread::spawn(move || loop {
        match read_frame(&mut socket) {
            Ok(frame) if frame.frame_type == FrameType::Stdin && frame.payload.is_empty() => input = None,
            Ok(frame) if frame.frame_type == FrameType::Stdin => {
                if let Some(input) = &mut input {
                    let _ = input.write_all(&frame.payload);
                }
            }
            Ok(frame) if frame.frame_type == FrameType::Signal => {
                let signal = frame.object().expect("object")["signal"].as_i64().expect("signal");
                Host.signal(pid, i32::try_from(signal).expect("signal"), true).expect("sent");
            }
            Ok(_) => {}
            Err(_) => {
                let _ = Command::new("kill").args(["-9", "--", &format!("-{pid}")]).stderr(Stdio::null()).status();
                return true;
            }
        }
    })
}

/// All that a request was answered with.
#[derive(Debug, Default)]
pub struct Answer {
    pub replies: Vec<Value>,
    pub data: Vec<u8>,
    pub stdout: String,
    pub stderr: String,
    pub exit: Option<Value>,
    pub error: Option<(String, String)>,
}

impl Answer {
    pub fn reply(&self) -> &Value {
        assert!(self.error.is_none(), "{:?}", self.error);
        self.replies.last().expect("a reply")
    }

    pub fn code(&self) -> &str {
        &self.error.as_ref().unwrap_or_else(|| panic!("no error: {self:?}")).0
    }
}

/// A build machine with a work disk; everything is gone when it is dropped.
pub struct Bench {
    pub builder: Arc<Builder>,
    pub folder: PathBuf,
    loops: Vec<PathBuf>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Bench {
    /// None, with a notice, where the tests cannot run.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: overlay mounts and loop devices need root");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("fbl{}-{number}", std::process::id()));
        std::fs::create_dir_all(folder.join("dev")).expect("folder");
        std::fs::write(folder.join("resolv.conf"), "nameserver 192.0.2.1\n").expect("resolv.conf");
        let settings = Settings {
            base: folder.join("b"),
            devices: folder.join("dev"),
            step_program: PathBuf::from(env!("CARGO_BIN_EXE_layer-step")),
            resolv_conf: folder.join("resolv.conf"),
            groups: None,
        };
        let mut bench = Self { builder: Arc::new(Builder::new(settings)), folder, loops: Vec::new() };
        bench.add_drive("vda", 400);
        let reply = bench.ok(&json!({"op": "build-setup", "work": "vda"}));
        assert!(reply["free_bytes"].as_u64().expect("number") > 100_000_000);
        Some(bench)
    }

    /// A blank ext4 disk.
    pub fn add_drive(&mut self, name: &str, size_mib: u32) -> PathBuf {
        let image = self.folder.join(format!("{name}.img"));
        run(Command::new("truncate").arg("-s").arg(format!("{size_mib}M")).arg(&image));
        run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-F"]).arg(&image));
        let output = Command::new("losetup").args(["-f", "--show"]).arg(&image).output().expect("losetup");
        assert!(output.status.success(), "{output:?}");
        let device = PathBuf::from(String::from_utf8(output.stdout).expect("text").trim());
        std::os::unix::fs::symlink(&device, self.folder.join("dev").join(name)).expect("link");
        self.loops.push(device.clone());
        device
    }

    pub fn ask(&self, request: &Value, frames: &[(FrameType, &[u8])]) -> Answer {
        ask(&self.builder, request, frames)
    }

    pub fn ok(&self, request: &Value) -> Value {
        self.ask(request, &[]).reply().clone()
    }

    /// A request followed by an archive.
    pub fn send(&self, request: &Value, archive: &[u8]) -> Answer {
        self.ask(request, &data_frames(archive))
    }

    /// Applies an archive as a layer.
    pub fn apply(&self, layer: &str, stack: &[&str], archive: &[u8]) -> Answer {
        let mut request = json!({"op": "layer-apply", "layer": layer});
        if !stack.is_empty() {
            request["stack"] = json!(stack);
        }
        self.send(&request, archive)
    }

    /// The layer as `ls`-like lines: see [`list`].
    pub fn captured(&self, layer: &str) -> Vec<String> {
        let answer = self.ask(&json!({"op": "layer-capture", "layer": layer}), &[]);
        answer.reply();
        list(&answer.data)
    }

    pub fn exported(&self, stack: &[&str]) -> Vec<String> {
        let answer = self.ask(&json!({"op": "tree-export", "stack": stack}), &[]);
        answer.reply();
        list(&answer.data)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.builder.shutdown();
        for device in &self.loops {
            let _ = Command::new("losetup").arg("-d").arg(device).status();
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let left = mounts.lines().filter(|line| line.contains(self.folder.to_str().expect("text"))).count();
        let _ = std::fs::remove_dir_all(&self.folder);
        if !std::thread::panicking() {
            assert_eq!(left, 0, "mounts are left");
        }
    }
}

pub fn data_frames(bytes: &[u8]) -> Vec<(FrameType, &[u8])> {
    let mut frames: Vec<(FrameType, &[u8])> = bytes.chunks(50_000).map(|chunk| (FrameType::Data, chunk)).collect();
    frames.push((FrameType::Data, b""));
    frames
}

/// One request on a stream of its own.
pub fn ask(builder: &Arc<Builder>, request: &Value, frames: &[(FrameType, &[u8])]) -> Answer {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let (builder, request) = (Arc::clone(builder), request.clone());
    let server = std::thread::spawn(move || serve(&builder, &request, theirs));
    let mut writer = ours.try_clone().expect("clone");
    let reader = std::thread::spawn(move || collect(ours));
    for (frame_type, payload) in frames {
        // A request that is refused reads no further.
        if write_frame(&mut writer, *frame_type, payload).is_err() {
            break;
        }
    }
    server.join().expect("served");
    reader.join().expect("read")
}

pub fn serve(builder: &Builder, request: &Value, stream: UnixStream) {
    let mut stream = SocketStream(stream);
    let op = request["op"].as_str().unwrap_or_default().to_owned();
    if let Err(error) = builder.handle(&op, request, &mut stream, &Host) {
        if let Some((code, message)) = error.as_error_frame() {
            let payload = json!({"code": code.as_str(), "message": message}).to_string();
            let _ = stream.write_frame(FrameType::Error, payload.as_bytes());
        }
    }
}

pub fn collect(mut stream: UnixStream) -> Answer {
    let mut answer = Answer::default();
    while let Ok(frame) = read_frame(&mut stream) {
        let object = || Value::Object(frame.object().expect("JSON"));
        let text = || String::from_utf8_lossy(&frame.payload).into_owned();
        match frame.frame_type {
            FrameType::Reply => answer.replies.push(object()),
            FrameType::Data => answer.data.extend_from_slice(&frame.payload),
            FrameType::Stdout => answer.stdout += &text(),
            FrameType::Stderr => answer.stderr += &text(),
            FrameType::Exit => answer.exit = Some(object()),
            FrameType::Error => {
                let error = object();
                let part = |key: &str| error[key].as_str().expect("text").to_owned();
                answer.error = Some((part("code"), part("message")));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    answer
}

pub fn run(command: &mut Command) {
    let output = command.output().expect("started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The archive as another program sees it: one line for each entry, its facts in a fixed form.
pub fn list(archive: &[u8]) -> Vec<String> {
    const SCRIPT: &str = r#"
import sys, tarfile, hashlib
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
    for entry in archive:
        kind = {b"0": "file", b"1": "hard", b"2": "link", b"3": "char", b"4": "block", b"5": "dir", b"6": "fifo"}[entry.type]
        line = f"{kind} {entry.name} {entry.mode:o} {entry.uid}:{entry.gid} {int(entry.mtime)}"
        if kind == "file":
            line += " " + hashlib.sha256(archive.extractfile(entry).read()).hexdigest()[:8] + f" {entry.size}"
        if kind in ("link", "hard"):
            line += " -> " + entry.linkname
        if kind in ("char", "block"):
            line += f" {entry.devmajor},{entry.devminor}"
        for key in sorted(entry.pax_headers):
            if key.startswith("SCHILY.xattr."):
                line += " " + key[13:] + "=" + entry.pax_headers[key].encode("utf-8", "surrogateescape").hex()
        print(line)
"#;
    let mut child = Command::new(python())
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut input = child.stdin.take().expect("pipe");
    let bytes = archive.to_vec();
    let feeder = std::thread::spawn(move || {
        let _ = input.write_all(&bytes);
    });
    let output = child.wait_with_output().expect("listed");
    feeder.join().expect("fed");
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Makes an archive: `script` adds entries with `add(name, type, **fields)` and `data=`.
pub fn archive(script: &str) -> Vec<u8> {
    const PRELUDE: &str = r#"
import io, sys, tarfile
out = io.BytesIO()
archive = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)
def add(name, kind="file", data=b"", xattrs=None, **fields):
    entry = tarfile.TarInfo(name)
    entry.type = {"file": b"0", "hard": b"1", "link": b"2", "char": b"3", "block": b"4", "dir": b"5", "fifo": b"6"}[kind]
    entry.mode = 0o755 if kind == "dir" else 0o644
    entry.mtime = 1000000000
    entry.size = len(data)
    for key, value in fields.items():
        setattr(entry, key, value)
    for key, value in (xattrs or {}).items():
        entry.pax_headers["SCHILY.xattr." + key] = value
    archive.addfile(entry, io.BytesIO(data))
"#;
    let program = format!("{PRELUDE}\n{script}\narchive.close()\nsys.stdout.buffer.write(out.getvalue())\n");
    let output = Command::new(python()).args(["-c", &program]).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub fn python() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python");
    if own.exists() {
        own
    } else {
        PathBuf::from("/usr/bin/python3")
    }
}
