//! The health check: run again and again beside the entrypoint, its results told to the host.

use crate::launch::{prepare, Launch};
use crate::log;
use crate::metadata::Profile;
use crate::outputs::Outputs;
use crate::reaper::{Reaper, Started};
use crate::session::{give_pipes, start_error};
use crate::util::{lock, start_thread, timespec, Context, Deadline};
use firebuild_protocol::message::{HealthCheck, HealthResult, HealthStatus, PushEvent};
use firebuild_protocol::{ProcessHost, ProtocolError, TaskError};
use rustix::event::{PollFd, PollFlags};
use rustix::time::{timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is kept of a check's output.
const MOST_OUTPUT: usize = 4096;
/// The code of a check that was not one: not started, or killed for its time.
const NO_CODE: i32 = -1;

type Tell = Box<dyn Fn(&PushEvent) + Send + Sync>;

/// Checks one life of the entrypoint after the other. Cheap to clone: all clones are one monitor.
#[derive(Clone)]
pub struct Monitor {
    shared: Arc<Shared>,
}

struct Shared {
    reaper: Reaper,
    profile: Profile,
    check: HealthCheck,
    /// Under a lock, so that nothing of an earlier life is told after the beginning of the next.
    tell: Mutex<Tell>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Counts lives and their ends: whoever checks for another one is to stop.
    turn: u64,
    closed: bool,
    /// The check that runs.
    pid: Option<u32>,
}

impl Monitor {
    pub fn new(reaper: Reaper, profile: Profile, check: HealthCheck, tell: Tell) -> Self {
        let (tell, state, changed) = (Mutex::new(tell), Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { reaper, profile, check, tell, state, changed }) }
    }

    /// A life begins: what was known is void.
    pub fn begin(&self) {
        let Some(turn) = self.shared.turn_over(false) else { return };
        let own = Arc::clone(&self.shared);
        if let Err(error) = start_thread("health", move || own.watch(turn)) {
            log::error(&format!("health is not checked: {error}"));
        }
    }

    /// The life has ended: no more checks, and the one that runs is killed.
    pub fn end(&self) {
        self.shared.turn_over(false);
    }

    /// As [`Monitor::end`], and no other life begins.
    pub fn close(&self) {
        self.shared.turn_over(true);
    }
}

impl Shared {
    /// The next turn, unless it was closed before.
    fn turn_over(&self, close: bool) -> Option<u64> {
        let mut state = lock(&self.state);
        state.turn += 1;
        if let Some(pid) = state.pid.take() {
            // It may be ending by itself this moment.
            let _ = self.reaper.signal(pid, libc::SIGKILL, true);
        }
        self.changed.notify_all();
        let was_closed = state.closed;
        state.closed |= close;
        (!was_closed).then_some(state.turn)
    }

    fn watch(&self, turn: u64) {
        let began = Instant::now();
        let mut verdict = Verdict::new(&self.check);
        let mut result = None;
        loop {
            if !self.tell(turn, &verdict, result.take()) || !self.pause(turn, verdict.pause(began.elapsed())) {
                return;
            }
            let lived = began.elapsed();
            let Some(found) = self.run(turn) else { return };
            verdict.take(found.code == 0, lived);
            result = Some(found);
        }
    }

    /// False if it is another's turn.
    fn tell(&self, turn: u64, verdict: &Verdict<'_>, result: Option<HealthResult>) -> bool {
        let tell = lock(&self.tell);
        let is_ours = lock(&self.state).turn == turn;
        if is_ours {
            tell(&PushEvent::Health { status: verdict.status, failing_streak: verdict.streak, result });
        }
        is_ours
    }

