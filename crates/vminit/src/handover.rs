//! System mode: from PID 1 to the image's own init, with an agent that lives on beside it.
//!
//! The init takes PID 1 over by exec. The agent is a child that was started before and waits until PID 1's
//! descriptors are closed, the way to the host among them; then it opens that way anew, as after a restore.

use crate::guest::Guest;
use crate::inits::Init;
use crate::metadata::Profile;
use crate::sys::{self, ChildSetup};
use crate::teardown::HOST_GRACE;
use crate::util::{refuse, Context};
use crate::{files, log, mounts};
use firebuild_protocol::message::{to_json, BootDocument};
use firebuild_protocol::{ErrorCode, TaskError};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

pub const AGENT_ARGUMENT: &str = "agent";
pub const SERVICE_ARGUMENT: &str = "service";

/// Root's alone: what agent and service share.
pub const FOLDER: &str = "/run/firebuild";
pub const AGENT_SOCKET: &str = "/run/firebuild/agent";
/// Where the service lends the entrypoint's input.
pub const INPUT_SOCKET: &str = "/run/firebuild/input";
/// Stands there once a service of this boot has started the entrypoint.
pub const STARTED: &str = "/run/firebuild/started";
pub const STARTED_NAME: &str = "started";
/// This program, where the init finds it.
pub const PROGRAM: &str = "/run/firebuild/vminit";
const DOCUMENT: &str = "boot.json";
const MOST_DOCUMENT: u64 = 4 << 20;

/// Everything is configured: let the image's init take over. Returns only if it cannot, with the host still there.
pub fn hand_over(guest: &Guest, profile: &Profile) -> Result<(), TaskError> {
    let (program, init) = Init::find()?;
    mounts::mount_run()?;
    // systemd leaves /run as it is, and at the end would wait for a mount that is in use.
    if init != Init::Systemd {
        mounts::mount_own_folder()?;
    }
    prepare_folder()?;
    save_document(&guest.document(), profile)?;
    std::fs::copy("/proc/self/exe", PROGRAM).doing(format_args!("make {PROGRAM}"))?;
    init.install_service()?;
    let waits = start_agent(guest)?;
    crate::boot::step(guest, "start-init");
    // The agent tells the rest, over a stream of its own.
    guest.push.close(HOST_GRACE);
    let error = sys::become_init(&program);
    log::error(&format!("cannot boot: {}: {error}", program.to_string_lossy()));
    // The agent must not take the descriptors' end for the init's beginning.
    drop(waits);
    crate::teardown::reboot()
}

fn prepare_folder() -> Result<(), TaskError> {
    let folder = files::open_directory(FOLDER)?;
    rustix::fs::fchmod(&folder, rustix::fs::Mode::from_raw_mode(0o700)).doing("protect /run/firebuild")
}

/// The document as agent and service read it: with the metadata in it.
pub fn save_document(document: &BootDocument, profile: &Profile) -> Result<(), TaskError> {
    let folder = files::open_directory(FOLDER)?;
    let mut document = document.clone();
    document.mmds = None;
    document.metadata = Some(profile.metadata.clone());
    files::replace_at(&folder, DOCUMENT, &to_json(&document), 0o600, None)
}

/// What [`hand_over`] wrote.
pub fn load_document() -> Result<BootDocument, TaskError> {
    let path = format!("{FOLDER}/{DOCUMENT}");
    let text = files::read_or_empty(&path, MOST_DOCUMENT)?;
    serde_json::from_slice(&text).map_err(|error| TaskError::new(ErrorCode::Internal, format!("{path}: {error}")))
}

/// The agent waits for the end of file of its input, which the exec brings: the other end is closed by it.
fn start_agent(guest: &Guest) -> Result<std::os::fd::OwnedFd, TaskError> {
    let (input, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing("open a pipe")?;
    let mut command = Command::new(PROGRAM);
    command.arg0("vminit").arg(AGENT_ARGUMENT).env_clear().stdin(Stdio::from(input));
    let setup = ChildSetup { new_session: true, ..ChildSetup::default() };
    match guest.reaper.start_child(&mut command, setup) {
        Ok(_) => Ok(ours),
        Err(error) => refuse(ErrorCode::Internal, format!("start the agent: {error}")),
    }
}
