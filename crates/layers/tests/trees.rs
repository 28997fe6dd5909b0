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
        // Folders that are made for the copies get the octal mode too, as BuildKit has it.
        let mode = changes[1].1.as_str().map_or("755", |text| text.get(text.len() - 3..).expect("digits"));
        assert_eq!(lines[0], format!("dir n {mode} {owner}"));
    }
    for (key, value, expected) in [
        ("chown", "nobody", "no-such-user"),
        ("chown", "user:nogroup", "no-such-user"),
        ("chmod", "u+x,", "bad-request"),
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
    // Docker copies what is in a directory, not the directory: the one that is made for it is like any other.
    let found = bench.captured("d2");
    assert_eq!(short(&found[0]), "dir made 755 0:0");
    assert_eq!(found[1], "dir made/here 755 0:0 1000000000", "but for its time");
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
add("more/a/x")
add("more/b/y")
add("more/c/x")
add("more/link", "link", linkname="c")
add("more/[x]")
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
        "dir app 755 0:0 1000000000",
        "file app/app 4755 9:10 1000000000 a172cedc 3 user.k=76",
        "hard app/app2 4755 9:10 1000000000 -> app/app",
        "link app/current 777 0:0 1000000000 -> app",
        "file app/lib1.so 644 0:0 1000000000 6b86b273 1",
        "file app/lib2.so 644 0:0 1000000000 d4735e3a 1",
        "char app/null 644 0:0 1000000000 1,3",
    ];
    assert_eq!(found, expected);
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
    assert_eq!(from("f3", json!(["/out/["]), "/x", &[]).code(), "bad-request");
    assert_eq!(from("f3", json!(["/out/../../../out/lib1.so"]), "/x", &[]).reply()["bytes"], 1);
    assert_eq!(from("f4", json!(["/out/no*"]), "/x", &[]).reply()["entries"], 0, "a pattern may match nothing");
    assert_eq!(bench.captured("f4"), Vec::<String>::new());
    let count = |layer: &str, pattern: &str| from(layer, json!([pattern]), "/x/", &[]).reply()["entries"].clone();
    assert_eq!(
        count("f5", "/more/*/x"),
        2,
        "what a component does not match is left out, and no link is followed behind a wildcard"
    );
    assert_eq!(count("f6", "/more/link/?"), 1, "above it links are followed");
    assert_eq!(count("f7", "/more/\\[x]"), 1, "escaped, it is a name");
    assert_eq!(from("f8", json!(["/more/\\[y]"]), "/x/", &[]).code(), "not-found");
}

#[test]
fn symbolic_modes_change_each_entry_by_itself() {
    let Some(bench) = bench() else { return };
    let items = json!([{"name": "", "kind": "directory"}]);
    let script = r#"
add("0/", "dir", mode=0o750)
add("0/file", mode=0o600)
add("0/run", mode=0o700)
add("0/sub", "dir", mode=0o700)
add("0/link", "link", linkname="file")
"#;
    let changes =
        [("items", items), ("dest", json!("/new/")), ("dest_is_directory", json!(true)), ("chmod", json!("go+rX"))];
    copy(&bench, "m1", &changes, script).reply();
    let expected = ["dir new 755", "file new/file 644", "link new/link 777", "file new/run 755", "dir new/sub 755"];
    for (line, expected) in lines(&bench, "m1").iter().zip(expected) {
        assert!(line.starts_with(expected), "{line} {expected}");
    }
}

