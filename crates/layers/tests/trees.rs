//! COPY's rules, disks written and mounted, trees looked at.

mod support;

use serde_json::{json, Value};
use support::{archive, data_frames, Answer, Bench};

const BASE: &str = r#"
add("etc", "dir")
add("etc/passwd", data=b"root:x:0:0::/:/bin/sh\nuser:x:1000:1001::/home:/bin/sh\n")
add("etc/group", data=b"root:x:0:\nstaff:x:50:\n")
add("opt", "dir", mode=0o711, uid=4)
add("opt/file", data=b"old", mode=0o600)
add("opt/sub", "dir", mode=0o700)
add("opt/sub/keep")
add("srv", "link", linkname="/opt")
add("escape", "link", linkname="../../../opt")
add("filelink", "link", linkname="opt/file")
add("dangling", "link", linkname="made/by/link")
"#;

fn bench() -> Option<Bench> {
    let bench = Bench::new()?;
    bench.apply("b0", &[], &archive(BASE)).reply();
    Some(bench)
}

fn copy(bench: &Bench, layer: &str, changes: &[(&str, Value)], script: &str) -> Answer {
    let mut request = json!({"op": "layer-copy", "layer": layer, "stack": ["b0"],
        "items": [{"name": "a.conf", "kind": "file"}], "dest": "/", "dest_is_directory": false});
    for (key, value) in changes {
        request[*key] = value.clone();
    }
    bench.ask(&request, &data_frames(&archive(script)))
}

fn lines(bench: &Bench, layer: &str) -> Vec<String> {
    // Times of directories that were made or copied up now are not of interest.
    let lines = bench.captured(layer);
    lines.into_iter().map(|line| if line.starts_with("dir") { short(&line) } else { line }).collect()
}

fn short(line: &str) -> String {
    line.split(' ').take(4).collect::<Vec<_>>().join(" ")
}

const FILE: &str = "add('0', data=b'new', mode=0o640, uid=77, gid=88)";

#[test]
fn a_file_lands_where_copy_says() {
    let Some(bench) = bench() else { return };
    let file = |path: &str| format!("file {path} 640 0:0 1000000000 11507a0e 3");
    let cases: [(&str, &str, bool, Vec<String>); 9] = [
        ("c1", "/opt/x", false, vec!["dir opt 711 4:0".into(), file("opt/x")]),
        ("c2", "/opt", false, vec!["dir opt 711 4:0".into(), file("opt/a.conf")]),
        ("c3", "/new/dir/", true, vec!["dir new 755 0:0".into(), "dir new/dir 755 0:0".into(), file("new/dir/a.conf")]),
        ("c4", "/new/name", false, vec!["dir new 755 0:0".into(), file("new/name")]),
        ("c5", "/srv/", true, vec!["dir opt 711 4:0".into(), file("opt/a.conf")]),
        ("c6", "/escape/x", false, vec!["dir opt 711 4:0".into(), file("opt/x")]),
        ("c7", "/filelink", false, vec!["dir opt 711 4:0".into(), file("opt/file")]),
        ("c8", "/dangling", false, vec!["dir made 755 0:0".into(), "dir made/by 755 0:0".into(), file("made/by/link")]),
        ("c9", "/../../../up", false, vec![file("up")]),
    ];
    for (layer, dest, is_directory, expected) in cases {
        let answer = copy(&bench, layer, &[("dest", json!(dest)), ("dest_is_directory", json!(is_directory))], FILE);
        assert_eq!(answer.reply(), &json!({"entries": 1, "bytes": 3}));
        assert_eq!(lines(&bench, layer), expected, "{dest}");
    }
}

#[test]
fn owners_and_modes() {
    let Some(bench) = bench() else { return };
    for (layer, chown, chmod, expected) in [
        ("o1", json!("user"), json!(null), "640 1000:1001"),
        ("o2", json!("user:staff"), json!("0755"), "755 1000:50"),
        ("o3", json!("12"), json!("4711"), "4711 12:12"),
        ("o4", json!("12:34"), json!("644"), "644 12:34"),
        ("o5", json!(null), json!("600"), "600 0:0"),
    ] {
        let changes = [("chown", chown), ("chmod", chmod), ("dest", json!("/n/")), ("dest_is_directory", json!(true))];
        copy(&bench, layer, &changes, FILE).reply();
        let lines = lines(&bench, layer);
        assert!(lines[1].starts_with(&format!("file n/a.conf {expected} ")), "{lines:?}");
        let owner = if changes[0].1.is_null() { "0:0" } else { expected.split(' ').nth(1).expect("owner") };
        assert_eq!(lines[0], format!("dir n 755 {owner}"));
    }
    for (key, value, expected) in [
        ("chown", "nobody", "no-such-user"),
        ("chown", "user:nogroup", "no-such-user"),
        ("chmod", "u+x", "bad-request"),
        ("chmod", "99999", "bad-request"),
        ("dest", "relative", "bad-request"),
        ("dest", "/opt/file/x", "not-a-directory"),
    ] {
        assert_eq!(copy(&bench, "bad", &[(key, json!(value))], FILE).code(), expected, "{key} {value}");
    }
}

