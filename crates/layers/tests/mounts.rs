//! A step's mounts: what it sees of stacks, caches, memory, secrets and agents, and that none of it reaches its layer.

mod support;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use firebuild_protocol::frame::{read_frame, write_frame};
use firebuild_protocol::FrameType;
use serde_json::{json, Value};
use support::steps::{bench, changed, names, step};
use support::{archive, collect, data_frames, serve, Answer, Bench};

const CANARY: &str = "canary-7f3a";

fn mounted(layer: &str, mounts: Value, script: &str) -> Value {
    changed(&step(layer, script), &[("mounts", mounts)])
}

fn ran(answer: &Answer) -> &str {
    assert_eq!(answer.exit, Some(json!({"code": 0, "signal": null})), "{answer:?}");
    &answer.stdout
}

fn run(bench: &Bench, layer: &str, mounts: Value, script: &str) -> String {
    ran(&bench.ask(&mounted(layer, mounts, script), &[])).to_owned()
}

#[test]
fn a_bind_shows_another_stack_and_keeps_no_writes() {
    let Some(bench) = bench() else { return };
    let tree = r#"
add("out", "dir", mode=0o750, uid=7)
add("out/app", data=b"app", mode=0o755)
add("out/to", "link", linkname="/out/app")
add("abs", "link", linkname="/out")
"#;
    bench.apply("s1", &[], &archive(tree)).reply();
    let mount = |more: &[(&str, Value)]| {
        json!([changed(&json!({"type": "bind", "target": "/mnt/x", "stack": ["s1"], "source": "/abs"}), more)])
    };
    let look = "stat -c '%a %u' /mnt/x; cat /mnt/x/app; touch /mnt/x/new 2>/dev/null || echo ro; ls -A /mnt";
    assert_eq!(run(&bench, "l1", mount(&[]), look), "750 7\nappro\nx\n");
    assert_eq!(bench.captured("l1"), Vec::<String>::new());
    let write = "echo new > /mnt/x/app; rm /mnt/x/to; touch /mnt/x/more /mine; cat /mnt/x/app; ls /mnt/x";
    let writable = mount(&[("read_only", json!(false))]);
    assert_eq!(run(&bench, "l2", writable.clone(), write), "new\napp\nmore\n");
    assert_eq!(names(&bench.captured("l2")), ["mine"]);
    assert_eq!(run(&bench, "l3", writable, "cat /mnt/x/app; ls /mnt/x"), "appapp\nto\n");
    // A file, a link to one, over a file of the tree and in a folder that is not there.
    let file = json!([{"type": "bind", "target": "/script", "stack": ["s1"], "source": "/out/to"},
        {"type": "bind", "target": "/deep/down/app", "stack": ["s1"], "source": "/out/app"}]);
    assert_eq!(run(&bench, "l4", file, "cat /script /deep/down/app; echo; ls /deep"), "appapp\ndown\n");
    assert_eq!(bench.captured("l4"), Vec::<String>::new());
    // The stack is in use only while the step runs.
    bench.ok(&json!({"op": "layer-drop", "layer": "s1"}));
    let nothing = json!([{"type": "bind", "target": "/mnt", "stack": []}]);
    assert_eq!(run(&bench, "l5", nothing, "ls -A /mnt"), "");
}

#[test]
fn binds_that_cannot_be() {
    let Some(bench) = bench() else { return };
    bench.apply("s1", &[], &archive("add('dir', 'dir')\nadd('file')\nadd('pipe', 'fifo')")).reply();
    let bind =
        |target: &str, source: &str| json!({"type": "bind", "target": target, "stack": ["s1"], "source": source});
    for (mounts, expected) in [
        (json!([bind("/x", "/nope")]), "not-found"),
        (json!([bind("/x", "/file/x")]), "not-a-directory"),
        (json!([bind("/x", "/pipe")]), "bad-request"),
        (json!([bind("/script", "/dir")]), "not-a-directory"),
        (json!([bind("/var", "/file")]), "not-a-directory"),
        (json!([bind("/", "/dir")]), "bad-request"),
        (json!([bind("/a/../..", "/dir")]), "bad-request"),
        (json!([bind("x", "/dir")]), "bad-request"),
        (json!([{"type": "bind", "target": "/x", "stack": ["nope"]}]), "not-found"),
        (json!([{"type": "bind", "target": "/x"}]), "bad-request"),
        (json!([{"type": "bind", "target": "/x", "stack": [], "wat": 1}]), "bad-request"),
        (json!([{"type": "npipe", "target": "/x"}]), "bad-request"),
        (json!([{"type": "secret"}]), "bad-request"),
        (json!([{"type": "secret", "env": "A=B"}]), "bad-request"),
        (json!([{"type": "cache", "target": "/x", "drive": "vdz"}]), "not-found"),
        (json!([{"type": "cache", "target": "/x", "drive": "../vda"}]), "bad-request"),
    ] {
        let answer = bench.ask(&mounted("l1", mounts.clone(), "true"), &data_frames(b""));
        assert_eq!(answer.code(), expected, "{mounts} {answer:?}");
        assert_eq!(bench.ask(&json!({"op": "layer-drop", "layer": "l1"}), &[]).code(), "not-found");
    }
}

