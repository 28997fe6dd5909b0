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
const TYPES: [&str; 4] = ["rsa", "ecdsa", "ed25519", "dsa"];

/// Make each host key that there is anew.
pub fn renew_host_keys(reaper: &Reaper) -> Result<(), TaskError> {
    let keys: Vec<(&str, PathBuf)> = TYPES
        .iter()
        .map(|kind| (*kind, Path::new(FOLDER).join(format!("ssh_host_{kind}_key"))))
        .filter(|(_, path)| path.symlink_metadata().is_ok())
        .collect();
    if keys.is_empty() {
        return Ok(());
    }
    let Some(program) = PROGRAMS.iter().map(Path::new).find(|path| path.exists()) else {
        return refuse(ErrorCode::NotFound, "the image has SSH host keys but no ssh-keygen to make others");
    };
    for (kind, path) in keys {
        renew(reaper, program, kind, &path)?;
    }
    tell_server();
    Ok(())
}

/// The old key goes first: what fails half-way must not leave a key that another machine has.
fn renew(reaper: &Reaper, program: &Path, kind: &str, path: &Path) -> Result<(), TaskError> {
    let public = path.with_extension("pub");
    for old in [path, &public] {
        match std::fs::remove_file(old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).doing(format_args!("remove {}", old.display()));
            }
            _ => {}
        }
    }
    let file = path.to_string_lossy();
    let args = ["-q", "-t", kind, "-N", "", "-C", "", "-f", file.as_ref()];
    hooks::run(reaper, program, &args, &[], KEY_TAKES)
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
