//! The two listening sockets and the signal descriptor, opened before the VMM starts.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::config::Config;
use crate::run::Sockets;
use crate::sys;

/// Binds both sockets, mode 0600, the push socket owned by the VMM's user. The error is one line for a person.
pub fn open(config: &Config, owner: Option<File>) -> Result<Sockets, String> {
    let named = |path: &Path, error: io::Error| format!("socket {}: {error}", path.display());
    let signals = sys::open_signals().map_err(|error| format!("signals: {error}"))?;
    let push = listen(&config.push_socket).map_err(|error| named(&config.push_socket, error))?;
    let result = (|| {
        if let Some((uid, gid)) = config.push_socket_owner {
            chown(&config.push_socket, Some(uid), Some(gid)).map_err(|error| named(&config.push_socket, error))?;
        }
        listen(&config.control_socket).map_err(|error| named(&config.control_socket, error))
    })();
    match result {
        Ok(control) => Ok(Sockets { push, control, signals, owner: owner.map(OwnedFd::from) }),
        Err(message) => {
            let _ = std::fs::remove_file(&config.push_socket);
            Err(message)
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // By its folder's descriptor: a socket's path has 107 bytes, and that of a jail may have more.
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    // A socket that nobody answers is left over from a crash; one that answers is in use.
    match UnixStream::connect(&short) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    // No other thread runs, so the umask is ours alone to change.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(&short);
    rustix::process::umask(before);
    let listener = listener?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
