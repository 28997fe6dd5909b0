//! `vminit`: PID 1 of a firebuild guest. Boots a root file system from an initramfs, runs its entrypoint and
//! serves the host's requests (`protocol/PROTOCOL.md`).
//!
//! PID 1 must not end: nothing here panics, every failure is a value that is logged, told to the host and
//! followed by an orderly power-off.
#![cfg_attr(not(test), no_main)]
#![deny(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, dead_code))]

mod agent;
mod attach;
mod boot;
mod config;
mod control;
mod copy;
mod entrypoint;
mod etc;
mod files;
mod freeze;
mod grow;
mod guest;
mod handover;
mod health;
mod hold;
mod hooks;
mod http;
mod inits;
mod launch;
mod lend;
mod log;
mod metadata;
mod modules;
mod mounts;
mod netlink;
mod network;
mod outputs;
mod path_stat;
mod processes;
mod push;
mod reaper;
mod resume;
mod root;
mod service;
mod session;
mod snapshot;
mod sshd;
mod stream;
mod supervise;
mod sys;
mod tar;
mod teardown;
mod transport;
mod util;
mod volumes;

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the program begins; the result is the exit code of a process that is not PID 1.
fn start() -> i32 {
    if std::process::id() == 1 {
        boot::run();
    }
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    match args.get(1).map(String::as_str) {
        Some(firebuild_layers::STEP_ARGUMENT) => match args.get(2) {
            Some(file) => firebuild_layers::run_step(std::path::Path::new(file)),
            None => 2,
        },
        Some(handover::AGENT_ARGUMENT) => agent::run(),
        Some(handover::SERVICE_ARGUMENT) => service::run(),
        Some("--version") => say(&format!("vminit {VERSION}\n")),
        _ => {
            say("vminit is PID 1 of a firebuild guest: put it into an initramfs as /init\n");
            2
        }
    }
}

fn say(text: &str) -> i32 {
    match rustix::io::write(rustix::stdio::stdout(), text.as_bytes()) {
        Ok(_) => 0,
        Err(_) => 1,
    }
}