#[test]
fn a_directory_is_merged() {
    let Some(bench) = bench() else { return };
    let items = json!([{"name": "", "kind": "directory"}]);
    let script = r#"
add("0/", "dir", mode=0o750)
add("0/file", data=b"new", uid=5)
add("0/sub", "dir", mode=0o711, mtime=1100000000)
add("0/sub/new", data=b"n")
add("0/sub/other", "hard", linkname="0/sub/new")
add("0/sub/link", "link", linkname="../../anywhere")
"#;
    copy(&bench, "d1", &[("items", items.clone()), ("dest", json!("/opt"))], script).reply();
    let found = bench.captured("d1");
    assert_eq!(short(&found[0]), "dir opt 711 4:0", "an existing destination keeps its attributes");
    assert_eq!(found[1], "file opt/file 644 0:0 1000000000 11507a0e 3");
    assert_eq!(found[2], "dir opt/sub 711 0:0 1100000000", "a directory in it takes the source's");
    assert_eq!(found[3], "link opt/sub/link 777 0:0 1000000000 -> ../../anywhere");
    assert!(found[4].starts_with("file opt/sub/new ") && found[5].ends_with("-> opt/sub/new"), "{found:#?}");
    assert_eq!(found.len(), 6, "not opaque, nothing hidden: {found:#?}");
    copy(&bench, "d2", &[("items", items.clone()), ("dest", json!("/made/here"))], script).reply();
    assert_eq!(lines(&bench, "d2")[..2], ["dir made 755 0:0", "dir made/here 750 0:0"]);
    // An empty directory, and one that the archive does not even name.
    copy(&bench, "d3", &[("items", items.clone()), ("dest", json!("/empty"))], "").reply();
    assert_eq!(lines(&bench, "d3"), ["dir empty 755 0:0"]);
    for (script, expected) in [
        ("add('0/x', 'dir')\nadd('0/../../x')", "bad-archive"),
        ("add('1/x')", "bad-archive"),
        ("add('0')", "bad-archive"),
        ("add('/etc/x')", "bad-archive"),
        ("add('0/sub')", "exists"),
        ("add('0/file', 'dir')", "not-a-directory"),
        ("add('0/h', 'hard', linkname='etc/passwd')", "bad-archive"),
        ("add('0/l', 'link', linkname='/etc')\nadd('0/l/x')", "not-a-directory"),
    ] {
        let answer = copy(&bench, "bad", &[("items", items.clone()), ("dest", json!("/opt"))], script);
        assert_eq!(answer.code(), expected, "{script}: {answer:?}");
    }
}

#[test]
fn copies_from_another_stage() {
    let Some(bench) = bench() else { return };
    let stage = r#"
add("out", "dir", mode=0o700, uid=3, xattrs={"user.k": "v"})
add("out/app", data=b"app", mode=0o4755, uid=9, gid=10, xattrs={"user.k": "v"})
add("out/app2", "hard", linkname="out/app")
add("out/lib1.so", data=b"1")
add("out/lib2.so", data=b"2")
add("out/current", "link", linkname="app")
add("out/null", "char", devmajor=1, devminor=3)
"#;
    bench.apply("s1", &[], &archive(stage)).reply();
    let from = |layer: &str, paths: Value, dest: &str, extra: &[(&str, Value)]| {
        let mut request = json!({"op": "layer-copy", "layer": layer, "stack": ["b0"], "dest": dest,
            "dest_is_directory": dest.ends_with('/'), "from": {"stack": ["s1"], "paths": paths}});
        for (key, value) in extra {
            request[*key] = value.clone();
        }
        bench.ask(&request, &[])
    };
    assert_eq!(from("f1", json!(["/out"]), "/app", &[]).reply(), &json!({"entries": 6, "bytes": 5}));
    let found = bench.captured("f1");
    let expected = [
        "dir app 700 3:0 1000000000 user.k=76",
        "file app/app 4755 9:10 1000000000 a172cedc 3 user.k=76",
        "hard app/app2 4755 9:10 1000000000 -> app/app",
        "link app/current 777 0:0 1000000000 -> app",
        "file app/lib1.so 644 0:0 1000000000 6b86b273 1",
        "file app/lib2.so 644 0:0 1000000000 d4735e3a 1",
        "char app/null 644 0:0 1000000000 1,3",
    ];
    assert_eq!(found[1..], expected[1..]);
    assert!(found[0].starts_with("dir app 700 3:0"));
    from("f2", json!(["/out/lib*.so", "/out/current"]), "/usr/lib/", &[("chown", json!("user"))]).reply();
    let expected = [
        "dir usr 755 1000:1001",
        "dir usr/lib 755 1000:1001",
        "file usr/lib/current 4755 1000:1001 1000000000 a172cedc 3 user.k=76",
        "file usr/lib/lib1.so 644 1000:1001 1000000000 6b86b273 1",
        "file usr/lib/lib2.so 644 1000:1001 1000000000 d4735e3a 1",
    ];
    assert_eq!(lines(&bench, "f2"), expected, "links are followed");
    assert_eq!(from("f3", json!(["/missing"]), "/x", &[]).code(), "not-found");
    assert_eq!(from("f3", json!(["/out/no*"]), "/x", &[]).code(), "not-found");
    assert_eq!(from("f3", json!(["/out/["]), "/x", &[]).code(), "bad-request");
    assert_eq!(from("f3", json!(["/out/../../../out/lib1.so"]), "/x", &[]).reply()["bytes"], 1);
}