    /// False if it is another's turn before the time is over.
    fn pause(&self, turn: u64, pause: Duration) -> bool {
        let deadline = Deadline::after(pause);
        let mut state = lock(&self.state);
        while state.turn == turn && !deadline.has_passed() {
            let waited = self.changed.wait_timeout(state, deadline.remaining());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.turn == turn
    }

    /// One check; None if it became another's turn.
    fn run(&self, turn: u64) -> Option<HealthResult> {
        let began = Instant::now();
        let (code, output) = match self.start(turn) {
            Ok(None) => return None,
            Ok(Some((started, outputs))) => self.follow(&started, outputs),
            Err(error) => (NO_CODE, error.to_string()),
        };
        let mut state = lock(&self.state);
        if state.turn != turn {
            return None;
        }
        state.pid = None;
        Some(HealthResult { code, duration_ms: millis(began.elapsed()), output })
    }

    fn start(&self, turn: u64) -> Result<Option<(Started, Outputs)>, TaskError> {
        let launch = Launch { argv: &self.check.argv, ..Launch::default() };
        let (mut command, mut setup) = prepare(&self.profile, &launch)?;
        let owner = setup.identity.as_ref().map(|(uid, _, _)| *uid);
        let ends = give_pipes(&mut command, false, owner)?;
        setup.new_session = true;
        // Under the lock: whoever ends the turn sees what runs.
        let mut state = lock(&self.state);
        if state.turn != turn {
            return Ok(None);
        }
        let started = self.reaper.start_child(&mut command, setup).map_err(|error| start_error(&command, &error))?;
        state.pid = Some(started.pid);
        Ok(Some((started, ends.outputs)))
    }

    /// Its code and its output, which is read to its end and kept in part.
    fn follow(&self, started: &Started, mut outputs: Outputs) -> (i32, String) {
        let mut kept: Vec<u8> = Vec::new();
        let mut sink = |_, bytes: &[u8]| -> Result<(), ProtocolError> {
            let room = MOST_OUTPUT.saturating_sub(kept.len());
            kept.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
            Ok(())
        };
        let timeout = Duration::from_millis(self.check.timeout_ms);
        let timer = start_timer(timeout);
        let mut late = false;
        loop {
            let extra = timer.iter().map(|timer| PollFd::new(timer, PollFlags::IN)).collect();
            let Ok((ready, flags)) = outputs.wait(&started.pidfd, extra) else { break };
            // The sink never fails.
            let _ = outputs.pump_ready(&ready, &mut sink);
            late = !ready.ended && (timer.is_err() || flags.first().copied().unwrap_or(false));
            if late {
                // It may be ending by itself this moment.
                let _ = self.reaper.signal(started.pid, libc::SIGKILL, true);
            }
            if late || ready.ended {
                break;
            }
        }
        // What was killed is waited for too: all that it had written is in the pipes then.
        let exit = self.reaper.wait(started.pid);
        let _ = outputs.drain(&mut sink);
        match exit {
            Ok(exit) if !late => (exit.code, bounded(&String::from_utf8_lossy(&kept))),
            _ => {
                let output = String::from_utf8_lossy(&kept);
                (NO_CODE, bounded(&format!("killed: it took longer than {} ms\n{output}", timeout.as_millis())))
            }
        }
    }
}

/// Readable when the time is over.
fn start_timer(duration: Duration) -> Result<OwnedFd, TaskError> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).doing("make a timer")?;
    let value = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(duration) };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value).doing("set a timer")?;
    Ok(timer)
}

fn bounded(text: &str) -> String {
    let mut end = text.len().min(MOST_OUTPUT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the results of one life amount to, by Docker's rules.
struct Verdict<'a> {
    check: &'a HealthCheck,
    status: HealthStatus,
    streak: u32,
}

impl<'a> Verdict<'a> {
    fn new(check: &'a HealthCheck) -> Self {
        Self { check, status: HealthStatus::Starting, streak: 0 }
    }

    fn is_early(&self, lived: Duration) -> bool {
        self.status == HealthStatus::Starting && lived < Duration::from_millis(self.check.start_period_ms)
    }

    /// Before the next check.
    fn pause(&self, lived: Duration) -> Duration {
        let pause = if self.is_early(lived) { self.check.start_interval_ms } else { self.check.interval_ms };
        Duration::from_millis(pause)
    }

    /// A check that began after so long.
    fn take(&mut self, passed: bool, lived: Duration) {
        if passed {
            (self.status, self.streak) = (HealthStatus::Healthy, 0);
        } else if !self.is_early(lived) {
            self.streak = self.streak.saturating_add(1);
            if self.streak >= self.check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            argv: vec!["true".to_owned()],
            interval_ms: 3000,
            timeout_ms: 1000,
            start_period_ms: 10_000,
            start_interval_ms: 500,
            retries: 2,
        }
    }

    const EARLY: Duration = Duration::from_secs(9);
    const LATE: Duration = Duration::from_secs(10);

    #[test]
    fn so_many_failures_in_a_row_are_unhealthy() {
        let check = check();
        let mut verdict = Verdict::new(&check);
        let seen: Vec<_> = [false, true, false, false, false, true, false]
            .into_iter()
            .map(|passed| {
                verdict.take(passed, LATE);
                (verdict.status, verdict.streak)
            })
            .collect();
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let expected =
            [(Starting, 1), (Healthy, 0), (Healthy, 1), (Unhealthy, 2), (Unhealthy, 3), (Healthy, 0), (Healthy, 1)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn early_failures_do_not_count_until_one_check_has_passed() {
        let check = check();
        let mut verdict = Verdict::new(&check);
        assert_eq!(verdict.pause(EARLY), Duration::from_millis(500));
        for _ in 0..5 {
            verdict.take(false, EARLY);
        }
        assert_eq!((verdict.status, verdict.streak), (HealthStatus::Starting, 0));
        assert_eq!(verdict.pause(LATE), Duration::from_secs(3));
        verdict.take(true, EARLY);
        assert_eq!(verdict.pause(EARLY), Duration::from_secs(3));
        verdict.take(false, EARLY);
        verdict.take(false, EARLY);
        assert_eq!((verdict.status, verdict.streak), (HealthStatus::Unhealthy, 2));
    }

    #[test]
    fn output_is_bounded_between_characters() {
        let text = format!("{}é", "x".repeat(MOST_OUTPUT - 1));
        assert_eq!(bounded(&text).len(), MOST_OUTPUT - 1);
        assert_eq!(bounded("short"), "short");
    }
}
