//! The supervisor binary against a scripted VMM: this test plays the guest on the push socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{json, Value};

const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a configuration, and the supervisor that runs on it. Killed and removed when dropped.
struct Machine {
    folder: PathBuf,
    child: Option<Child>,
}

impl Machine {
    fn start(name: &str, script: &str, change: impl FnOnce(&mut Value)) -> Self {
        let folder = std::env::temp_dir().join(format!("fbsup-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("folder");
        let at = |file: &str| folder.join(file).to_str().expect("text").to_owned();
        let boot = json!({"id": "m1", "kind": "run"});
        std::fs::write(folder.join("boot.json"), boot.to_string()).expect("boot document");
        let mut config = json!({
            "id": "m1",
            "vmm": {"argv": ["/bin/sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "netns": null, "cwd": at("")},
            "push_socket": at("v_1025"), "control_socket": at("control"), "boot_document": at("boot.json"),
            "console_log": {"path": at("console.log"), "max_bytes": 65536},
            "output_log": {"path": at("output.log"), "max_bytes": 262_144},
            "vmm_pid_file": at("vmm.pid"), "exit_record": at("exit.json"),
            "on_exit": ["/bin/sh", "-c", format!("echo cleaned; test -s {} && touch {}", at("exit.json"), at("cleaned"))],
            "boot_timeout_ms": null,
        });
        change(&mut config);
        std::fs::write(folder.join("config.json"), config.to_string()).expect("configuration");
        Self { folder, child: None }
    }

    fn at(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Starts the supervisor and returns its ready line.
    fn launch(&mut self) -> Value {
        self.launch_with("", Stdio::null())
    }

    /// `arguments` may name descriptor 8, which is `extra`.
    fn launch_with(&mut self, arguments: &str, extra: Stdio) -> Value {
        let (reader, writer) = std::os::unix::net::UnixStream::pair().expect("pair");
        let number = writer.as_raw_fd();
        // Through a shell, which hands the descriptor over without close-on-exec.
        let command = format!(
            "exec {} --config {} --ready-fd 9 {arguments} 9>&0 8>&1 0</dev/null 1>/dev/null",
            env!("CARGO_BIN_EXE_firebuild-supervisor"),
            self.at("config.json").display()
        );
        assert!(number > 2);
        let child = Command::new("/bin/sh")
            .args(["-c", &command])
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(writer)))
            .stdout(extra)
            .stderr(Stdio::null())
            .spawn()
            .expect("supervisor");
        self.child = Some(child);
        reader.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut text = String::new();
        BufReader::new(reader).read_to_string(&mut text).expect("ready line");
        assert!(text.ends_with('\n'), "{text:?}");
        serde_json::from_str(&text).expect("one JSON line")
    }

    fn control(&self) -> Control {
        let stream = UnixStream::connect(self.at("control")).expect("control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Control { reader: BufReader::new(stream) }
    }

    fn guest(&self) -> Guest {
        let stream = UnixStream::connect(self.at("v_1025")).expect("push socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Guest { stream }
    }

    fn finish(&mut self) -> Value {
        let mut child = self.child.take().expect("running");
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break status;
            }
            assert!(Instant::now() < end, "the supervisor does not end");
            std::thread::yield_now();
        };
        assert!(status.success(), "{status}");
        let text = std::fs::read_to_string(self.at("exit.json")).expect("exit record");
        let record: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(record["id"], "m1");
        for gone in ["v_1025", "control", "vmm.pid"] {
            assert!(!self.at(gone).exists(), "{gone} is left");
        }
        record
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct Control {
    reader: BufReader<UnixStream>,
}

impl Control {
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let count = self.reader.read_line(&mut line).expect("line in time");
        (count > 0).then(|| serde_json::from_str(&line).expect("JSON line"))
    }

    fn wait_for(&mut self, event: &str) -> Value {
        loop {
            let value = self.next().unwrap_or_else(|| panic!("closed before {event}"));
            if value["event"] == event {
                return value;
            }
        }
    }

    fn say(&mut self, value: &Value) {
        self.reader.get_mut().write_all(format!("{value}\n").as_bytes()).expect("written");
    }
}

struct Guest {
    stream: UnixStream,
}

impl Guest {
    fn send(&mut self, kind: u8, payload: &[u8]) {
        self.stream.write_all(&frame(kind, payload)).expect("sent");
    }

    fn boot(&mut self) -> Value {
        let request = json!({"op": "boot", "protocol": 1, "version": "0.1.0", "kernel": "6.1.0", "boot_id": "ab"});
        self.send(1, request.to_string().as_bytes());
        let mut header = [0; 5];
        self.stream.read_exact(&mut header).expect("reply");
        assert_eq!(header[4], 2);
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let mut payload = vec![0; length - 1];
        self.stream.read_exact(&mut payload).expect("payload");
        serde_json::from_slice(&payload).expect("JSON")
    }

    /// Reads until the supervisor closes; the bytes that came.
    fn rest(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset says the same as an end: the connection is closed.
        let _ = self.stream.read_to_end(&mut bytes);
        bytes
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 1).expect("fits");
    [&length.to_be_bytes()[..], &[kind], payload].concat()
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).expect("file")).into_owned()
}

/// A VMM that says a word and lives until its `stop` file appears.
const WAITING: &str = "echo console-word; echo err-word >&2; while ! test -e stop; do sleep 0.05; done; exit 7";

#[test]
fn a_whole_life() {
    let mut machine = Machine::start("life", WAITING, |_| {});
    let started = machine.launch();
    assert_eq!(started["event"], "started");
    let pid = started["vmm_pid"].as_u64().expect("pid");
    assert_eq!(read(&machine.at("vmm.pid")), format!("{pid}\n"));
    let stat = read(Path::new(&format!("/proc/{pid}/stat")));
    let start_time = stat.rsplit_once(')').expect("name").1.split_whitespace().nth(19).expect("field").to_owned();
    assert_eq!(started["vmm_start_time"].to_string(), start_time);
    for socket in ["v_1025", "control"] {
        let mode = std::fs::metadata(machine.at(socket)).expect("socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let mut control = machine.control();
    assert_eq!(control.next().expect("line"), started);
    let mut guest = machine.guest();
    let reply = guest.boot();
    assert_eq!(reply["protocol"], 1);
    assert_eq!(reply["boot"], json!({"id": "m1", "kind": "run"}));
    assert!(reply["clock_ns"].as_u64().expect("clock") > 1_700_000_000_000_000_000);
    assert_eq!(control.wait_for("booted")["kernel"], "6.1.0");
    for name in ["mounts", "network"] {
        guest.send(4, json!({"event": "step", "name": name}).to_string().as_bytes());
        assert_eq!(control.wait_for("step")["name"], name);
    }
    guest.send(4, br#"{"event": "something-newer", "x": [1]}"#);
    guest.send(4, br#"{"event": "ready", "uptime_ms": 1234, "entrypoint_pid": 55}"#);
    assert_eq!(control.wait_for("ready"), json!({"event": "ready", "uptime_ms": 1234, "entrypoint_pid": 55}));
    guest.send(0x11, b"hello\nwor");
    guest.send(0x12, b"bad\n");
    guest.send(0x11, b"ld\nno newline");
    guest.send(0x14, br#"{"code": 3, "signal": null}"#);
    assert_eq!(control.wait_for("exit"), json!({"event": "exit", "code": 3, "signal": null}));
    guest.send(4, br#"{"event": "step", "name": "power-off"}"#);
    assert_eq!(control.wait_for("step")["name"], "power-off");
    // The guest half-closes and waits for the host to close.
    guest.stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
    assert_eq!(guest.rest(), b"");
    let mut late = machine.control();
    let told: Vec<Value> = (0..5).map(|_| late.next().expect("line")).collect();
    let names: Vec<&str> = told.iter().map(|value| value["event"].as_str().expect("name")).collect();
    assert_eq!(names, ["started", "booted", "ready", "exit", "step"]);
    late.say(&json!({"op": "status"}));
    assert_eq!(late.next().expect("status")["state"], "exited");
    std::fs::write(machine.at("stop"), "").expect("stop");
    assert_eq!(control.wait_for("vmm-exit"), json!({"event": "vmm-exit", "status": 7, "signal": null}));
    assert_eq!(control.next(), None);
    let record = machine.finish();
    assert_eq!(record["reason"], "exit");
    assert_eq!(record["guest_exit"], json!({"code": 3, "signal": null}));
    assert_eq!((&record["vmm_status"], &record["vmm_signal"]), (&json!(7), &Value::Null));
    assert!(record["ready_at"].as_str().expect("time") > record["started_at"].as_str().expect("time"));
    assert!(machine.at("cleaned").exists());
    assert_eq!(read(&machine.at("cleanup.log")), "cleaned\n");
    assert_eq!(read(&machine.at("console.log")), "console-word\nerr-word\n");
    let output = read(&machine.at("output.log"));
    let lines: Vec<&str> = output.lines().map(|line| line.split_once(' ').expect("time").1).collect();
    assert_eq!(lines.len(), 4, "{output}");
    assert!(lines.contains(&"stdout F hello") && lines.contains(&"stdout P no newline"), "{output}");
    assert!(lines.contains(&"stderr F bad") && lines.contains(&"stdout F world"), "{output}");
}

#[test]
fn changes_are_told_one_command_at_a_time() {
    let mut machine = Machine::start("health", WAITING, |config| {
        let told = "printf '%s ' \"$@\" >> told; echo >> told; while ! test -e go; do sleep 0.05; done";
        let folder = config["vmm"]["cwd"].as_str().expect("folder").to_owned();
        config["on_change"] = json!(["/bin/sh", "-c", format!("cd {folder}; {told}"), "-"]);
    });
    machine.launch();
    let mut control = machine.control();
    let mut guest = machine.guest();
    guest.boot();
    let tell = |guest: &mut Guest, status: &str, streak: u32, result: Value| {
        let event = json!({"event": "health", "status": status, "failing_streak": streak, "result": result});
        guest.send(4, event.to_string().as_bytes());
    };
    tell(&mut guest, "starting", 0, Value::Null);
    tell(&mut guest, "healthy", 0, json!({"code": 0, "duration_ms": 1500, "output": "x".repeat(5000)}));
    let (first, second) = (control.wait_for("health"), control.wait_for("health"));
    assert_eq!((&first["status"], &first["result"]), (&json!("starting"), &Value::Null));
    assert_eq!(second["result"]["output"].as_str().expect("text").len(), 4096);
    assert!(second["result"]["start"].as_str().expect("time") < second["result"]["end"].as_str().expect("time"));
    // While the first command is at work others wait; then only the last state is told.
    wait_for_text(&machine.at("told"), "--health healthy \n");
    tell(&mut guest, "unhealthy", 3, json!({"code": 1, "duration_ms": 1, "output": ""}));
    guest.send(4, br#"{"event": "restart", "count": 1, "code": 3, "signal": null}"#);
    tell(&mut guest, "starting", 0, Value::Null);
    control.wait_for("restart");
    assert_eq!(control.wait_for("health")["status"], "starting");
    std::fs::write(machine.at("go"), "").expect("go");
    wait_for_text(&machine.at("told"), "--health healthy \n--restarts 1 --health starting \n");
    control.say(&json!({"op": "status"}));
    let health = json!({"status": "starting", "failing_streak": 0, "results": []});
    assert_eq!(control.wait_for("status")["health"], health);
    for bad in [
        json!({"status": "well", "failing_streak": 0}),
        json!({"status": "healthy"}),
        json!({"status": "healthy", "failing_streak": 0, "result": {"code": 256, "duration_ms": 0, "output": ""}}),
        json!({"status": "healthy", "failing_streak": 0, "result": {"code": 0, "duration_ms": -1, "output": ""}}),
        json!({"status": "healthy", "failing_streak": 0, "result": {"code": 0, "duration_ms": 0}}),
    ] {
        let mut hostile = machine.guest();
        hostile.boot();
        let mut event = bad;
        event["event"] = json!("health");
        hostile.send(4, event.to_string().as_bytes());
        control.wait_for("violation");
    }
    std::fs::write(machine.at("stop"), "").expect("stop");
    assert_eq!(machine.finish()["health"], health);
}

fn wait_for_text(path: &Path, text: &str) {
    let end = Instant::now() + PATIENCE;
    while std::fs::read_to_string(path).unwrap_or_default() != text {
        assert!(Instant::now() < end, "{} is not {text:?}", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn hostile_pushes_are_closed_and_a_good_one_still_works() {
    let mut machine = Machine::start("hostile", WAITING, |_| {});
    machine.launch();
    let mut control = machine.control();
    let request = json!({"op": "boot", "protocol": 2, "version": "x", "kernel": "y", "boot_id": "z"}).to_string();
    let deep = format!("{{\"op\":{}1{}}}", "[".repeat(64), "]".repeat(64));
    let duplicate = br#"{"op":"boot","op":"boot","protocol":1,"version":"","kernel":"","boot_id":""}"#;
    let first: Vec<Vec<u8>> = vec![
        vec![0xff; 5],                      // a length bomb
        vec![0, 0, 0, 0],                   // a length of zero
        frame(0x77, b"x"),                  // an unknown type
        frame(0x11, b"output before boot"), // a frame in the wrong state
        frame(1, b"{not json"),
        frame(1, deep.as_bytes()),
        frame(1, duplicate),
        frame(1, request.as_bytes()), // another protocol version
        frame(1, br#"{"op":"exec"}"#),
        frame(2, b"{}"),
    ];
    for bytes in first {
        let mut guest = machine.guest();
        guest.stream.write_all(&bytes).expect("sent");
        control.wait_for("violation");
        let answer = guest.rest();
        assert_eq!(answer.get(4), Some(&3), "{bytes:?} is answered with ERROR");
    }
    // Partial frames: the connection may stay open, but it holds up nobody; when it goes nothing remains.
    let mut partial: Vec<Guest> = (0..5).map(|_| machine.guest()).collect();
    for (index, guest) in partial.iter_mut().enumerate() {
        guest.stream.write_all(&frame(1, &[b' '; 100])[..3 + index]).expect("sent");
    }
    // A slow drip of one byte at a time, as a good guest on a slow host may send, is served.
    let boot = json!({"op": "boot", "protocol": 1, "version": "v", "kernel": "k", "boot_id": "b"}).to_string();
    let mut slow = machine.guest();
    for byte in frame(1, boot.as_bytes()) {
        slow.stream.write_all(&[byte]).expect("sent");
        std::thread::yield_now();
    }
    control.wait_for("booted");
    drop(partial);
    for bad in [
        frame(0x11, b""),
        frame(4, br#"{"event":"ready"}"#),
        frame(0x14, br#"{"code":1000,"signal":null}"#),
        frame(0x14, br#"{"code":0,"signal":"x"}"#),
        [frame(4, br#"{"event":"ready","uptime_ms":1}"#), frame(4, br#"{"event":"ready","uptime_ms":1}"#)].concat(),
        [frame(0x14, br#"{"code":0,"signal":null}"#), frame(0x11, b"after the end")].concat(),
    ] {
        let mut guest = machine.guest();
        guest.boot();
        guest.stream.write_all(&bad).expect("sent");
        control.wait_for("violation");
        guest.rest();
    }
    let mut good = machine.guest();
    good.boot();
    good.send(0x11, b"still here\n");
    good.send(0x14, br#"{"code":0,"signal":null}"#);
    std::fs::write(machine.at("stop"), "").expect("stop");
    machine.finish();
    assert!(read(&machine.at("output.log")).contains("still here"));
    assert!(read(&machine.at("console.log")).contains("push stream closed"));
}

#[test]
fn a_flood_is_bounded_and_connections_are_limited() {
    let flood = "head -c 3000000 /dev/zero | tr '\\0' x; while ! test -e stop; do sleep 0.05; done";
    let mut machine = Machine::start("flood", flood, |_| {});
    machine.launch();
    let mut idle = machine.control();
    let mut guest = machine.guest();
    guest.boot();
    let chunk = vec![b'y'; 500_000];
    for _ in 0..20 {
        guest.send(0x11, &chunk);
    }
    for number in 0..20_000 {
        guest.send(4, json!({"event": "step", "name": format!("{number} {}", "n".repeat(100))}).to_string().as_bytes());
    }
    guest.send(4, br#"{"event":"ready","uptime_ms":1}"#);
    // A client that does not read is dropped and holds up nobody; what it was sent before that is there to read.
    let mut control = machine.control();
    control.wait_for("ready");
    while idle.next().is_some_and(|value| value["event"] != "ready") {}
    assert_eq!(idle.next(), None);
    let crowd: Vec<Guest> = (0..20).map(|_| machine.guest()).collect();
    control.wait_for("violation");
    drop(crowd);
    std::fs::write(machine.at("stop"), "").expect("stop");
    machine.finish();
    for (file, limit) in [("console.log", 65_536), ("output.log", 262_144)] {
        for name in [file.to_owned(), format!("{file}.1")] {
            let size = std::fs::metadata(machine.at(&name)).expect("log").size();
            assert!(size <= limit, "{name}: {size}");
        }
    }
}

#[test]
fn a_guest_that_is_never_ready_is_killed() {
    let mut machine = Machine::start("timeout", WAITING, |config| config["boot_timeout_ms"] = json!(200));
    machine.launch();
    let mut control = machine.control();
    assert_eq!(control.wait_for("vmm-exit")["signal"], 9);
    let record = machine.finish();
    assert_eq!(record["reason"], "boot-timeout");
    assert_eq!((&record["vmm_signal"], &record["guest_exit"]), (&json!(9), &Value::Null));
}

#[test]
fn kill_by_a_client_and_by_sigterm() {
    let mut machine = Machine::start("kill", WAITING, |_| {});
    machine.launch();
    machine.control().say(&json!({"op": "kill"}));
    assert_eq!(machine.finish()["reason"], "killed");

    let mut machine = Machine::start("term", WAITING, |_| {});
    machine.launch();
    let pid = machine.child.as_ref().expect("running").id();
    assert!(Command::new("kill").args(["-TERM", &pid.to_string()]).status().expect("kill").success());
    let record = machine.finish();
    assert_eq!((&record["reason"], &record["vmm_signal"]), (&json!("killed"), &json!(9)));
}

#[test]
fn a_guest_that_fails_is_recorded() {
    let mut machine = Machine::start("failed", WAITING, |_| {});
    machine.launch();
    let mut guest = machine.guest();
    guest.boot();
    guest.send(4, br#"{"event":"failed","code":"io","message":"no root"}"#);
    machine.control().wait_for("failed");
    std::fs::write(machine.at("stop"), "").expect("stop");
    let record = machine.finish();
    assert_eq!(record["failed"], json!({"code": "io", "message": "no root"}));
    assert_eq!(record["reason"], "exit");
}

#[test]
fn a_daemonizing_jailer_is_waited_for_and_leftovers_are_killed() {
    let daemon = "setsid sh -c 'while ! test -e stop; do sleep 0.05; done; exit 5' & exit 0";
    let mut machine = Machine::start("daemon", daemon, |_| {});
    let jailer = machine.launch()["vmm_pid"].clone();
    let mut guest = machine.guest();
    let mut control = machine.control();
    // The second "started" names the process that came to us as an orphan.
    while control.wait_for("started")["vmm_pid"] == jailer {}
    guest.boot();
    std::fs::write(machine.at("stop"), "").expect("stop");
    assert_eq!(machine.finish()["vmm_status"], 5);

    let leftover = "sh -c 'echo $$ > left; exec sleep 1000' & while ! test -e left; do sleep 0.05; done; exit 9";
    let mut machine = Machine::start("left", leftover, |_| {});
    machine.launch();
    assert_eq!(machine.finish()["vmm_status"], 9);
    let pid = read(&machine.at("left"));
    assert!(!Path::new("/proc").join(pid.trim()).exists());
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change, &str); 5] = [
        ("none", |config| config["vmm"]["argv"] = json!(["/does/not/exist"]), "/does/not/exist"),
        ("netns", |config| config["vmm"]["netns"] = json!("/does/not/exist/netns"), "network namespace"),
        ("boot", |config| config["boot_document"] = json!("/does/not/exist.json"), "boot document"),
        ("key", |config| config["surprise"] = json!(1), "surprise"),
        ("long", |config| config["control_socket"] = json!("/".repeat(200)), "107"),
    ];
    for (name, change, expected) in cases {
        let mut machine = Machine::start(name, WAITING, change);
        let line = machine.launch();
        assert_eq!(line["event"], "error");
        assert!(line["message"].as_str().expect("message").contains(expected), "{line}");
        let status = machine.child.take().expect("child").wait().expect("wait");
        assert_eq!(status.code(), Some(1));
        assert!(!machine.at("v_1025").exists() && !machine.at("control").exists());
    }
}

#[test]
fn the_vmm_runs_in_its_network_namespace() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: making a network namespace needs root");
        return;
    }
    let mut holder = Command::new("unshare")
        .args(["--net", "sh", "-c", "echo up; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut line = String::new();
    BufReader::new(holder.stdout.take().expect("pipe")).read_line(&mut line).expect("up");
    let namespace = format!("/proc/{}/ns/net", holder.id());
    let expected = std::fs::read_link(&namespace).expect("link");
    let show = "readlink /proc/self/ns/net; ls -l /proc/self/fd | wc -l";
    let mut machine = Machine::start("netns", show, |config| config["vmm"]["netns"] = json!(namespace));
    machine.launch();
    machine.finish();
    holder.kill().expect("killed");
    holder.wait().expect("waited");
    let console = read(&machine.at("console.log"));
    // Descriptors 0 to 2, the folder that ls reads, and its "total" line: nothing else was inherited.
    assert_eq!(console, format!("{}\n5\n", expected.display()));
}

#[test]
fn the_vmm_dies_with_its_supervisor() {
    let mut machine = Machine::start("pdeath", WAITING, |_| {});
    let pid = machine.launch()["vmm_pid"].as_u64().expect("pid");
    let mut child = machine.child.take().expect("running");
    child.kill().expect("killed");
    assert_eq!(child.wait().expect("waited").signal(), Some(9));
    let end = Instant::now() + PATIENCE;
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    };
    while alive() {
        assert!(Instant::now() < end, "the VMM lives on");
        std::thread::yield_now();
    }
}

#[test]
fn a_machine_ends_with_its_owner() {
    let mut machine = Machine::start("owner", "exec sleep 600", |_| {});
    let (owner, supervisors_end) = UnixStream::pair().expect("pair");
    machine.launch_with("--owner-fd 8", Stdio::from(std::os::fd::OwnedFd::from(supervisors_end)));
    drop(owner);
    let record = machine.finish();
    assert_eq!(record["reason"], "owner-gone");
    assert!(machine.at("cleaned").exists(), "on_exit did not run");
}

#[test]
fn a_living_owner_cleans_up_itself() {
    let mut machine = Machine::start("owned", "exit 0", |_| {});
    let (owner, supervisors_end) = UnixStream::pair().expect("pair");
    machine.launch_with("--owner-fd 8", Stdio::from(std::os::fd::OwnedFd::from(supervisors_end)));
    let record = machine.finish();
    assert_eq!(record["reason"], "exit");
    assert!(!machine.at("cleaned").exists(), "on_exit ran although its owner lives");
    drop(owner);
}

#[test]
fn a_released_machine_outlives_its_owner() {
    let mut machine = Machine::start("released", "exec sleep 600", |_| {});
    let (mut owner, supervisors_end) = UnixStream::pair().expect("pair");
    machine.launch_with("--owner-fd 8", Stdio::from(std::os::fd::OwnedFd::from(supervisors_end)));
    owner.write_all(b"r").expect("released");
    drop(owner);
    let mut control = machine.control();
    control.say(&json!({"op": "status"}));
    assert_eq!(control.wait_for("status")["id"], "m1");
    control.say(&json!({"op": "kill"}));
    let record = machine.finish();
    assert_eq!(record["reason"], "killed");
    assert!(machine.at("cleaned").exists(), "on_exit did not run");
}

#[test]
fn a_client_that_promised_to_clean_up_is_waited_for_and_replaced_if_it_goes() {
    for (name, keeps) in [("kept", true), ("broken", false)] {
        let mut machine = Machine::start(name, WAITING, |_| {});
        machine.launch();
        let (mut bystander, mut client) = (machine.control(), machine.control());
        client.say(&json!({"op": "clean"}));
        client.say(&json!({"op": "status"}));
        client.wait_for("status");
        std::fs::write(machine.at("stop"), "").expect("stop");
        client.wait_for("vmm-exit");
        bystander.wait_for("vmm-exit");
        // It is still there for the client: it answers.
        client.say(&json!({"op": "status"}));
        assert_eq!(client.wait_for("status")["vmm_pid"], Value::Null);
        assert!(!machine.at("cleaned").exists(), "on_exit ran although a client had promised to clean up");
        if keeps {
            client.say(&json!({"op": "cleaned"}));
        }
        drop(client);
        assert_eq!(bystander.next(), None);
        assert_eq!(machine.finish()["reason"], "exit");
        assert_eq!(machine.at("cleaned").exists(), !keeps, "{name}");
    }
}