#[test]
fn what_is_made_or_added_to_gets_the_time_that_is_given() {
    let Some(bench) = bench() else { return };
    let changes = |dest: &str| [("dest", json!(dest)), ("mtime_s", json!(1_234_567_890))];
    copy(&bench, "t1", &changes("/new/dir/x"), FILE).reply();
    let file = |path: &str| format!("file {path} 640 0:0 1000000000 11507a0e 3");
    assert_eq!(
        bench.captured("t1"),
        ["dir new 755 0:0 1234567890".to_owned(), "dir new/dir 755 0:0 1234567890".to_owned(), file("new/dir/x")]
    );
    copy(&bench, "t2", &changes("/opt/sub/x"), FILE).reply();
    // A directory that only holds one that was changed keeps its own.
    let expected =
        ["dir opt 711 4:0 1000000000".to_owned(), "dir opt/sub 700 0:0 1234567890".to_owned(), file("opt/sub/x")];
    assert_eq!(bench.captured("t2"), expected);
}

#[test]
fn on_nothing_a_copy_is_a_layer_for_any_stack() {
    let Some(bench) = bench() else { return };
    let changes = [("stack", json!([])), ("dest", json!("/opt/sub/x"))];
    copy(&bench, "n1", &changes, FILE).reply();
    assert_eq!(
        lines(&bench, "n1"),
        ["dir opt 755 0:0", "dir opt/sub 755 0:0", "file opt/sub/x 640 0:0 1000000000 11507a0e 3"]
    );
    // Nothing below it is hidden; its directories' attributes win, as in any layer.
    let merged = bench.exported(&["n1", "b0"]);
    let paths: Vec<_> =
        merged.iter().filter_map(|line| line.split(' ').nth(1)).filter(|path| path.starts_with("opt")).collect();
    assert_eq!(paths, ["opt", "opt/file", "opt/sub", "opt/sub/keep", "opt/sub/x"]);
    assert_eq!(copy(&bench, "n2", &[("stack", json!([])), ("chown", json!("user"))], FILE).code(), "no-such-user");
}

