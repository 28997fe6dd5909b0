//! layer-run: a real process on a stack, what it sees, what it leaves, how it ends.

mod support;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use firebuild_protocol::frame::{read_frame, write_frame};
use firebuild_protocol::FrameType;
use serde_json::{json, Value};
use support::steps::{bench, changed, host_tree, names, step};
use support::{archive, collect, serve, Bench};

#[test]
fn output_exit_codes_and_signals() {
    let Some(bench) = bench() else { return };
    let answer = bench.ask(&step("l1", "echo out; echo err >&2; exit 3"), &[]);
    assert!(answer.reply()["pid"].as_u64().expect("pid") > 1);
    assert_eq!((answer.stdout.as_str(), answer.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(answer.exit, Some(json!({"code": 3, "signal": null})));
    assert_eq!(bench.captured("l1"), Vec::<String>::new());
    let answer = bench.ask(&step("l2", "kill -TERM $$"), &[]);
    assert_eq!(answer.exit, Some(json!({"code": 143, "signal": 15})));
    let answer = bench.ask(&step("l3", "kill -KILL $$"), &[]);
    assert_eq!(answer.exit, Some(json!({"code": 137, "signal": 9})));
}

#[test]
fn what_a_step_sees() {
    let Some(bench) = bench() else { return };
    let script = "id; hostname; cat /etc/resolv.conf /etc/hosts; readlink /proc/self/ns/pid; echo pid $$; pwd; \
        echo $HOME $PATH; ls /dev; grep Cap /proc/self/status; touch /sys/x 2>/dev/null || echo ro; \
        echo x > /dev/null; stat -c %a /dev/shm /dev/null; umask; ls -A /tmp; mount -t tmpfs x /tmp || echo no mount";
    let answer = bench.ask(&step("l1", script), &[]);
    let text = &answer.stdout;
    let host_pid_namespace = std::fs::read_link("/proc/self/ns/pid").expect("link");
    for expected in [
        "uid=0(root) gid=0(root) groups=0(root)\n",
        "\nbuildkitsandbox\nnameserver 192.0.2.1\n",
        "localhost buildkitsandbox",
        "\npid 2\n/\n/root /usr/bin:/bin\n",
        "core\nfd\nfull\n",
        "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n",
        "\nro\n1777\n666\n0022\n",
        "no mount",
    ] {
        assert!(text.contains(expected), "{expected:?} in\n{text}\n{}", answer.stderr);
    }
    assert!(!text.contains(host_pid_namespace.to_str().expect("text")));
    assert_eq!(bench.captured("l1"), Vec::<String>::new());

    let request = changed(
        &step("l2", "id; pwd; echo $HOME; echo mine > /work/it/file || true; grep CapEff /proc/self/status; echo $A"),
        &[
            ("user", json!("user")),
            ("workdir", json!("/work/it")),
            ("hostname", json!("other")),
            ("env", json!(["A=b c"])),
        ],
    );
    let answer = bench.ask(&request, &[]);
    let expected = "uid=1000(user) gid=1001(user) groups=1001(user),50(extra)\n/work/it\n/home/user\n\
        CapEff:\t0000000000000000\nb c\n";
    assert_eq!(answer.stdout, expected, "{}", answer.stderr);
    assert_eq!(names(&bench.captured("l2")), ["work", "work/it"]);
}

#[test]
fn what_a_step_leaves() {
    let Some(bench) = bench() else { return };
    let script = "rm /plain; rm -r /var/data; mkdir /var/data; echo new > /var/data/new; echo changed > /script; \
        ln /script /second; touch /dev/shm/x /proc/x 2>/dev/null; mkdir -m 2750 /made; \
        echo nameserver 1.1.1.1 > /etc/resolv.conf; true";
    let answer = bench.ask(&step("l1", script), &[]);
    assert_eq!(answer.exit, Some(json!({"code": 0, "signal": null})), "{}", answer.stderr);
    let lines = bench.captured("l1");
    let expected =
        [".wh.plain", "made", "script", "second", "var", "var/data", "var/data/.wh..wh..opq", "var/data/new"];
    // Which of two names comes first is a matter of sorting; that both are one file is not.
    assert_eq!(names(&lines), expected, "{lines:#?}");
    assert!(lines[1].starts_with("dir made 2750 0:0"), "{lines:#?}");
    assert!(lines[3].ends_with("-> script"), "{lines:#?}");
    // A new directory that hides nothing is not marked opaque.
    let request =
        changed(&step("l2", "mkdir -p /fresh/deep; rm -r /fresh/deep /made"), &[("stack", json!(["l1", "b0"]))]);
    assert_eq!(bench.ask(&request, &[]).exit, Some(json!({"code": 0, "signal": null})));
    assert_eq!(names(&bench.captured("l2")), [".wh.made", "fresh"]);
}

#[test]
fn mount_points_that_are_missing_leave_no_trace() {
    let Some(bench) = Bench::new() else { return };
    let full = bench.apply("b0", &[], &host_tree());
    full.reply();
    let bare = archive(
        r#"
for name in (".wh.proc", ".wh.sys", ".wh.dev", "etc/.wh.hosts", "etc/.wh.resolv.conf"):
    add(name)
add("etc/resolv.conf", "link", linkname="../run/systemd/resolve/stub-resolv.conf")
"#,
    );
    bench.apply("b1", &["b0"], &bare).reply();
    let on = |layer: &str, script: &str| changed(&step(layer, script), &[("stack", json!(["b1", "b0"]))]);
    let look = "cat /etc/resolv.conf; grep -c localhost /etc/hosts; ls /proc/self/status; ls -d /run/systemd/resolve";
    let answer = bench.ask(&on("l1", look), &[]);
    assert_eq!(
        answer.stdout, "nameserver 192.0.2.1\n2\n/proc/self/status\n/run/systemd/resolve\n",
        "{}",
        answer.stderr
    );
    assert_eq!(bench.captured("l1"), Vec::<String>::new());
    // What the step itself puts beside them stays.
    let answer = bench.ask(&on("l2", "echo mine > /run/systemd/mine; echo x > /etc/mine"), &[]);
    assert_eq!(answer.exit, Some(json!({"code": 0, "signal": null})));
    assert_eq!(names(&bench.captured("l2")), ["etc", "etc/mine", "run", "run/systemd", "run/systemd/mine"]);
}

#[test]
fn a_ca_bundle_is_there_for_the_step_alone() {
    let Some(bench) = bench() else { return };
    let request = |layer: &str, stack: Value, script: &str| {
        changed(&step(layer, script), &[("ca_bundle", json!("PEM\n")), ("stack", stack)])
    };
    let answer = bench.ask(&request("l1", json!(["b0"]), "cat /etc/ssl/certs/ca-certificates.crt"), &[]);
    assert_eq!(answer.stdout, "PEM\n", "{}", answer.stderr);
    assert_eq!(bench.captured("l1"), Vec::<String>::new());
    // A package that installs its own bundle replaces ours by a rename, and that stays.
    let install = "echo theirs > /etc/ssl/certs/new && mv /etc/ssl/certs/new /etc/ssl/certs/ca-certificates.crt";
    let answer = bench.ask(&request("l2", json!(["b0"]), install), &[]);
    assert_eq!(answer.exit, Some(json!({"code": 0, "signal": null})), "{}", answer.stderr);
    assert_eq!(names(&bench.captured("l2")), ["etc", "etc/ssl", "etc/ssl/certs", "etc/ssl/certs/ca-certificates.crt"]);
    let answer = bench.ask(&request("l3", json!(["l2", "b0"]), "cat /etc/ssl/certs/ca-certificates.crt"), &[]);
    assert_eq!(answer.stdout, "PEM\n");
    assert_eq!(bench.captured("l3"), Vec::<String>::new());
    let answer = bench.ask(&changed(&step("l4", "cat /etc/ssl/certs/*"), &[("stack", json!(["l3", "l2", "b0"]))]), &[]);
    assert_eq!(answer.stdout, "theirs\n");
}

#[test]
fn steps_that_cannot_start() {
    let Some(bench) = bench() else { return };
    let base = step("l1", "true");
    let cases = [
        (vec![("argv", json!(["nothing-here"]))], "not-found"),
        (vec![("argv", json!(["/nothing/here"]))], "not-found"),
        (vec![("argv", json!(["/plain"]))], "not-executable"),
        (vec![("argv", json!([]))], "bad-request"),
        (vec![("user", json!("nobody-here"))], "no-such-user"),
        (vec![("workdir", json!("/plain/x"))], "not-a-directory"),
        (vec![("workdir", json!("relative"))], "bad-request"),
        (vec![("env", json!(["novalue"]))], "bad-request"),
        (vec![("mounts", json!([{"type": "cache"}]))], "bad-request"),
        (vec![("network", json!("host"))], "bad-request"),
        (vec![("hostname", json!("a b"))], "bad-request"),
        (vec![("stack", json!(["nope"]))], "not-found"),
    ];
    for (changes, expected) in cases {
        let answer = bench.ask(&changed(&base, &changes), &[]);
        assert_eq!(answer.code(), expected, "{changes:?}");
        assert_eq!(bench.ask(&json!({"op": "layer-drop", "layer": "l1"}), &[]).code(), "not-found");
    }
    let answer = bench.ask(&changed(&base, &[("argv", json!(["script"])), ("env", json!(["PATH=/"]))]), &[]);
    assert_eq!(answer.stdout, "script /script\n", "{}", answer.stderr);
}

#[test]
fn everything_that_a_step_started_dies_with_it() {
    let Some(bench) = bench() else { return };
    let marker = format!("{}", 7_000_000 + std::process::id());
    let answer = bench.ask(&step("l1", &format!("sleep {marker} >/dev/null 2>&1 & echo started")), &[]);
    assert_eq!(answer.stdout, "started\n");
    assert!(!is_running(&marker));
    // The peer goes away in the middle: the step is killed, its layer is gone.
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let builder = Arc::clone(&bench.builder);
    let request = step("l2", &format!("trap '' TERM HUP; echo up; sleep {marker}; sleep {marker}"));
    let server = std::thread::spawn(move || serve(&builder, &request, theirs));
    let mut stream = ours;
    while read_frame(&mut stream).expect("frame").frame_type != FrameType::Stdout {}
    drop(stream);
    server.join().expect("served");
    assert!(!is_running(&marker));
    assert_eq!(bench.ask(&json!({"op": "layer-capture", "layer": "l2"}), &[]).code(), "not-found");
}

fn is_running(marker: &str) -> bool {
    let entries = std::fs::read_dir("/proc").expect("proc").flatten();
    entries.into_iter().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|word| word == marker)
    })
}

