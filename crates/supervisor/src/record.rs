//! The end of a machine: the exit record and the command that cleans up.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::Value;

use crate::config::Config;
use crate::files::write_atomically;
use crate::process::{start_command, Process};

/// Writes the exit record; it is complete on the disk when this returns.
pub fn write_exit_record(path: &Path, record: &Value) -> io::Result<()> {
    write_atomically(path, format!("{record}\n").as_bytes())
}

/// Starts `on_exit`, its output appended to `cleanup.log` beside the console log. None when there is none.
pub fn start_cleanup(config: &Config) -> io::Result<Option<Process>> {
    if config.on_exit.is_empty() {
        return Ok(None);
    }
    let log = open_cleanup_log(config)?;
    match start_command(&config.on_exit, &log) {
        Ok(process) => Ok(Some(process)),
        Err(error) => {
            note_cleanup(config, &format!("cannot start {:?}: {error}", config.on_exit));
            Err(error)
        }
    }
}

/// Appends a line of the supervisor's own to `cleanup.log`, if it can.
pub fn note_cleanup(config: &Config, message: &str) {
    // The clean-up may have removed the folder: then nobody is left to read it.
    if let Ok(mut log) = open_cleanup_log(config) {
        let _ = writeln!(log, "firebuild-supervisor: {message}");
    }
}

pub fn open_cleanup_log(config: &Config) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(config.console_log.path.with_file_name("cleanup.log"))
}
