//! The guest's processes, as /proc shows them: what `top` asks for, so that the image need have no `ps`.

use crate::files::read_or_empty;
use firebuild_protocol::message::ProcessInfo;
use firebuild_protocol::users::find_name;
use std::fs;

/// The answer is one frame.
const MOST_PROCESSES: usize = 1024;
const MOST_COMMAND: usize = 256;
const MOST_PASSWD: u64 = 4 << 20;
/// The kernel's own threads are children of this one.
const KTHREADD: u32 = 2;
/// A clock tick of proc(5): Linux tells every program 100 a second.
const TICK_MS: u64 = 10;

/// All but the kernel's threads, by pid; and whether there are more than that.
pub fn list() -> (Vec<ProcessInfo>, bool) {
    let passwd = read_or_empty("/etc/passwd", MOST_PASSWD).unwrap_or_default();
    let uptime_ms = fs::read_to_string("/proc/uptime").ok().and_then(|text| parse_uptime(&text)).unwrap_or_default();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    // One that ends meanwhile has no files any more.
    let mut found = pids.into_iter().filter_map(|pid| read(pid, uptime_ms, &passwd));
    let listed: Vec<ProcessInfo> = found.by_ref().take(MOST_PROCESSES).collect();
    let more = found.next().is_some();
    (listed, more)
}

fn read(pid: u32, uptime_ms: u64, passwd: &[u8]) -> Option<ProcessInfo> {
    let text = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
    let stat = parse_stat(&String::from_utf8_lossy(&text("stat")?))?;
    if pid == KTHREADD || stat.ppid == KTHREADD {
        return None;
    }
    let status = text("status")?;
    let status = String::from_utf8_lossy(&status);
    let uid = field(&status, "Uid:")?;
    let command = parse_command(&text("cmdline")?).unwrap_or_else(|| format!("[{}]", shown(&stat.name)));
    Some(ProcessInfo {
        pid,
        ppid: stat.ppid,
        user: find_name(uid, passwd).map_or_else(|| uid.to_string(), |name| shown(&name)),
        state: stat.state,
        cpu_ms: stat.cpu_ticks * TICK_MS,
        elapsed_ms: uptime_ms.saturating_sub(stat.start_ticks * TICK_MS),
        // One that has ended and is not waited for has none.
        memory_kib: field(&status, "VmRSS:").map_or(0, u64::from),
        command,
    })
}

/// All processes of user space but this one.
pub fn find_others() -> Vec<(u32, Stat)> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own).filter_map(|pid| Some((pid, find_stat(pid)?))).collect()
}

/// None for one of the kernel's threads, and one that is gone.
pub fn find_stat(pid: u32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text)).filter(|stat| pid != KTHREADD && stat.ppid != KTHREADD)
}

/// What /proc/PID/stat says of a process. `state`: one letter, as in proc(5).
#[derive(Debug, PartialEq, Eq)]
pub struct Stat {
    pub name: String,
    pub state: String,
    pub ppid: u32,
    cpu_ticks: u64,
    start_ticks: u64,
}

/// /proc/PID/stat. The name may hold spaces and parentheses: fields are counted from its last parenthesis.
pub fn parse_stat(text: &str) -> Option<Stat> {
    let (head, rest) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    // The first of them is field 3.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at - 3)?.parse::<u64>().ok();
    Some(Stat {
        name,
        state: (*fields.first()?).to_owned(),
        ppid: u32::try_from(number(4)?).ok()?,
        cpu_ticks: number(14)?.saturating_add(number(15)?),
        start_ticks: number(22)?,
    })
}

/// The first number of a line of /proc/PID/status.
fn field(status: &str, name: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, rest) = text.split_ascii_whitespace().next()?.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1000 + rest.parse::<u64>().ok()? * 10)
}

/// None for a process without arguments: one of the kernel's, or one that has ended.
fn parse_command(bytes: &[u8]) -> Option<String> {
    let words: Vec<_> = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let text = words.join(" ");
    let text = text.trim_end();
    (!text.is_empty()).then(|| shown(text))
}

fn shown(text: &str) -> String {
    let mut end = text.len().min(MOST_COMMAND);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let clean = |c: char| if c.is_control() { '?' } else { c };
    text.get(..end).unwrap_or_default().chars().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "7 (a) (b c) S 1 7 7 0 -1 4194304 1 2 3 4 250 50 0 0 20 0 1 0 12345 9 9";
        let expected =
            Stat { name: "a) (b c".to_owned(), state: "S".to_owned(), ppid: 1, cpu_ticks: 300, start_ticks: 12345 };
        assert_eq!(parse_stat(text), Some(expected));
        assert_eq!(parse_stat("7 (x) S 1"), None);
    }

    #[test]
    fn commands_are_bounded_and_without_control_characters() {
        assert_eq!(parse_command(b"sh\0-c\0echo \x1b[2J\0").as_deref(), Some("sh -c echo ?[2J"));
        assert_eq!(parse_command(b""), None);
        assert_eq!(parse_command("é".repeat(200).as_bytes()).map(|text| text.len()), Some(MOST_COMMAND));
    }

    #[test]
    fn uptime() {
        assert_eq!(parse_uptime("12.34 5.00\n"), Some(12_340));
        assert_eq!(parse_uptime("x"), None);
    }

    #[test]
    fn this_process_is_listed() {
        let (found, _) = list();
        let own = found.iter().find(|process| process.pid == std::process::id());
        assert!(own.is_some_and(|process| process.memory_kib > 0 && !process.command.is_empty()));
    }
}
