//! The kernel's log as vminit's log: whoever has a console sees it, nobody needs one.

use rustix::fs::{Mode, OFlags};

/// One line at level notice.
pub fn note(text: &str) {
    write('5', text);
}

/// One line at level error.
pub fn error(text: &str) {
    write('3', text);
}

/// Lift the kernel's limit of ten lines in five seconds (or set it again: root in the guest may write there too).
pub fn set_unlimited(unlimited: bool) {
    let word: &[u8] = if unlimited { b"on" } else { b"ratelimit" };
    if let Ok(file) =
        rustix::fs::open("/proc/sys/kernel/printk_devkmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    {
        // Where the command line has set it, it cannot be changed: lines may then be missing, no more.
        let _ = rustix::io::write(&file, word);
    }
}

fn write(level: char, text: &str) {
    const LONGEST: usize = 800;
    let one_line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    if let Ok(file) = rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        // There is nowhere left to report that the log cannot be written.
        let _ = rustix::io::write(&file, format!("<{level}>vminit: {one_line}\n").as_bytes());
    }
}
