//! Programs of the image that are run while everything else stands still: bounded in time and output.

use crate::outputs::Outputs;
use crate::reaper::{Reaper, Started};
use crate::session::{give_pipes, start_error};
use crate::sys::ChildSetup;
use crate::util::{refuse, Context, Deadline};
use firebuild_protocol::{ErrorCode, ProcessHost, ProtocolError, TaskError};
use rustix::time::{timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where an image has its own.
pub const FOLDER: &str = "/etc/firebuild/resume.d";
pub const HOOK_TAKES: Duration = Duration::from_secs(30);
const MOST_OUTPUT: usize = 2048;
const MOST_HOOKS: usize = 256;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The executable files of a folder, by name; those whose name is hidden or a copy's (`x~`, `x.dpkg-old`) are none.
pub fn find(folder: &str) -> Result<Vec<PathBuf>, TaskError> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let runs = |path: &PathBuf| {
        let is_named = path.file_name().and_then(|name| name.to_str()).is_some_and(is_hook_name);
        is_named
            && std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let mut hooks: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(runs).collect();
    hooks.sort_unstable();
    if hooks.len() > MOST_HOOKS {
        return refuse(ErrorCode::Limit, format!("{folder} has more than {MOST_HOOKS} programs"));
    }
    Ok(hooks)
}

/// run-parts(8)'s names, and dots before an ending of a program's (`.sh`, `.py`).
fn is_hook_name(name: &str) -> bool {
    const NOT: [&str; 5] = [".dpkg-old", ".dpkg-dist", ".dpkg-new", ".rpmsave", ".rpmnew"];
    let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    is_plain && !name.starts_with('.') && !NOT.iter().any(|ending| name.ends_with(ending))
}

/// Run a program as root, in `/`, with nothing but these variables and PATH. An end other than 0 is `hook-failed` with
/// what it wrote; one that is not there in time is killed with its process group.
pub fn run(
    reaper: &Reaper,
    program: &Path,
    args: &[&str],
    env: &[(&str, &str)],
    takes: Duration,
) -> Result<(), TaskError> {
    let name = program.display();
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", PATH).env("HOME", "/root").envs(env.iter().copied()).current_dir("/");
    let ends = give_pipes(&mut command, false, None)?;
    let setup = ChildSetup { new_session: true, ..ChildSetup::default() };
    let started = reaper.start_own(&mut command, setup).map_err(|error| start_error(&command, &error))?;
    drop(command);
    let (output, in_time) = collect(&started, ends.outputs, takes)?;
    if !in_time {
        // An error means that it has ended this moment.
        let _ = reaper.signal(started.pid, libc::SIGKILL, true);
    }
    let exit = reaper.wait(started.pid).doing("wait for a program")?;
    let said = said(&output);
    match (in_time, exit.code) {
        (true, 0) => Ok(()),
        (true, code) => refuse(ErrorCode::HookFailed, format!("{name} ended with {code}{said}")),
        (false, _) => {
            let seconds = takes.as_secs();
            refuse(
                ErrorCode::HookFailed,
                format!("{name} did not end in {seconds} s (what stands still cannot answer it){said}"),
            )
        }
    }
}

/// Its last words, and whether it ended in time.
fn collect(started: &Started, mut outputs: Outputs, takes: Duration) -> Result<(Vec<u8>, bool), TaskError> {
    let timer = start_timer(takes)?;
    let deadline = Deadline::after(takes);
    let mut output = Vec::new();
    let mut sink = |_, bytes: &[u8]| {
        output.extend_from_slice(bytes);
        let excess = output.len().saturating_sub(MOST_OUTPUT);
        output.drain(..excess);
        Ok::<_, ProtocolError>(())
    };
    let ended = loop {
        let timer = rustix::event::PollFd::new(&timer, rustix::event::PollFlags::IN);
        let (ready, _) = outputs.wait(&started.pidfd, vec![timer]).doing("poll")?;
        // The sink never fails.
        let _ = outputs.pump_ready(&ready, &mut sink);
        if ready.ended {
            let _ = outputs.drain(&mut sink);
            break true;
        }
        if deadline.has_passed() {
            break false;
        }
    };
    Ok((output, ended))
}

fn start_timer(takes: Duration) -> Result<OwnedFd, TaskError> {
    let zero = crate::util::timespec(Duration::ZERO);
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).doing("make a timer")?;
    let value = Itimerspec { it_interval: zero, it_value: crate::util::timespec(takes) };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value).doing("set a timer")?;
    Ok(timer)
}

fn said(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let text = text.trim();
    if text.is_empty() {
        ", and wrote nothing".to_owned()
    } else {
        format!(": {text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["10-keys", "20_b.sh", "z"] {
            assert!(is_hook_name(good), "{good}");
        }
        for bad in [".x", "a~", "10-keys.dpkg-old", "a b", "x.rpmsave"] {
            assert!(!is_hook_name(bad), "{bad}");
        }
    }

    #[test]
    fn hooks_are_executable_files_by_name() {
        let folder = std::env::temp_dir().join(format!("vminit-hooks-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o700), ("30-not", 0o644), (".hidden", 0o755)] {
            std::fs::write(folder.join(name), "").unwrap();
            std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(folder.join("40-folder")).unwrap();
        let found = find(folder.to_str().unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found.unwrap(), [folder.join("10-a"), folder.join("20-b")]);
        assert!(find("/no/such/folder").unwrap().is_empty());
    }

    #[test]
    fn words_of_a_program() {
        assert_eq!(said(b" no keys\n"), ": no keys");
        assert_eq!(said(b"\n"), ", and wrote nothing");
    }
}
