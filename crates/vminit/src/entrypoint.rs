//! The entrypoint: started as the image says, its output pushed to the host, its end ordered to the main thread.

use crate::guest::{Guest, Order};
use crate::health::Monitor;
use crate::launch::{prepare, Launch};
use crate::metadata::Profile;
use crate::outputs::{Outputs, Sink};
use crate::reaper::{Reaper, Started};
use crate::session::{give_pipes, give_terminal, start_error, Ends};
use crate::supervise::follow_all;
use crate::util::{refuse, start_thread};
use firebuild_protocol::message::{BootDocument, PushEvent};
use firebuild_protocol::{ErrorCode, ProcessExit, ProcessHost, TaskError};
use std::sync::Arc;

/// Start it. Returns its pid once the program has been executed.
pub fn start(guest: &Arc<Guest>, profile: &Profile) -> Result<u32, TaskError> {
    let size = guest.supervision.attached.size();
    let (started, ends) = launch(&guest.reaper, profile, &guest.document(), size)?;
    let pid = started.pid;
    guest.supervision.set_pid(Some(pid));
    check_health(guest, profile);
    let (own, profile) = (Arc::clone(guest), profile.clone());
    start_thread("entrypoint", move || {
        let mut sink = |frame_type, bytes: &[u8]| {
            // The log comes first: nobody who is attached can hold it up.
            own.push.send(frame_type, bytes);
            own.supervision.attached.send(frame_type, bytes);
            Ok(())
        };
        let mut tell = |event: &PushEvent| own.push.event(event);
        let first = (started, ends);
        let exit = follow_all(&own.reaper, &profile, &own.document(), &own.supervision, first, &mut sink, &mut tell);
        own.supervision.attached.end(exit);
        own.order(Order::EntrypointEnded(exit));
    })?;
    Ok(pid)
}

/// Check the machine's health from here on, if it is to be checked.
pub fn check_health(guest: &Arc<Guest>, profile: &Profile) {
    if let Some(check) = &guest.document().health {
        let push = guest.push.clone();
        let tell = Box::new(move |event: &PushEvent| push.event(event));
        guest.supervision.set_health(Monitor::new(guest.reaper.clone(), profile.clone(), check.clone(), tell));
        guest.supervision.begin_health();
    }
}

/// Execute it as a child of this process.
pub fn launch(
    reaper: &Reaper,
    profile: &Profile,
    document: &BootDocument,
    (rows, cols): (u16, u16),
) -> Result<(Started, Ends), TaskError> {
    let tty = document.tty;
    let argv = profile.entrypoint.argv();
    if argv.is_empty() {
        return refuse(ErrorCode::BadRequest, "the image has neither an entrypoint nor a command");
    }
    let launch = Launch { argv: &argv, tty, make_workdir: true, ..Launch::default() };
    let (mut command, mut setup) = prepare(profile, &launch)?;
    let owner = setup.identity.as_ref().map(|(uid, _, _)| *uid);
    let ends = if tty {
        give_terminal(&mut command, rows, cols, owner)?
    } else {
        give_pipes(&mut command, document.stdin, owner)?
    };
    setup.new_session = true;
    setup.controlling_terminal = tty;
    let started = reaper.start_child(&mut command, setup).map_err(|error| start_error(&command, &error))?;
    Ok((started, ends))
}

/// Hand its output on until it has ended; then its exit. What the sink refuses is lost.
pub fn follow(reaper: &Reaper, started: &Started, mut outputs: Outputs, sink: &mut Sink<'_>) -> ProcessExit {
    let mut sink = |frame_type, bytes: &[u8]| {
        let _ = sink(frame_type, bytes);
        Ok(())
    };
    while let Ok((ready, _)) = outputs.wait(&started.pidfd, Vec::new()) {
        // The sink never fails.
        let _ = outputs.pump_ready(&ready, &mut sink);
        if ready.ended {
            let _ = outputs.drain(&mut sink);
            break;
        }
    }
    reaper.wait(started.pid).unwrap_or(ProcessExit { code: 255, signal: None })
}