#[test]
fn layers_are_carried_out_on_a_disk() {
    let Some(mut bench) = bench() else { return };
    let rich = r#"
add(".", "dir", mode=0o711, uid=1)
add("a", data=b"x" * 100000, mode=0o4755, uid=70000, xattrs={"user.k": "v"})
add("b", "hard", linkname="a")
add("null", "char", devmajor=1, devminor=3)
add("pipe", "fifo")
add("l", "link", linkname="/nowhere")
add("opt/.wh.file")
add("holes")
"#;
    let lowest = r#"
add("etc/keep", data=b"k")
add("opt/gone/deep", data=b"d")
add("opt/file", data=b"f")
add("var/lib/x", data=b"x")
add("swap", "dir")
add("swap/inner", data=b"i")
add("turn", data=b"t")
add("etc/.wh.nothing")
"#;
    let device = bench.add_drive("vdb", 24);
    let export = |stack: Value| {
        let answer = bench.ask(&json!({"op": "tree-export", "stack": stack}), &[]);
        answer.reply();
        answer.data
    };
    assert_eq!(bench.send(&json!({"op": "disk-apply", "drive": "vdb"}), &archive(lowest)).reply()["entries"], 8);
    bench.ok(&json!({"op": "layer-mount", "layer": "b1", "drive": "vdb"}));
    bench.apply("l2", &["b1"], &archive(rich)).reply();
    let layers = std::fs::read_dir(bench.folder.join("b/l")).expect("layers").flatten();
    let holes = layers.into_iter().map(|layer| layer.path().join("holes")).find(|path| path.exists()).expect("made");
    std::fs::File::options().write(true).open(holes).and_then(|file| file.set_len(60_000_000)).expect("a hole");
    let changes = r#"
add("opt/.wh.gone")
add("var/lib/.wh..wh..opq")
add("var/lib/new", data=b"n")
add("swap", data=b"now a file")
add("turn", "dir", mode=0o700)
add("turn/inside", data=b"1")
add("etc/keep", data=b"changed", mode=0o600)
add("z", "hard", linkname="etc/keep")
"#;
    bench.apply("l3", &["l2", "b1"], &archive(changes)).reply();
    let expected = export(json!(["l3", "l2", "b1"]));
    let refused = bench.ask(&json!({"op": "disk-merge", "stack": ["l3", "b1"], "drive": "vdb"}), &[]);
    assert_eq!(refused.code(), "bad-request");
    bench.ok(&json!({"op": "layer-drop", "layer": "b1"}));
    bench.ok(&json!({"op": "disk-merge", "stack": ["l3", "l2"], "drive": "vdb"}));
    let status = std::process::Command::new("e2fsck").args(["-fn"]).arg(&device).output().expect("e2fsck");
    assert!(status.status.success(), "{status:?}");
    bench.ok(&json!({"op": "layer-mount", "layer": "b2", "drive": "vdb"}));
    // What was a hole is one again: the disk could not hold it otherwise.
    assert!(expected.len() > 60_000_000);
    assert!(export(json!(["b2"])) == expected, "the disk differs from the stack that was carried out on it");
    assert_eq!(bench.ok(&json!({"op": "tree-stat", "stack": ["b2"], "path": "/"}))["mode"], 0o711);
    bench.ok(&json!({"op": "layer-drop", "layer": "b2"}));
    bench.add_drive("vdc", 4);
    let big = archive("import os\nadd('big', data=os.urandom(8000000))");
    assert_eq!(bench.send(&json!({"op": "disk-apply", "drive": "vdc"}), &big).code(), "no-space");
}

#[test]
fn trees_are_looked_at() {
    let Some(bench) = bench() else { return };
    let stat = |path: &str, bytes: u64| {
        bench.ok(&json!({"op": "tree-stat", "stack": ["b0"], "path": path, "read_bytes": bytes}))
    };
    let file = json!({"kind": "file", "mode": 0o600, "uid": 0, "gid": 0, "size": 3, "content_base64": "b2xk"});
    assert_eq!(stat("/opt/file", 100), file);
    assert_eq!(stat("/srv/file", 100), file);
    assert_eq!(stat("/escape/../filelink", 100), file);
    assert_eq!(stat("/opt/file", 2)["content_base64"], "b2w=");
    assert_eq!(stat("/opt/file", 0)["content_base64"], Value::Null);
    assert_eq!(stat("/srv", 9)["kind"], "directory");
    for path in ["/nope", "/opt/file/x", "/dangling"] {
        assert_eq!(stat(path, 9)["kind"], "missing", "{path}");
    }
    let empty = bench.ok(&json!({"op": "tree-stat", "stack": [], "path": "/"}));
    assert_eq!(empty["kind"], "directory");
}