#[test]
fn parts_of_another_stage() {
    let Some(bench) = bench() else { return };
    let stage = r#"
add("a", "dir", mode=0o701, uid=1)
add("a/b", "dir", mode=0o702, uid=2)
add("a/b/c", "dir", mode=0o703, uid=3, mtime=1100000000)
add("a/b/c/x.txt", data=b"x")
add("a/b/c/y.md", data=b"y")
add("a/b/c/d", "dir")
add("a/b/c/d/z.txt", data=b"z")
add("a/b2", "dir")
add("a/b2/c", "dir")
add("a/b2/c/w.txt", data=b"w")
add("top.txt", data=b"t")
"#;
    bench.apply("s1", &[], &archive(stage)).reply();
    let mut number = 0;
    let mut from = |from: Value| {
        number += 1;
        let layer = format!("q{number}");
        let request = json!({"op": "layer-copy", "layer": layer, "stack": [], "dest": "/o", "from": from});
        let answer = bench.ask(&request, &[]);
        if answer.error.is_some() {
            return Err(answer.code().to_owned());
        }
        let paths: Vec<_> = bench.captured(&layer).iter().map(|line| short(line)).collect();
        Ok(paths.iter().map(|line| line.replace("dir ", "").replace("file ", "").replace(" 644 0:0", "")).collect())
    };
    let stack = json!(["s1"]);
    let mut exclude = |paths: Value, exclude: Value| from(json!({"stack": stack, "paths": paths, "exclude": exclude}));
    let listed =
        |paths: &[&str]| -> Result<Vec<String>, String> { Ok(paths.iter().map(|path| (*path).to_owned()).collect()) };
    assert_eq!(
        exclude(json!(["/a/b/c"]), json!(["*.txt"])),
        listed(&["o 755 0:0", "o/d 755 0:0", "o/d/z.txt", "o/y.md"])
    );
    assert_eq!(exclude(json!(["/a/b/c"]), json!(["**/*.txt"])), listed(&["o 755 0:0", "o/d 755 0:0", "o/y.md"]));
    assert_eq!(
        exclude(json!(["/a/b/c"]), json!(["d", "!d/z.txt", "*.md"])),
        listed(&["o 755 0:0", "o/d 755 0:0", "o/d/z.txt", "o/x.txt"])
    );
    assert_eq!(exclude(json!(["/a/b/c"]), json!(["*"])), listed(&["o 755 0:0"]));
    assert_eq!(exclude(json!(["/top.txt", "/a/b/c/*.txt"]), json!(["top*"])), listed(&["o 755 0:0", "o/x.txt"]));
    assert_eq!(exclude(json!(["/a"]), json!(["["])), Err("bad-request".to_owned()));
    let mut parents = |paths: Value, include: Value| from(json!({"stack": ["s1"], "paths": paths, "include": include}));
    assert_eq!(
        parents(json!(["/"]), json!(["a/b/c/x.txt"])),
        listed(&["o 755 0:0", "o/a 701 1:0", "o/a/b 702 2:0", "o/a/b/c 703 3:0", "o/a/b/c/x.txt"])
    );
    assert_eq!(
        parents(json!(["/a/b*"]), json!(["c/**/*.txt"])),
        listed(&["o 755 0:0", "o/c 703 3:0", "o/c/d 755 0:0", "o/c/d/z.txt", "o/c/w.txt", "o/c/x.txt"])
    );
    assert_eq!(parents(json!(["/a/b"]), json!(["c2*"])), listed(&["o 755 0:0"]));
    assert_eq!(parents(json!(["/a/nope*"]), json!(["c"])), listed(&["o 755 0:0"]));
    assert_eq!(parents(json!(["/a/b"]), json!(["nope"])), Err("not-found".to_owned()));
    assert_eq!(parents(json!(["/nope"]), json!(["*"])), Err("not-found".to_owned()));
    assert_eq!(parents(json!(["/a"]), json!([])), Err("bad-request".to_owned()));
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
    assert_eq!(empty["entries"], Value::Null);
    let list = |most: usize| {
        let request = json!({"op": "tree-stat", "stack": ["b0"], "path": "/", "list_entries": most});
        bench.ok(&request)["entries"].as_array().expect("a list").clone()
    };
    assert_eq!(list(2).len(), 2);
    let entries = list(1000);
    let names: Vec<_> = entries.iter().map(|entry| entry["name"].as_str().expect("a name")).collect();
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    let link = entries.iter().find(|entry| entry["name"] == "filelink").expect("the link");
    assert_eq!(link["kind"], "symlink");
    assert!(link["target"].is_string(), "{link}");
    let file = bench.ok(&json!({"op": "tree-stat", "stack": ["b0"], "path": "/opt/file", "list_entries": 9}));
    assert_eq!(file["entries"], Value::Null);
}

const PACKED: &str = r#"
add("0", "dir", mode=0o700, uid=99)
add("0/a", "dir", mode=0o1770, uid=5, gid=6, mtime=1500000000)
add("0/a/tool", data=b"new", mode=0o4755, uid=7, gid=8, xattrs={"user.k": "v"})
add("0/a/same", "hard", linkname="0/a/tool", mode=0o4711, uid=9, gid=8)
add("0/a/late", "dir", mode=0o711, mtime=1400000000)
add("0/deep/er/x", uid=3)
add("0/up", "link", linkname="../../../a", uid=4)
add("0/up/through", data=b"1")
add("0/pipe", "fifo", uid=1)
add("0/null", "char", devmajor=1, devminor=3, mode=0o666)
"#;

