//! Telling firebuild of what a guest says of itself: one command at a time, never many in a short time.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::config::Config;
use crate::process::{start_command, Process};
use crate::record::open_cleanup_log;
use crate::state::State;

/// Between the beginnings of two notices: twice as long each time, so that a guest cannot keep its host busy with them.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What was told last, and what tells it now.
pub struct Notices {
    health: String,
    restarts: u64,
    process: Option<Process>,
    /// No other notice begins before.
    not_before: Option<Instant>,
    pause: Duration,
}

impl Default for Notices {
    fn default() -> Self {
        // What everybody takes for granted of a machine that has just been started.
        Self { health: "starting".to_owned(), restarts: 0, process: None, not_before: None, pause: FIRST_PAUSE }
    }
}

impl Notices {
    fn are_due(&self, command: &[String], state: &State) -> bool {
        let known = self.health == state.health_status() && self.restarts == state.restarts();
        !known && !command.is_empty() && self.process.is_none()
    }

    /// When something is to be told that has to wait now.
    pub fn deadline(&self, command: &[String], state: &State) -> Option<Instant> {
        self.not_before.filter(|_| self.are_due(command, state))
    }

    /// Tell what is due.
    pub fn tell(&mut self, config: &Config, state: &State, now: Instant) -> io::Result<()> {
        let waits = self.not_before.is_some_and(|moment| now < moment);
        if waits || !self.are_due(&config.on_change, state) {
            return Ok(());
        }
        self.pause = match self.not_before {
            Some(moment) if now < moment + LONGEST_PAUSE => (self.pause * 2).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        self.not_before = Some(now + self.pause);
        let mut argv = config.on_change.clone();
        if self.restarts != state.restarts() {
            self.restarts = state.restarts();
            argv.extend(["--restarts".to_owned(), self.restarts.to_string()]);
        }
        if self.health != state.health_status() {
            state.health_status().clone_into(&mut self.health);
            argv.extend(["--health".to_owned(), self.health.clone()]);
        }
        self.process = Some(start_command(&argv, &open_cleanup_log(config)?)?);
        Ok(())
    }

    pub fn is_running(&self, pid: Pid) -> bool {
        self.process.as_ref().is_some_and(|process| process.pid == pid)
    }

    /// True if that was a notice's process.
    pub fn take_end(&mut self, pid: Pid) -> bool {
        let is_own = self.is_running(pid);
        if is_own {
            self.process = None;
        }
        is_own
    }

    pub fn stop(&mut self) {
        if let Some(process) = &self.process {
            process.kill_group();
        }
    }
}