#[test]
fn memory_and_mounts_inside_mounts() {
    let Some(bench) = bench() else { return };
    bench.apply("s1", &[], &archive("add('inner', data=b'inner')")).reply();
    let mounts = json!([
        {"type": "bind", "target": "/var/data/deep/file", "stack": ["s1"], "source": "/inner"},
        {"type": "tmpfs", "target": "/var/data", "size_bytes": 1 << 20},
        {"type": "tmpfs", "target": "/made/here"},
        {"type": "tmpfs", "target": "/dev/more"},
        {"type": "tmpfs", "target": "/tmp", "read_only": true},
    ]);
    let script = "cat /var/data/deep/file; echo; ls /var/data; stat -c %a /made/here /var/data /dev/more; \
        touch /tmp/x 2>/dev/null || echo ro; grep -c ' /var/data tmpfs .*size=1024k' /proc/self/mounts; \
        touch /var/data/x /made/here/x /dev/more/x /kept";
    assert_eq!(run(&bench, "l1", mounts, script), "inner\ndeep\n1777\n755\n1777\nro\n1\n");
    assert_eq!(names(&bench.captured("l1")), ["kept"]);
    // In a read-only mount no mount point can be made.
    let mounts = json!([{"type": "bind", "target": "/x", "stack": ["s1"]}, {"type": "tmpfs", "target": "/x/y"}]);
    let answer = bench.ask(&mounted("l2", mounts, "true"), &[]);
    assert!(answer.error.as_ref().expect("refused").1.contains("/x/y"), "{answer:?}");
    assert_eq!(bench.ask(&json!({"op": "layer-drop", "layer": "l2"}), &[]).code(), "not-found");
}

#[test]
fn a_program_may_lie_in_a_mount() {
    let Some(bench) = bench() else { return };
    let script = "add('tools', 'dir')\nadd('tools/hi', data=b'#!/bin/sh\\necho hi $0\\n', mode=0o755)\nadd('tools/no')";
    bench.apply("s1", &[], &archive(script)).reply();
    let mounts = json!([{"type": "bind", "target": "/dev/pipes", "stack": ["s1"], "source": "/tools"}]);
    let request = |layer: &str, argv: Value| {
        changed(&mounted(layer, mounts.clone(), ""), &[("argv", argv), ("env", json!(["PATH=/bin:/dev/pipes"]))])
    };
    assert_eq!(ran(&bench.ask(&request("l1", json!(["/dev/pipes/hi"])), &[])), "hi /dev/pipes/hi\n");
    assert_eq!(ran(&bench.ask(&request("l2", json!(["hi"])), &[])), "hi /dev/pipes/hi\n");
    for (layer, program, code) in [("l3", "/dev/pipes/nope", 127), ("l4", "/dev/pipes/no", 126)] {
        let answer = bench.ask(&request(layer, json!([program])), &[]);
        assert_eq!(answer.exit, Some(json!({"code": code, "signal": null})), "{answer:?}");
        assert!(answer.stderr.contains(program), "{answer:?}");
    }
}

