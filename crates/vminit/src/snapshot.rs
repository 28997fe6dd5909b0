//! Before a snapshot: everything stands still, is on disk, and no stream is open. After it: the same machine goes on.

use crate::freeze::{freeze, thaw, Frozen};
use crate::guest::Guest;
use crate::reaper::Gate;
use crate::util::{lock, refuse, Deadline};
use firebuild_protocol::{ErrorCode, TaskError};
use std::time::Duration;

/// For work that is under way, and for processes to stand still.
const HOLD_TAKES: Duration = Duration::from_secs(15);
/// For the host to take what was pushed.
const PUSH_TAKES: Duration = Duration::from_secs(5);
pub const HOST_TAKES: Duration = Duration::from_secs(60);

/// Hold the guest. Returns in which way its processes were stopped. Again on a held guest: nothing changes.
pub fn pause(guest: &Guest) -> Result<&'static str, TaskError> {
    let mut frozen = lock(&guest.hold.frozen);
    if !guest.hold.is_held() {
        stop_everything(guest, &mut frozen)?;
    }
    guest.push.suspend(PUSH_TAKES);
    rustix::fs::sync();
    Ok(frozen.as_ref().map_or("nothing", Frozen::way))
}

/// The machine that was held goes on as it was.
pub fn go_on(guest: &Guest) -> Result<(), TaskError> {
    let mut frozen = lock(&guest.hold.frozen);
    if !guest.hold.is_held() {
        return refuse(ErrorCode::BadRequest, "the guest is not held");
    }
    guest.push.reopen(Deadline::after(HOST_TAKES))?;
    release(guest, &mut frozen)
}

/// Nothing new begins, and who is at work stands still.
pub fn stop_everything(guest: &Guest, frozen: &mut Option<Frozen>) -> Result<(), TaskError> {
    let deadline = Deadline::after(HOLD_TAKES);
    guest.hold.begin(deadline)?;
    guest.reaper.set_gate(Gate::Held);
    if guest.is_build() {
        // Its steps are work, and nothing else runs.
        return Ok(());
    }
    match freeze(deadline) {
        Ok(done) => {
            *frozen = Some(done);
            Ok(())
        }
        Err(error) => {
            guest.reaper.set_gate(Gate::Open);
            guest.hold.end();
            Err(error)
        }
    }
}

/// All that [`stop_everything`] stopped goes on.
pub fn release(guest: &Guest, frozen: &mut Option<Frozen>) -> Result<(), TaskError> {
    if let Some(done) = frozen.take() {
        thaw(done)?;
    }
    guest.reaper.set_gate(Gate::Open);
    guest.hold.end();
    Ok(())
}

/// A held machine is to end: nothing goes on before that, and the host hears of it where it listens.
pub fn give_up(guest: &Guest) {
    guest.reaper.set_gate(Gate::Shut);
    if let Err(error) = guest.push.reopen(Deadline::after(PUSH_TAKES)) {
        crate::log::error(&format!("push stream: {error}"));
    }
}