#[test]
fn an_archive_is_unpacked_with_its_owners_and_modes() {
    let Some(bench) = bench() else { return };
    let items = json!([{"name": "", "kind": "archive"}]);
    // Whether the path has a slash does not matter, and of `chmod` nothing is taken.
    let changes = [("items", items.clone()), ("dest", json!("/new")), ("chmod", json!("0600"))];
    assert_eq!(copy(&bench, "x1", &changes, PACKED).reply(), &json!({"entries": 10, "bytes": 4}));
    let found = bench.captured("x1");
    let expected = [
        "dir new/a 1770 5:6 1500000000",
        "dir new/a/late 711 0:0 1400000000",
        // Of a file with several names the last entry counts.
        "file new/a/same 4711 9:8 1000000000 11507a0e 3 user.k=76",
        // A link in the archive leads on inside the destination, which is its root.
        "file new/a/through 644 0:0 1000000000 6b86b273 1",
        "hard new/a/tool 4711 9:8 1000000000 -> new/a/same",
    ];
    assert!(found[0].starts_with("dir new 755 0:0"), "{found:#?}");
    assert_eq!(found[1..6], expected, "{found:#?}");
    let rest: Vec<String> = found[6..].iter().map(|line| short(line)).collect();
    let expected =
        ["dir new/deep 755 0:0", "dir new/deep/er 755 0:0", "file new/deep/er/x 644 3:0", "char new/null 666 0:0"];
    assert_eq!(rest[..4], expected);
    assert_eq!(rest[4..], ["fifo new/pipe 644 1:0", "link new/up 777 4:0"]);

    let changes = [("items", items), ("dest", json!("/x/")), ("chown", json!("user:staff"))];
    copy(&bench, "x2", &changes, PACKED).reply();
    assert!(bench
        .captured("x2")
        .iter()
        .all(|line| line.split(' ').nth(3) == Some("1000:50") || line.contains("/deep")));
}

#[test]
fn an_archive_replaces_what_is_in_its_way_and_nothing_else() {
    let Some(bench) = bench() else { return };
    let changes = |dest: &str| [("items", json!([{"name": "", "kind": "archive"}])), ("dest", json!(dest))];
    let script = "add('0/sub', data=b'1')\nadd('0/file', 'dir', mode=0o750)\nadd('0/file/in', data=b'1')\nadd('0/file', 'link', linkname='/etc')\nadd('0/file/x', data=b'1')";
    copy(&bench, "r1", &changes("/srv"), script).reply();
    // `/srv` is a link of the image; what the archive's own link leads to is looked for below the destination.
    assert_eq!(
        bench.captured("r1").iter().map(|line| short(line)).collect::<Vec<_>>(),
        [
            "dir opt 711 4:0",
            "dir opt/etc 755 0:0",
            "file opt/etc/x 644 0:0",
            "link opt/file 777 0:0",
            "file opt/sub 644 0:0"
        ]
    );
    let kept = "add('0/sub', 'dir', mode=0o777)\nadd('0/more', 'hard', linkname='0/file')";
    copy(&bench, "r2", &changes("/opt/"), kept).reply();
    let found = bench.exported(&["r2", "b0"]);
    assert!(found.iter().any(|line| line.starts_with("file opt/sub/keep")), "{found:#?}");
    assert!(found.iter().any(|line| line.starts_with("dir opt/sub 777")), "{found:#?}");
    assert!(found.iter().any(|line| line.contains("opt/more")), "{found:#?}");
}

#[test]
fn an_archive_does_not_leave_its_destination() {
    let Some(bench) = bench() else { return };
    let changes =
        [("items", json!([{"name": "", "kind": "archive"}, {"name": "f", "kind": "file"}])), ("dest", json!("/opt/"))];
    let cases = [
        ("add('0/../../etc/x')", "bad-archive"),
        ("add('0/x', 'hard', linkname='../etc/passwd')", "io"),
        ("add('0/x', 'hard', linkname='0/../etc/passwd')", "io"),
        ("add('0/x', 'hard', linkname='1')", "io"),
        ("add('0/x', 'hard', linkname='0/etc/passwd')", "not-found"),
        ("add('0/file/x')", "not-a-directory"),
        ("add('7/x')", "bad-archive"),
    ];
    for (number, (script, code)) in cases.iter().enumerate() {
        let answer = copy(&bench, &format!("e{number}"), &changes, script);
        assert_eq!(answer.code(), *code, "{script}");
    }
}
