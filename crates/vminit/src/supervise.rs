//! The entrypoint's lives: when one has ended the next is started, if the restart policy says so, after a growing pause.

use crate::attach::Attached;
use crate::entrypoint::{follow, launch};
use crate::health::Monitor;
use crate::launch::exit_code_for;
use crate::log;
use crate::metadata::Profile;
use crate::outputs::Sink;
use crate::reaper::{Reaper, Started};
use crate::session::Ends;
use crate::util::{lock, Deadline};
use firebuild_protocol::message::{BootDocument, PushEvent, Restart, RestartPolicy};
use firebuild_protocol::{ProcessExit, ProcessHost, TaskError};
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who has run for that long has started well: the next pause is the first one again.
const STEADY: Duration = Duration::from_secs(10);

/// Takes the entrypoint's input in this process's place.
pub type Lender = Box<dyn Fn(OwnedFd) + Send + Sync>;

/// What the one that starts the entrypoint and the one that stops it share.
#[derive(Default)]
pub struct Supervision {
    state: Mutex<State>,
    changed: Condvar,
    health: OnceLock<Monitor>,
    lender: OnceLock<Lender>,
    pub attached: Attached,
}

#[derive(Default)]
struct State {
    pid: Option<u32>,
    halted: bool,
    /// Whoever waits for the first start need not wait any longer.
    hurried: bool,
    begun: bool,
    /// In place of the boot document's.
    restart: Option<Restart>,
}

impl Supervision {
    /// The entrypoint's pid while it runs.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.state).pid
    }

    pub fn set_pid(&self, pid: Option<u32>) {
        lock(&self.state).pid = pid;
    }

    /// Another policy, from the next end on.
    pub fn set_restart(&self, restart: Restart) {
        lock(&self.state).restart = Some(restart);
    }

    fn restart_or(&self, restart: Restart) -> Restart {
        lock(&self.state).restart.unwrap_or(restart)
    }

    /// Each life is checked by this one. Once, before the first.
    pub fn set_health(&self, monitor: Monitor) {
        // Set once, by whoever starts the entrypoint.
        let _ = self.health.set(monitor);
    }

    /// A life begins: its health is not known yet.
    pub fn begin_health(&self) {
        if let Some(health) = self.health.get() {
            health.begin();
        }
    }

    /// Another holds the entrypoint's input, for all its lives. Once, before the first.
    pub fn set_lender(&self, lender: Lender) {
        // Set once, by whoever starts the entrypoint.
        let _ = self.lender.set(lender);
    }

    /// Hand the input of a life that begins to whoever holds it; without such a one it stays.
    pub fn lend(&self, ends: &mut Ends) {
        if let Some(lender) = self.lender.get() {
            if let Some(input) = ends.input.take() {
                lender(input);
            }
        }
    }

    /// The first start, which waits for somebody, is due. Of no effect on later ones.
    pub fn hurry(&self) {
        let mut state = lock(&self.state);
        state.hurried = !state.begun;
        self.changed.notify_all();
    }

    fn end_health(&self) {
        if let Some(health) = self.health.get() {
            health.end();
        }
    }

    /// From now on nothing is started again, and health is no longer checked; returns the pid of what runs now.
    pub fn halt(&self) -> Option<u32> {
        let mut state = lock(&self.state);
        state.halted = true;
        self.changed.notify_all();
        if let Some(health) = self.health.get() {
            health.close();
        }
        state.pid
    }

    /// After the pause start the next, unless halted. Under the lock: whoever halts sees what runs.
    pub fn start_after<T>(
        &self,
        pause: Duration,
        start: impl FnOnce() -> Result<(u32, T), TaskError>,
    ) -> Option<Result<T, TaskError>> {
        let deadline = Deadline::after(pause);
        let mut state = lock(&self.state);
        while !state.halted && !state.hurried && !deadline.has_passed() {
            let waited = self.changed.wait_timeout(state, deadline.remaining());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.halted {
            return None;
        }
        (state.begun, state.hurried) = (true, false);
        Some(start().map(|(pid, started)| {
            state.pid = Some(pid);
            started
        }))
    }
}

