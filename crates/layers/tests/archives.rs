//! Archives in and out: layer-apply, layer-capture, tree-export, and what a hostile archive cannot do.

mod support;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use firebuild_protocol::frame::write_frame;
use firebuild_protocol::FrameType;
use serde_json::json;
use support::{archive, collect, serve, Bench};

const RICH: &str = r#"
add("dir", "dir", mode=0o1777, uid=5, gid=6)
add("dir/file", data=b"hello", mode=0o4755, uid=70000, gid=4000000000, mtime=1500000000)
add("dir/second", "hard", linkname="dir/file")
add("dir/soft", "link", linkname="../nowhere", uid=3)
add("dir/" + "n" * 200, data=b"long")
add("null", "char", devmajor=1, devminor=3, mode=0o666)
add("disk", "block", devmajor=8, devminor=259)
add("pipe", "fifo")
add("caps", data=b"x", mode=0o755, xattrs={"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "user.color": "blue"})
add("old", mtime=-86400)
add("big", data=b"z" * 3000000)
add("deep/er/file")
add("gone/.wh.old")
add("hidden/.wh..wh..opq")
add("hidden/new")
add(".wh..wh.plnk", "dir")
"#;

#[test]
fn a_rich_layer_comes_back_as_it_was() {
    let Some(bench) = Bench::new() else { return };
    let answer = bench.apply("l1", &[], &archive(RICH));
    assert_eq!(answer.reply()["entries"], 16);
    let lines = bench.captured("l1");
    let expected = [
        "file big 644 0:0 1000000000 ",
        "file caps 755 0:0 1000000000 2d711642 1 security.capability=0100000200200000000000000000000000000000 user.color=626c7565",
        "dir deep 755 0:0 1000000000",
        "dir deep/er 755 0:0 1000000000",
        "file deep/er/file 644 0:0 1000000000 e3b0c442 0",
        "dir dir 1777 5:6 1000000000",
        "file dir/file 4755 70000:4000000000 1500000000 2cf24dba 5",
        "file dir/nnnn",
        "hard dir/second 4755 70000:4000000000 1500000000 -> dir/file",
        "link dir/soft 777 3:0 1000000000 -> ../nowhere",
        "block disk 644 0:0 1000000000 8,259",
        "dir gone 755 0:0 1000000000",
        "file gone/.wh.old 0 0:0 ",
        "dir hidden 755 0:0 1000000000",
        "file hidden/.wh..wh..opq 0 0:0 ",
        "file hidden/new 644 0:0 1000000000 e3b0c442 0",
        "char null 666 0:0 1000000000 1,3",
        "file old 644 0:0 -86400 e3b0c442 0",
        "fifo pipe 644 0:0 1000000000",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
    // The captured archive applied again is the same layer, and capturing it twice gives the same bytes.
    let capture = |layer: &str| bench.ask(&json!({"op": "layer-capture", "layer": layer}), &[]).data;
    let first = capture("l1");
    bench.apply("l2", &[], &first).reply();
    assert_eq!(first, capture("l2"));
    assert_eq!(first, capture("l1"));
    // With a newest time what is newer gets that, in the layer too; what is older keeps its own.
    let limited = bench.ask(&json!({"op": "layer-capture", "layer": "l2", "mtime_max_s": 100}), &[]).data;
    assert_eq!(limited, capture("l2"));
    bench.apply("l3", &[], &limited).reply();
    let times: Vec<i64> =
        bench.exported(&["l3"]).iter().map(|line| line.split(' ').nth(4).unwrap().parse().unwrap()).collect();
    assert!(times.contains(&-86400) && times.contains(&100) && times.iter().all(|time| *time <= 100), "{times:?}");
}

#[test]
fn an_empty_layer_gives_an_empty_archive() {
    let Some(bench) = Bench::new() else { return };
    bench.apply("l1", &[], &archive("")).reply();
    bench.apply("l2", &[], b"").reply();
    for layer in ["l1", "l2"] {
        let answer = bench.ask(&json!({"op": "layer-capture", "layer": layer}), &[]);
        assert_eq!(answer.reply(), &json!({"entries": 0, "bytes": 0}));
        assert_eq!(answer.data, vec![0; 1024]);
    }
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_is_below() {
    let Some(bench) = Bench::new() else { return };
    let base = archive(
        r#"
for name in ("keep", "gone", "opaque/old", "opaque/deep/old", "becomes-dir/old", "dir-to-file/old", "again/old"):
    add(name, data=name.encode())
"#,
    );
    let change = archive(
        r#"
add(".wh.gone")
add("opaque/.wh..wh..opq")
add("opaque/new")
add("opaque/deep", "dir")
add("dir-to-file")
add(".wh.again")
add("again", "dir")
add("again/new")
add("keep")
add("keep", data=b"twice")
add("flip")
add("flip", "dir")
add("flip/file")
"#,
    );
    bench.apply("b0", &[], &base).reply();
    bench.apply("l1", &["b0"], &change).reply();
    let names = |stack: &[&str]| -> Vec<String> {
        let lines = bench.exported(stack);
        lines.iter().map(|line| line.split(' ').nth(1).expect("name").to_owned()).collect()
    };
    let expected = [
        "again",
        "again/new",
        "becomes-dir",
        "becomes-dir/old",
        "dir-to-file",
        "flip",
        "flip/file",
        "keep",
        "opaque",
        "opaque/deep",
        "opaque/new",
    ];
    assert_eq!(names(&["l1", "b0"]), expected);
    // A later layer on a whole tree, once more from the captured archive.
    let again = bench.ask(&json!({"op": "layer-capture", "layer": "l1"}), &[]).data;
    bench.apply("l2", &["b0"], &again).reply();
    assert_eq!(names(&["l2", "b0"]), expected);
    // An opaque root hides everything, with and without anything below it.
    let opaque = archive("add('.wh..wh..opq')\nadd('only')");
    bench.apply("l3", &["l1", "b0"], &opaque).reply();
    assert_eq!(names(&["l3", "l1", "b0"]), ["only"]);
}

#[test]
fn missing_parents_are_those_of_the_stack() {
    let Some(bench) = Bench::new() else { return };
    let base = archive(
        r#"
add("private", "dir", mode=0o700, uid=7, gid=8, mtime=1234567890, xattrs={"user.a": "b"})
add("private/sub", "dir", mode=0o750, uid=9)
add("usr/lib", "dir")
add("lib", "link", linkname="usr/lib")
add("abs", "link", linkname="/usr/lib")
add("out", "link", linkname="../../../../usr")
"#,
    );
    bench.apply("b0", &[], &base).reply();
    let layer = archive("add('private/sub/new/file')\nadd('lib/libx')\nadd('abs/liby')\nadd('out/libz')");
    bench.apply("l1", &["b0"], &layer).reply();
    let lines = bench.captured("l1");
    assert_eq!(
        lines.iter().map(|line| line.split(" 1000000000").next().expect("start")).collect::<Vec<_>>(),
        [
            "dir private 700 7:8 1234567890 user.a=62",
            "dir private/sub 750 9:0",
            "dir private/sub/new 755 0:0",
            "file private/sub/new/file 644 0:0",
            "dir usr 755 0:0",
            "dir usr/lib 755 0:0",
            "file usr/lib/libx 644 0:0",
            "file usr/lib/liby 644 0:0",
            "file usr/libz 644 0:0",
        ]
    );
}

#[test]
fn hostile_archives_change_nothing_outside() {
    let Some(bench) = Bench::new() else { return };
    let canary = bench.folder.join("canary");
    std::fs::create_dir(&canary).expect("canary");
    std::fs::write(canary.join("file"), "untouched").expect("canary");
    let outside = canary.to_str().expect("text");
    let cases = [
        // (script, refused with, or None when it is harmless)
        (format!("add('{outside}/new')"), None),
        ("add('../escape')".to_owned(), Some("bad-archive")),
        ("add('a/../../escape')".to_owned(), Some("bad-archive")),
        ("add('..', 'dir')".to_owned(), Some("bad-archive")),
        (format!("add('l', 'link', linkname='{outside}')\nadd('l/new')"), None),
        (format!("add('l', 'link', linkname='{outside}')\nadd('l/file', data=b'x')"), None),
        (format!("add('l', 'link', linkname='{outside}/file')\nadd('l', data=b'x')"), None),
        (format!("add('l', 'link', linkname='{outside}/file')\nadd('l', 'dir', mode=0o777)"), None),
        (format!("add('h', 'hard', linkname='{outside}/file')"), Some("bad-archive")),
        ("add('h', 'hard', linkname='../../../../etc/passwd')".to_owned(), Some("bad-archive")),
        (format!("add('l', 'link', linkname='{outside}')\nadd('h', 'hard', linkname='l/file')"), Some("bad-archive")),
        (format!("add('l', 'link', linkname='{outside}')\nadd('l/.wh.file')"), None),
        (format!("add('l', 'link', linkname='{outside}')\nadd('l/.wh..wh..opq')"), None),
        ("add('.wh.')".to_owned(), Some("bad-archive")),
        ("add('.wh..')".to_owned(), Some("bad-archive")),
        ("add('.wh...')".to_owned(), Some("bad-archive")),
        ("add('a/.wh...')".to_owned(), Some("bad-archive")),
        ("add('loop', 'link', linkname='loop')\nadd('loop/x')".to_owned(), Some("bad-archive")),
        ("add('a', 'link', linkname='b')\nadd('b', 'link', linkname='a')\nadd('a/x')".to_owned(), Some("bad-archive")),
        ("add('f')\nadd('f/x')".to_owned(), Some("bad-archive")),
        ("add('d', 'dir')\nadd('h', 'hard', linkname='d')".to_owned(), Some("bad-archive")),
        ("add('/', 'link', linkname='/etc')".to_owned(), Some("bad-archive")),
        ("add('n' * 300)".to_owned(), Some("bad-archive")),
        ("add('/'.join('d' * 300))".to_owned(), Some("limit")),
        ("add('x' * 5000)".to_owned(), Some("limit")),
        ("add('x', uid=4294967295)".to_owned(), Some("bad-archive")),
        ("add('x', uid=99999999999)".to_owned(), Some("bad-archive")),
        ("add('x', xattrs={'user.x': 'y' * 100000})".to_owned(), Some("limit")),
        ("add('x', xattrs={'user.%d' % n: 'y' * 60000 for n in range(20)})".to_owned(), Some("limit")),
        ("add('x', xattrs={'trusted.overlay.redirect': '/etc', 'trusted.overlay.opaque': 'y'})".to_owned(), None),
        ("add('')".to_owned(), Some("bad-archive")),
        ("add('.', 'dir', mode=0o700)".to_owned(), None),
        (
            format!("add('a', 'link', linkname='b')\nadd('b', 'link', linkname='{outside}')\nadd('a/file', data=b'x')"),
            None,
        ),
        (
            format!("add('d', 'dir')\nadd('d/l', 'link', linkname='../../../../../../../..{outside}')\nadd('d/l/new')"),
            None,
        ),
        (
            format!("add('l', 'link', linkname='{outside}/file')\nadd('h', 'hard', linkname='l')\nadd('h', data=b'x')"),
            None,
        ),
        (format!("add('l', 'link', linkname='{outside}')\nadd('l', 'dir')\nadd('l/new')"), None),
        (format!("add('l', 'link', linkname='{outside}')\nadd('l/.wh.')"), Some("bad-archive")),
        (format!("add('d', 'dir')\nadd('d', 'link', linkname='{outside}')\nadd('d/new')"), None),
        (format!("add('n', 'char', devmajor=1, devminor=3)\nadd('n', data=b'x')\nadd('{outside}/n')"), None),
        ("add('p', 'fifo')\nadd('p', data=b'x')".to_owned(), None),
        ("add('l', 'link', linkname='/')\nadd('l/l/l/new')\nadd('l/.wh.new')".to_owned(), None),
        ("add('a/./b')\nadd('a//c')\nadd('./d/')".to_owned(), None),
        ("add('.wh..wh..opq')".to_owned(), None),
        ("add('a/.wh..wh..opq/x')".to_owned(), None),
    ];
    for (number, (script, expected)) in cases.iter().enumerate() {
        let layer = format!("h{number}");
        let answer = bench.apply(&layer, &[], &archive(script));
        match expected {
            Some(code) => {
                assert_eq!(&answer.code(), code, "{script}: {answer:?}");
                // What has failed is gone: its name is free again.
                bench.apply(&layer, &[], &archive("add('ok')")).reply();
            }
            None => {
                answer.reply();
            }
        }
        let left: Vec<_> =
            std::fs::read_dir(&canary).expect("canary").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["file"], "{script}");
        assert_eq!(std::fs::read_to_string(canary.join("file")).expect("canary"), "untouched", "{script}");
    }
    assert_eq!(bench.captured("h29"), ["file x 644 0:0 1000000000 e3b0c442 0"]);
}

#[test]
fn damaged_archives_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let good = archive("add('file', data=b'x' * 2000)\nadd('other')");
    for end in [100, 511, 513, 1000, 2000, 2500, 2700] {
        assert_eq!(bench.apply("l1", &[], &good[..end]).code(), "bad-archive", "{end}");
    }
    for at in [0, 100, 108, 124, 136, 148, 156, 257] {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        assert_eq!(bench.apply("l1", &[], &bad).code(), "bad-archive", "{at}");
    }
    assert_eq!(bench.apply("l1", &[], &[b'?'; 1024]).code(), "bad-archive");
    // Ended between entries, without the closing blocks: what other tools accept is accepted.
    bench.apply("l1", &[], &good[..2560 + 512]).reply();
    let names: Vec<String> = bench.captured("l1");
    assert_eq!(names.len(), 2);
}

#[test]
fn requests_are_checked() {
    let Some(mut bench) = Bench::new() else { return };
    bench.apply("l1", &[], &archive("add('f')")).reply();
    let cases = [
        (json!({"op": "build-setup", "work": "vda"}), "exists"),
        (json!({"op": "layer-capture", "layer": "nope"}), "not-found"),
        (json!({"op": "layer-capture", "layer": "../x"}), "bad-request"),
        (json!({"op": "layer-capture", "layer": "l1", "extra": 1}), "bad-request"),
        (json!({"op": "layer-capture"}), "bad-request"),
        (json!({"op": "layer-apply", "layer": "l1"}), "exists"),
        (json!({"op": "layer-apply", "layer": "l2", "stack": ["nope"]}), "not-found"),
        (json!({"op": "tree-stat", "stack": ["l1", "l1"], "path": "/"}), "bad-request"),
        (json!({"op": "layer-mount", "layer": "b9", "drive": "../../etc"}), "bad-request"),
        (json!({"op": "layer-mount", "layer": "b9", "drive": "vdz"}), "not-found"),
        (json!({"op": "disk-merge", "stack": ["l1"], "drive": "vdz"}), "not-found"),
        (json!({"op": "no-such-op"}), "unsupported-op"),
    ];
    for (request, expected) in cases {
        assert_eq!(bench.ask(&request, &[]).code(), expected, "{request}");
    }
    bench.ok(&json!({"op": "layer-drop", "layer": "l1"}));
    assert_eq!(bench.ask(&json!({"op": "layer-drop", "layer": "l1"}), &[]).code(), "not-found");
    // A full disk is told as such, and what was half unpacked is gone.
    bench.add_drive("vdb", 8);
    let huge = archive("add('huge', data=b'x' * 450000000)");
    assert_eq!(bench.apply("l3", &[], &huge).code(), "no-space");
    bench.apply("l3", &[], &archive("add('small', data=b'x' * 1000000)")).reply();
}

#[test]
fn a_stream_that_ends_in_the_middle_leaves_no_layer() {
    let Some(bench) = Bench::new() else { return };
    let bytes = archive("add('file', data=b'x' * 200000)\nadd('other')");
    for (frame_type, payload) in
        [(FrameType::Data, &bytes[..100_000]), (FrameType::Data, &bytes[..]), (FrameType::Stdin, &b"x"[..])]
    {
        let (mut ours, theirs) = UnixStream::pair().expect("pair");
        let builder = Arc::clone(&bench.builder);
        let request = json!({"op": "layer-apply", "layer": "l1"});
        let server = std::thread::spawn(move || serve(&builder, &request, theirs));
        write_frame(&mut ours, frame_type, payload).expect("sent");
        ours.shutdown(std::net::Shutdown::Write).expect("closed");
        let answer = collect(ours);
        server.join().expect("served");
        assert!(answer.replies.is_empty());
        let expected = if frame_type == FrameType::Stdin { Some("protocol") } else { None };
        assert_eq!(answer.error.as_ref().map(|error| error.0.as_str()), expected);
    }
    bench.apply("l1", &[], &bytes).reply();
}