#[test]
fn a_cache_keeps_what_steps_leave_and_no_layer_has_it() {
    let Some(mut bench) = bench() else { return };
    let device = bench.add_drive("vdb", 24);
    let cache = json!([{"type": "cache", "target": "/cache", "drive": "vdb", "mode": 0o1770, "uid": 5, "gid": 6}]);
    let first = "stat -c '%a %u:%g' /cache; ls -A /cache; echo kept > /cache/file; mkdir /cache/dir";
    assert_eq!(run(&bench, "l1", cache.clone(), first), "1770 5:6\n");
    assert_eq!(bench.captured("l1"), Vec::<String>::new());
    let other = json!([{"type": "cache", "target": "/var/data", "drive": "vdb", "read_only": true}]);
    let second = "ls /var/data; touch /var/data/x 2>/dev/null || echo ro";
    assert_eq!(run(&bench, "l2", other, second), "dir\nfile\nro\n");
    // It is on the disk though nothing was unmounted yet: a machine that is killed keeps it.
    let copy = bench.folder.join("copy.img");
    std::fs::copy(bench.folder.join("vdb.img"), &copy).expect("copied");
    support::run(std::process::Command::new("blockdev").arg("--flushbufs").arg(&device));
    std::fs::copy(bench.folder.join("vdb.img"), &copy).expect("copied");
    let mut check = std::process::Command::new("e2fsck");
    let status = check.arg("-fy").arg(&copy).output().expect("e2fsck").status.code();
    assert!(matches!(status, Some(0 | 1)), "{status:?}");
    let listing = std::process::Command::new("debugfs").args(["-R", "cat /content/file"]).arg(&copy).output();
    assert_eq!(listing.expect("debugfs").stdout, b"kept\n");
    // A failed step's writes stay too.
    let answer = bench.ask(&mounted("l3", cache.clone(), "echo more > /cache/more; exit 3"), &[]);
    assert_eq!(answer.exit, Some(json!({"code": 3, "signal": null})));
    assert_eq!(run(&bench, "l4", cache.clone(), "cat /cache/more"), "more\n");
    // Who only looks sees it, may write, and leaves nothing.
    let looked = json!([{"type": "cache", "target": "/cache", "drive": "vdb", "mode": 0o1770, "uid": 5, "gid": 6, "keep": false}]);
    let look = "stat -c '%a %u:%g' /cache; cat /cache/more; echo mine > /cache/mine; rm /cache/file; ls /cache";
    assert_eq!(run(&bench, "l5", looked, look), "1770 5:6\nmore\ndir\nmine\nmore\n");
    assert_eq!(run(&bench, "l6", cache, "ls /cache"), "dir\nfile\nmore\n");
}

#[test]
fn a_cache_begins_with_its_seed() {
    let Some(mut bench) = bench() else { return };
    bench.add_drive("vdb", 24);
    bench.apply("s1", &[], &archive("add('a', 'dir', mode=0o710)\nadd('a/one', data=b'1', uid=9)")).reply();
    let cache = |id: &str, source: &str| json!([{"type": "cache", "target": "/c", "drive": "vdb", "seed": {"id": id, "stack": ["s1"], "source": source}}]);
    let look = "stat -c '%a %u %n' /c /c/*; echo x > /c/new";
    assert_eq!(run(&bench, "l1", cache("one", "/a"), look), "710 0 /c\n644 9 /c/one\n");
    assert_eq!(run(&bench, "l2", cache("one", "/a"), "ls /c"), "new\none\n");
    assert_eq!(run(&bench, "l3", cache("two", "/a"), "ls /c"), "one\n");
    assert_eq!(bench.ask(&mounted("l4", cache("three", "/nope"), "true"), &[]).code(), "not-found");
    assert_eq!(run(&bench, "l5", cache("two", "/a"), "ls /c"), "one\n");
}

