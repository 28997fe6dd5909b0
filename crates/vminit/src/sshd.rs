//! SSH's host keys: each clone has its own, and the server that runs is told.

use crate::hooks;
use crate::processes::{find_others, Stat};
use crate::reaper::Reaper;
use crate::sys;
use crate::util::{refuse, Context};
use firebuild_protocol::{ErrorCode, TaskError};
use std::path::{Path, PathBuf};
use std::time::Duration;

const FOLDER: &str = "/etc/ssh";
const PROGRAMS: [&str; 3] = ["/usr/bin/ssh-keygen", "/usr/local/bin/ssh-keygen", "/bin/ssh-keygen"];
/// An RSA key takes many seconds without hardware virtualization.
const KEY_TAKES: Duration = Duration::from_secs(120);
const TYPES: [&str; 4] = ["ed25519", "ecdsa", "rsa", "dsa"];
/// Those that take so long that the machine need not wait for them, where it has one of the others.
const SLOW_TYPES: [&str; 2] = ["rsa", "dsa"];

/// Remove all host keys and make others of their types. With `may_wait` those that take long are left to
/// [`make_host_keys`], and returned, unless there are no others.
pub fn renew_host_keys(reaper: &Reaper, may_wait: bool) -> Result<Vec<&'static str>, TaskError> {
    let kinds: Vec<&str> = TYPES.into_iter().filter(|kind| path_of(kind).symlink_metadata().is_ok()).collect();
    if kinds.is_empty() {
        return Ok(kinds);
    }
    find_program()?;
    // Before any is made: what fails half-way must not leave a key that another machine has.
    kinds.iter().try_for_each(|kind| remove(&path_of(kind)))?;
    let (slow, quick): (Vec<_>, Vec<_>) = kinds.into_iter().partition(|kind| may_wait && SLOW_TYPES.contains(kind));
    if quick.is_empty() {
        make_host_keys(reaper, &slow)?;
        return Ok(Vec::new());
    }
    make_host_keys(reaper, &quick)?;
    Ok(slow)
}

/// Make host keys of these types, of which there are none, and have the server take them.
pub fn make_host_keys(reaper: &Reaper, kinds: &[&str]) -> Result<(), TaskError> {
    let program = find_program()?;
    for kind in kinds {
        let path = path_of(kind);
        let file = path.to_string_lossy();
        let args = ["-q", "-t", kind, "-N", "", "-C", "", "-f", file.as_ref()];
        hooks::run(reaper, program, &args, &[], KEY_TAKES)?;
    }
    tell_server();
    Ok(())
}

fn path_of(kind: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("ssh_host_{kind}_key"))
}

fn find_program() -> Result<&'static Path, TaskError> {
    match PROGRAMS.iter().map(Path::new).find(|path| path.exists()) {
        Some(program) => Ok(program),
        None => refuse(ErrorCode::NotFound, "the image has SSH host keys but no ssh-keygen to make others"),
    }
}

fn remove(path: &Path) -> Result<(), TaskError> {
    for old in [path, &path.with_extension("pub")] {
        match std::fs::remove_file(old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).doing(format_args!("remove {}", old.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// SIGHUP makes it read its keys. It waits for the server until that goes on, and is taken before anything else is done.
fn tell_server() {
    for pid in servers(&find_others()) {
        // It may have been killed.
        let _ = sys::kill(i32::try_from(pid).unwrap_or(i32::MAX), libc::SIGHUP);
    }
}

/// Those that listen: a session's process has one of them as its parent, and must not be told.
fn servers(processes: &[(u32, Stat)]) -> Vec<u32> {
    let is_server = |pid: u32| processes.iter().any(|(other, stat)| *other == pid && stat.name == "sshd");
    let own = processes.iter().filter(|(_, stat)| stat.name == "sshd" && !is_server(stat.ppid));
    own.map(|(pid, _)| *pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_not_told() {
        let process = |pid: u32, ppid: u32, name: &str| {
            let line = format!("{pid} ({name}) S {ppid} 7 7 0 -1 4194304 1 2 3 4 250 50 0 0 20 0 1 0 12345 9 9");
            (pid, crate::processes::parse_stat(&line).unwrap())
        };
        let processes = [process(1, 0, "systemd"), process(7, 1, "sshd"), process(9, 7, "sshd"), process(8, 9, "bash")];
        assert_eq!(servers(&processes), [7]);
    }
}