#[test]
fn input_and_signals_reach_the_step() {
    let Some(bench) = bench() else { return };
    let request = changed(&step("l1", "cat; echo end"), &[("stdin", json!(true))]);
    let answer = bench.ask(&request, &[(FrameType::Stdin, b"given"), (FrameType::Stdin, b"")]);
    assert_eq!(answer.stdout, "givenend\n");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let builder = Arc::clone(&bench.builder);
    let request = step("l2", "trap 'echo caught; exit 5' USR1; echo up; while true; do sleep 0.05; done");
    let server = std::thread::spawn(move || serve(&builder, &request, theirs));
    let mut stream = ours;
    while read_frame(&mut stream).expect("frame").frame_type != FrameType::Stdout {}
    write_frame(&mut stream, FrameType::Signal, br#"{"signal":10}"#).expect("sent");
    let answer = collect(stream);
    server.join().expect("served");
    assert_eq!((answer.stdout.as_str(), answer.exit), ("caught\n", Some(json!({"code": 5, "signal": null}))));
}

#[test]
fn a_step_without_network_has_only_loopback() {
    let Some(bench) = bench() else { return };
    let script = "ls /sys/class/net; cat /sys/class/net/lo/operstate /proc/net/dev | grep -c :";
    let answer = bench.ask(&changed(&step("l1", script), &[("network", json!("none"))]), &[]);
    assert_eq!(answer.stdout, "lo\n1\n", "{}", answer.stderr);
}

#[test]
fn steps_run_at_once_and_a_layer_in_use_is_not_dropped() {
    let Some(bench) = bench() else { return };
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let builder = Arc::clone(&bench.builder);
    let request = changed(&step("slow", "echo up; cat"), &[("stdin", json!(true))]);
    let server = std::thread::spawn(move || serve(&builder, &request, theirs));
    let mut stream = ours;
    while read_frame(&mut stream).expect("frame").frame_type != FrameType::Stdout {}
    for (request, expected) in [
        (json!({"op": "layer-drop", "layer": "b0"}), "busy"),
        (json!({"op": "layer-drop", "layer": "slow"}), "busy"),
        (json!({"op": "layer-capture", "layer": "slow"}), "busy"),
        (json!({"op": "layer-apply", "layer": "slow"}), "exists"),
    ] {
        assert_eq!(bench.ask(&request, &[]).code(), expected, "{request}");
    }
    let threads: Vec<_> = (0..6)
        .map(|number| {
            let builder = Arc::clone(&bench.builder);
            let request = step(&format!("p{number}"), &format!("echo {number} > /file; sleep 0.2; cat /file"));
            std::thread::spawn(move || support::ask(&builder, &request, &[]))
        })
        .collect();
    for (number, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().expect("ran").stdout, format!("{number}\n"));
    }
    write_frame(&mut stream, FrameType::Stdin, b"").expect("sent");
    assert_eq!(collect(stream).exit, Some(json!({"code": 0, "signal": null})));
    server.join().expect("served");
    bench.ok(&json!({"op": "layer-drop", "layer": "slow"}));
    bench.ok(&json!({"op": "layer-drop", "layer": "b0"}));
}
