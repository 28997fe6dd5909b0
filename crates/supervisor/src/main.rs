//! firebuild-supervisor: holds one running microVM on the host, from its start to its exit record.
#![deny(unsafe_code)]

mod clock;
mod config;
mod control;
mod files;
mod frames;
mod logs;
mod notices;
mod process;
mod push;
mod record;
mod run;
mod sockets;
mod state;
mod sys;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::run::Supervisor;

const USAGE: &str = "usage: firebuild-supervisor --config FILE [--ready-fd N] [--owner-fd N] | --version";

enum Invocation {
    Version,
    Run { config: PathBuf, ready_fd: Option<i32>, owner_fd: Option<i32> },
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match parse_arguments(&arguments) {
        Ok(Invocation::Version) => {
            println!("firebuild-supervisor {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Invocation::Run { config, ready_fd, owner_fd }) => supervise(config, ready_fd, owner_fd),
        Err(message) => {
            eprintln!("firebuild-supervisor: {message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse_arguments(arguments: &[String]) -> Result<Invocation, String> {
    let mut config = None;
    let mut ready_fd = None;
    let mut owner_fd = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--version" => return Ok(Invocation::Version),
            "--config" => config = Some(PathBuf::from(value()?)),
            "--ready-fd" => ready_fd = Some(parse_fd(argument, value()?)?),
            "--owner-fd" => owner_fd = Some(parse_fd(argument, value()?)?),
            _ => return Err(format!("unknown argument {argument:?}")),
        }
    }
    match config {
        Some(config) => Ok(Invocation::Run { config, ready_fd, owner_fd }),
        None => Err("--config is missing".to_owned()),
    }
}

fn parse_fd(argument: &str, number: &str) -> Result<i32, String> {
    number.parse().map_err(|_| format!("{argument}: {number:?} is not a number"))
}

fn supervise(config: PathBuf, ready_fd: Option<i32>, owner_fd: Option<i32>) -> ExitCode {
    let adopt = |number: Option<i32>| number.map(sys::adopt_fd).transpose();
    let (mut ready, owner) = match (adopt(ready_fd), adopt(owner_fd)) {
        (Ok(ready), Ok(owner)) => (ready, owner),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("firebuild-supervisor: --ready-fd or --owner-fd: {error}");
            return ExitCode::from(2);
        }
    };
    match start(&config, owner) {
        Ok(mut supervisor) => {
            tell(&mut ready, &supervisor.started_line());
            drop(ready);
            if supervisor.run() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(message) => {
            eprintln!("firebuild-supervisor: {message}");
            let line = json!({"event": "error", "message": message});
            tell(&mut ready, &format!("{line}\n"));
            ExitCode::FAILURE
        }
    }
}

fn start(path: &std::path::Path, owner: Option<File>) -> Result<Supervisor, String> {
    let config = config::load_config(path)?;
    // Own session: a Ctrl-C in the terminal that started the machine is not meant for it. Fails if it has one already.
    let _ = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("PR_SET_CHILD_SUBREAPER: {error}"))?;
    let oom_score_adj = process::protect_from_oom();
    let sockets = sockets::open(&config, owner)?;
    let paths = (config.push_socket.clone(), config.control_socket.clone());
    Supervisor::start(config, sockets, &oom_score_adj).map_err(|message| {
        let _ = std::fs::remove_file(paths.0);
        let _ = std::fs::remove_file(paths.1);
        message
    })
}

/// Whoever started us may be gone: then nobody needs the line.
fn tell(ready: &mut Option<File>, line: &str) {
    if let Some(file) = ready {
        let _ = file.write_all(line.as_bytes());
    }
}
