//! The inits that an image may bring: how each is told of the entrypoint's service, and how it is asked to go down.

use crate::handover::{PROGRAM, SERVICE_ARGUMENT};
use crate::util::{refuse, Context};
use crate::{files, sys};
use firebuild_protocol::{ErrorCode, TaskError};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where an init is looked for: the kernel's own first choice, then where Debian and others keep systemd.
const PROGRAMS: [&str; 4] = ["/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"];

const UNIT: &str = "firebuild-entrypoint.service";
/// Entrypoint and machine are one: when it has ended the machine goes down, so nothing here restarts it.
const UNIT_TEXT: &str = "[Unit]
Description=The machine's entrypoint
After=basic.target network.target ssh.service sshd.service

[Service]
ExecStart=/run/firebuild/vminit service
KillMode=mixed
TimeoutStopSec=15s
";

/// Its stop succeeds where the entrypoint has ended by itself: Debian's scripts take the machine down only if every stop did.
const SCRIPT_TEXT: &str = "#!/sbin/openrc-run
description=\"The machine's entrypoint\"
command=/run/firebuild/vminit
command_args=service
command_background=yes
pidfile=/run/firebuild/service.pid
depend() {
\tafter *
}
stop() {
\tstart-stop-daemon --stop --exec \"$command\" --pidfile \"$pidfile\" --retry TERM/15/KILL/5 || true
}
";

/// A line of a busybox inittab, which is run once OpenRC's runlevel is reached.
const BUSYBOX_ID: &str = "::once:";
/// A line of a System V inittab: once in each of the multi-user runlevels.
const SYSV_ID: &str = "fire:2345:once:";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    Systemd,
    /// openrc-init as PID 1.
    OpenRc,
    Busybox,
    /// Another program that reads `/etc/inittab` and knows runlevels.
    SystemV,
}

impl Init {
    /// The image's init program and what it is.
    pub fn find() -> Result<(CString, Self), TaskError> {
        for path in PROGRAMS {
            let Ok(real) = std::fs::canonicalize(path) else { continue };
            let runs =
                std::fs::metadata(&real).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
            if !runs {
                return refuse(ErrorCode::NotExecutable, format!("the image's init {path} is not executable"));
            }
            return Ok((CString::new(path).unwrap_or_default(), Self::of(&real)));
        }
        refuse(ErrorCode::NotFound, "the image has no init (/sbin/init): it cannot start in system mode")
    }

    fn of(program: &Path) -> Self {
        match program.file_name().map(OsStrExt::as_bytes) {
            Some(b"systemd") => Self::Systemd,
            Some(b"openrc-init") => Self::OpenRc,
            Some(b"busybox") => Self::Busybox,
            _ => Self::SystemV,
        }
    }

    /// Tell the init what to start, in the root that is now `/`.
    pub fn install_service(self) -> Result<(), TaskError> {
        match self {
            Self::Systemd => install_unit(),
            _ if Path::new("/sbin/openrc-run").exists() => install_script(),
            Self::Busybox | Self::OpenRc => add_to_inittab(BUSYBOX_ID),
            Self::SystemV => add_to_inittab(SYSV_ID),
        }
    }

    /// Ask the init to take the machine down. A restart: that is what ends a microVM, whatever the VMM.
    pub fn request_shutdown(self) -> Result<(), TaskError> {
        match self {
            // systemd(1): SIGRTMIN+5 starts reboot.target. SIGRTMIN is 34 for programs of a C library.
            Self::Systemd => sys::kill(1, 34 + 5).doing("signal systemd"),
            Self::Busybox => sys::kill(1, libc::SIGTERM).doing("signal init"),
            Self::OpenRc => run(&["openrc-shutdown", "--reboot", "now"]),
            Self::SystemV => run(&["shutdown", "-r", "now"]).or_else(|_| run(&["reboot"])),
        }
    }
}

fn install_unit() -> Result<(), TaskError> {
    let folder = "/run/systemd/system";
    files::replace(folder, UNIT, UNIT_TEXT)?;
    let wants = format!("{folder}/multi-user.target.wants");
    files::ensure_directory(&wants)?;
    link(&format!("../{UNIT}"), &format!("{wants}/{UNIT}"))
}

fn install_script() -> Result<(), TaskError> {
    let folder = files::open_directory("/etc/init.d")?;
    files::replace_at(&folder, "firebuild-entrypoint", SCRIPT_TEXT.as_bytes(), 0o755, None)?;
    files::ensure_directory("/etc/runlevels/default")?;
    link("/etc/init.d/firebuild-entrypoint", "/etc/runlevels/default/firebuild-entrypoint")
}

fn link(target: &str, path: &str) -> Result<(), TaskError> {
    match rustix::fs::symlink(target, path) {
        // From an earlier boot of this machine.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).doing(format_args!("link {path}")),
    }
}

fn add_to_inittab(id: &str) -> Result<(), TaskError> {
    const MOST: u64 = 1 << 20;
    let table = files::read_or_empty("/etc/inittab", MOST)?;
    let table = inittab_with(&String::from_utf8_lossy(&table), id);
    files::replace("/etc", "inittab", &table)
}

/// The table with the service's line in it, once.
fn inittab_with(table: &str, id: &str) -> String {
    let line = format!("{id}{PROGRAM} {SERVICE_ARGUMENT}");
    let mut lines: Vec<&str> =
        table.lines().filter(|known| !known.starts_with(id) || !known.contains(PROGRAM)).collect();
    lines.push(&line);
    lines.join("\n") + "\n"
}

/// Run one of the root's programs and leave it to itself.
fn run(argv: &[&str]) -> Result<(), TaskError> {
    let (Some(program), arguments) = (argv.first(), argv.get(1..).unwrap_or_default()) else { return Ok(()) };
    let found = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"].iter().map(|folder| PathBuf::from(folder).join(program));
    let Some(file) = found.into_iter().find(|file| file.exists()) else {
        return refuse(ErrorCode::NotFound, format!("the image has no {program}"));
    };
    let mut command = Command::new(file);
    command.args(arguments).stdin(Stdio::null());
    command.spawn().map(drop).doing(format_args!("run {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (path, init) in [
            ("/usr/lib/systemd/systemd", Init::Systemd),
            ("/bin/busybox", Init::Busybox),
            ("/usr/sbin/openrc-init", Init::OpenRc),
            ("/usr/sbin/init", Init::SystemV),
        ] {
            assert_eq!(Init::of(Path::new(path)), init, "{path}");
        }
    }

    #[test]
    fn an_inittab_gets_the_line_once() {
        let once = inittab_with("id:2:initdefault:\n", SYSV_ID);
        assert_eq!(once, "id:2:initdefault:\nfire:2345:once:/run/firebuild/vminit service\n");
        assert_eq!(inittab_with(&once, SYSV_ID), once);
    }
}
