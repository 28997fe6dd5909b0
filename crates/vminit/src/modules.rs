//! Kernel modules from the initramfs, in the order of `/modules/order`.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs;

const FOLDER: &str = "/modules";

/// Load them all. Returns what failed, as sentences: only what comes later shows whether it was needed.
pub fn load_all() -> Vec<String> {
    let Ok(order) = fs::read_to_string(format!("{FOLDER}/order")) else { return Vec::new() };
    let mut failures = Vec::new();
    for name in parse_order(&order) {
        match load(name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => failures.push(format!("module {name}: {errno}")),
        }
    }
    failures
}

fn load(name: &str) -> rustix::io::Result<()> {
    let path = format!("{FOLDER}/{name}");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::system::finit_module(&file, <&std::ffi::CStr>::default(), 0)
}

fn parse_order(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order() {
        let names: Vec<_> = parse_order("virtio.ko\n\n# a comment\n  virtio_ring.ko \r\n").collect();
        assert_eq!(names, ["virtio.ko", "virtio_ring.ko"]);
    }
}