/// Follow what was launched, and what is started after it, to the last one's end; its exit.
pub fn follow_all(
    reaper: &Reaper,
    profile: &Profile,
    document: &BootDocument,
    supervision: &Supervision,
    first: (Started, Ends),
    sink: &mut Sink<'_>,
    tell: &mut dyn FnMut(&PushEvent),
) -> ProcessExit {
    let mut plan = Plan::new(document.restart);
    let mut life = Ok(first);
    loop {
        let began = Instant::now();
        let exit = match life {
            Ok((started, Ends { input, outputs })) => {
                supervision.attached.begin(input, document.tty, document.stdin);
                let exit = follow(reaper, &started, outputs, sink);
                supervision.attached.close_input();
                supervision.set_pid(None);
                supervision.end_health();
                if supervision.restart_or(document.restart).policy != RestartPolicy::No {
                    // What it leaves of its process group would be in the next one's way; none left is an error.
                    let _ = reaper.signal(started.pid, libc::SIGKILL, true);
                }
                exit
            }
            Err(error) => {
                log::error(&format!("the entrypoint does not start again: {error}"));
                ProcessExit { code: exit_code_for(&error), signal: None }
            }
        };
        plan.restart = supervision.restart_or(document.restart);
        let Some(pause) = plan.next(exit, began.elapsed()) else { return exit };
        log::note(&format!("entrypoint ended with {}, again in {} ms", exit.code, pause.as_millis()));
        let start = || {
            launch(reaper, profile, document, supervision.attached.size()).map(|(started, mut ends)| {
                supervision.lend(&mut ends);
                (started.pid, (started, ends))
            })
        };
        let Some(next) = supervision.start_after(pause, start) else { return exit };
        // Only now: one that is halted in its pause is not started again.
        tell(&PushEvent::Restart { count: plan.count, code: exit.code, signal: exit.signal });
        if next.is_ok() {
            supervision.begin_health();
        }
        life = next;
    }
}

/// Whether and when the next life begins.
struct Plan {
    restart: Restart,
    count: u32,
    pause: Duration,
}

impl Plan {
    fn new(restart: Restart) -> Self {
        Self { restart, count: 0, pause: Duration::ZERO }
    }

    /// The pause before the next life of what ended so after so long; None if there is no next.
    fn next(&mut self, exit: ProcessExit, lived: Duration) -> Option<Duration> {
        let again = match self.restart.policy {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure => exit.code != 0 && self.restart.most.map_or(true, |most| self.count < most),
            RestartPolicy::Always => true,
        };
        if !again {
            return None;
        }
        self.pause = if lived >= STEADY { FIRST_PAUSE } else { (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) };
        self.count = self.count.saturating_add(1);
        Some(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn plan(policy: RestartPolicy, most: Option<u32>) -> Plan {
        Plan::new(Restart { policy, most })
    }

    fn exit(code: i32) -> ProcessExit {
        ProcessExit { code, signal: None }
    }

    #[test]
    fn policies() {
        assert_eq!(plan(RestartPolicy::No, None).next(exit(1), SHORT), None);
        assert_eq!(plan(RestartPolicy::OnFailure, None).next(exit(0), SHORT), None);
        assert_eq!(plan(RestartPolicy::Always, None).next(exit(0), SHORT), Some(FIRST_PAUSE));
        let mut limited = plan(RestartPolicy::OnFailure, Some(2));
        let lives: Vec<bool> = (0..4).map(|_| limited.next(exit(3), STEADY).is_some()).collect();
        assert_eq!((lives, limited.count), (vec![true, true, false, false], 2));
    }

    #[test]
    fn the_pause_doubles_to_its_most_and_begins_anew_after_a_steady_life() {
        let mut plan = plan(RestartPolicy::Always, None);
        let pauses: Vec<u128> =
            (0..12).filter_map(|_| plan.next(exit(1), SHORT)).map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(plan.next(exit(1), STEADY), Some(FIRST_PAUSE));
        assert_eq!(plan.next(exit(1), SHORT), Some(2 * FIRST_PAUSE));
    }

    #[test]
    fn who_halts_sees_what_runs_and_nothing_is_started_after() {
        let supervision = Supervision::default();
        let started = supervision.start_after(Duration::ZERO, || Ok((7, ())));
        assert!(matches!(started, Some(Ok(()))));
        assert_eq!(supervision.halt(), Some(7));
        assert!(supervision.start_after(Duration::from_secs(3600), || Ok((8, ()))).is_none());
        assert_eq!(supervision.pid(), Some(7));
    }

    #[test]
    fn only_the_first_start_can_be_hurried() {
        let supervision = Supervision::default();
        supervision.hurry();
        assert!(matches!(supervision.start_after(Duration::from_secs(3600), || Ok((7, ()))), Some(Ok(()))));
        supervision.hurry();
        assert!(!lock(&supervision.state).hurried);
    }

    #[test]
    fn a_halt_ends_the_pause() {
        let supervision = std::sync::Arc::new(Supervision::default());
        let own = std::sync::Arc::clone(&supervision);
        let waiting = std::thread::spawn(move || own.start_after(Duration::from_secs(3600), || Ok((8, ()))).is_none());
        supervision.halt();
        assert!(waiting.join().unwrap());
    }
}