#[test]
fn secrets_are_files_and_variables_for_the_step_alone() {
    let Some(bench) = bench() else { return };
    let mounts = json!([
        {"type": "secret", "target": "/run/secrets/one"},
        {"type": "secret", "target": "/root/key", "env": "KEY", "mode": 0o440, "uid": 1000, "gid": 50},
        {"type": "secret", "env": "ONLY"},
    ]);
    let script = "stat -c '%a %u:%g' /run/secrets/one /root/key; cat /run/secrets/one /root/key; echo $KEY $ONLY; \
        echo x 2>/dev/null > /run/secrets/one || echo ro; grep -c noexec /proc/self/mounts > /dev/null && echo fine; \
        ls /run/secrets";
    let request = changed(&mounted("l1", mounts, script), &[("env", json!(["KEY=old", "PATH=/usr/bin:/bin"]))]);
    let contents = [format!("{CANARY}-1\n"), format!("{CANARY}-2"), format!("{CANARY}-3")];
    let mut frames = Vec::new();
    for content in &contents {
        frames.extend(data_frames(content.as_bytes()));
    }
    let answer = bench.ask(&request, &frames);
    let expected = format!("400 0:0\n440 1000:50\n{CANARY}-1\n{CANARY}-2{CANARY}-2 {CANARY}-3\nro\nfine\none\n");
    assert_eq!(ran(&answer), expected);
    assert_eq!(bench.captured("l1"), Vec::<String>::new());
    let base = bench.folder.join("b");
    let found = std::process::Command::new("grep").arg("-r").arg(CANARY).arg(&base).output().expect("grep");
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    bench.builder.shutdown();
    let image = std::fs::read(bench.folder.join("vda.img")).expect("image");
    assert!(!image.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()), "it was on the work disk");
}

#[test]
fn secrets_that_are_refused() {
    let Some(bench) = bench() else { return };
    let request = mounted("l1", json!([{"type": "secret", "env": "KEY"}]), "true");
    let answer = bench.ask(&request, &data_frames(b"\xff\x00"));
    assert_eq!(answer.code(), "bad-request");
    let request = mounted("l1", json!([{"type": "secret", "target": "/x"}]), "true");
    assert_eq!(bench.ask(&request, &data_frames(&vec![b'x'; 500 * 1024 + 1])).code(), "limit");
    assert_eq!(ran(&bench.ask(&request, &data_frames(&vec![b'x'; 500 * 1024]))), "");
}

#[test]
fn an_agents_socket_leads_to_the_host_while_the_step_runs() {
    let Some(bench) = bench() else { return };
    let accept = json!({"op": "ssh-accept", "socket": "a1"});
    assert_eq!(bench.ask(&accept, &[]).code(), "not-found");
    let mounts = json!([{"type": "ssh", "target": "/run/agent/sock", "socket": "a1", "uid": 1000}]);
    let client = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('SOCKET')\ns.sendall(b'ask')\n\
        print(s.recv(9).decode())";
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let builder = Arc::clone(&bench.builder);
    let script = "stat -c '%F %a %u' /run/agent/sock; cat; echo done";
    let request = changed(&mounted("l1", mounts, script), &[("stdin", json!(true))]);
    let server = std::thread::spawn(move || serve(&builder, &request, theirs));
    let mut stream = ours;
    while read_frame(&mut stream).expect("frame").frame_type != FrameType::Stdout {}
    let host = |builder: Arc<firebuild_layers::Builder>| {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let request = json!({"op": "ssh-accept", "socket": "a1"});
        (ours, std::thread::spawn(move || serve(&builder, &request, theirs)))
    };
    let (mut taken, serving) = host(Arc::clone(&bench.builder));
    // No program of the step's tree speaks to sockets: its own socket is reached from outside.
    let socket = std::fs::read_dir(bench.folder.join("b/t")).expect("scratch").flatten();
    let socket = socket.map(|entry| entry.path().join("agent0")).find(|path| path.exists()).expect("a socket");
    let client = std::process::Command::new(support::python())
        .args(["-c", &client.replace("SOCKET", socket.to_str().expect("text"))])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("client");
    assert_eq!(read_frame(&mut taken).expect("reply").frame_type, FrameType::Reply);
    assert_eq!(read_frame(&mut taken).expect("data").payload, b"ask");
    write_frame(&mut taken, FrameType::Data, b"answer").expect("sent");
    assert_eq!(client.wait_with_output().expect("ended").stdout, b"answer\n");
    assert_eq!(read_frame(&mut taken).expect("end").payload, b"");
    write_frame(&mut taken, FrameType::Data, b"").expect("sent");
    serving.join().expect("served");
    // One that waits when the step ends is told so.
    let (waiting, serving) = host(Arc::clone(&bench.builder));
    write_frame(&mut stream, FrameType::Stdin, b"").expect("sent");
    let answer = collect(stream);
    server.join().expect("served");
    assert!(answer.stdout.ends_with("done\n"), "{answer:?}");
    serving.join().expect("served");
    assert_eq!(collect(waiting).code(), "not-found");
    assert_eq!(bench.captured("l1"), Vec::<String>::new());
}
