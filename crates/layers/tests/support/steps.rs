//! Steps on a tree that is made of this host's own programs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{json, Value};

use super::{archive, Bench};

const PROGRAMS: [&str; 20] = [
    "sh", "cat", "ls", "id", "mkdir", "rm", "touch", "chmod", "sleep", "stat", "readlink", "env", "hostname", "mv",
    "tty", "mount", "grep", "ln", "true", "find",
];

/// A small root file system out of this host's own programs and the libraries that they name.
pub fn host_tree() -> Vec<u8> {
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    for program in PROGRAMS {
        let path = ["/usr/bin", "/bin", "/usr/sbin"].iter().map(|folder| Path::new(folder).join(program));
        let path = path.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no {program} here"));
        let output = Command::new("ldd").arg(&path).output().expect("ldd");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        files.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
        files.insert(path);
    }
    let mut script = String::from(
        r##"
for name in ("usr", "usr/bin", "usr/lib", "etc", "root", "tmp", "var", "proc", "sys", "dev"):
    add(name, "dir")
add("bin", "link", linkname="usr/bin")
add("etc/passwd", data=b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/home/user:/bin/sh\n")
add("etc/group", data=b"root:x:0:\nuser:x:1001:\nextra:x:50:user\n")
add("etc/resolv.conf", data=b"nameserver 203.0.113.9\n")
add("etc/hosts", data=b"")
add("var/data", "dir")
add("var/data/old", data=b"old")
add("script", data=b"#!/bin/sh\necho script $0\n", mode=0o755)
add("plain", data=b"data")
def copy(path):
    add(path.lstrip("/") if not path.startswith("/bin/") else "usr" + path, data=open(path, "rb").read(), mode=0o755)
"##,
    );
    for file in files {
        script += &format!("copy({:?})\n", file.to_str().expect("text"));
    }
    archive(&script)
}

pub fn bench() -> Option<Bench> {
    let bench = Bench::new()?;
    bench.apply("b0", &[], &host_tree()).reply();
    Some(bench)
}

pub fn step(layer: &str, script: &str) -> Value {
    json!({"op": "layer-run", "layer": layer, "stack": ["b0"], "argv": ["/bin/sh", "-c", script],
        "env": ["PATH=/usr/bin:/bin"], "user": "", "workdir": "/", "network": "default"})
}

pub fn changed(base: &Value, changes: &[(&str, Value)]) -> Value {
    let mut request = base.clone();
    for (key, value) in changes {
        request[*key] = value.clone();
    }
    request
}

pub fn names(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split(' ').nth(1).expect("name")).collect()
}
