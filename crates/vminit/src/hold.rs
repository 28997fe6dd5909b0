//! Work that a snapshot must not cut in half: counted while it is done, and held back while the guest is held.

use crate::freeze::Frozen;
use crate::util::{lock, refuse, Deadline};
use firebuild_protocol::{ErrorCode, TaskError};
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Default)]
pub struct Hold {
    state: Mutex<State>,
    changed: Condvar,
    /// What stands still while the guest is held. Its lock is held by whoever holds, resumes or lets the guest go on.
    pub frozen: Mutex<Option<Frozen>>,
}

#[derive(Default)]
struct State {
    is_held: bool,
    working: usize,
}

/// Work under way, until it is dropped.
pub struct Work<'a>(&'a Hold);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).working -= 1;
        self.0.changed.notify_all();
    }
}

impl Hold {
    pub fn is_held(&self) -> bool {
        lock(&self.state).is_held
    }

    /// Begin to work; waits while the guest is held.
    pub fn work(&self) -> Work<'_> {
        let mut state = lock(&self.state);
        while state.is_held {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.working += 1;
        Work(self)
    }

    /// Let no work begin, and wait for what is under way. Refuses if that takes too long; then nothing is held.
    pub fn begin(&self, deadline: Deadline) -> Result<(), TaskError> {
        let mut state = lock(&self.state);
        state.is_held = true;
        while state.working > 0 {
            if deadline.has_passed() {
                state.is_held = false;
                self.changed.notify_all();
                return refuse(ErrorCode::Busy, format!("{} transfers or build steps are under way", state.working));
            }
            let waited = self.changed.wait_timeout(state, deadline.remaining());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    pub fn end(&self) {
        lock(&self.state).is_held = false;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn work_under_way_refuses_and_goes_on() {
        let hold = Hold::default();
        let work = hold.work();
        let error = hold.begin(Deadline::after(Duration::from_millis(20))).unwrap_err().to_string();
        assert!(error.contains("1 transfers"), "{error}");
        assert!(!hold.is_held());
        drop(work);
        hold.begin(Deadline::after(Duration::ZERO)).unwrap();
        assert!(hold.is_held());
    }

    #[test]
    fn new_work_waits_for_the_end() {
        let hold = Arc::new(Hold::default());
        hold.begin(Deadline::after(Duration::ZERO)).unwrap();
        let own = Arc::clone(&hold);
        let waiting = std::thread::spawn(move || {
            let _work = own.work();
            own.is_held()
        });
        hold.end();
        assert!(!waiting.join().unwrap());
    }
}
