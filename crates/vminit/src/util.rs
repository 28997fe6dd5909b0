//! Locks that cannot panic, threads with small stacks, deadlines.

use firebuild_protocol::{ErrorCode, TaskError};
use rustix::event::{PollFd, Timespec};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const STACK_BYTES: usize = 256 * 1024;

/// Lock a mutex. Poisoning cannot be: a panic ends the program.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Start a thread that nobody joins.
pub fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), TaskError> {
    start_thread_with(name, STACK_BYTES, body)
}

/// The same with a stack of that many bytes.
pub fn start_thread_with(
    name: &str,
    stack_bytes: usize,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), TaskError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(stack_bytes)
        .spawn(body)
        .map(|_| ())
        .map_err(|error| TaskError::io(format_args!("start thread {name}"), &error))
}

/// A point in time that an operation must not pass.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration)
    }

    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }
}

pub fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// poll(2), again after a signal. Returns how many descriptors are ready.
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(timespec);
    loop {
        match rustix::event::poll(fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Bytes as hexadecimal digits, two for each.
pub fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let pair = |pair: &[u32]| match pair {
        [high, low] => u8::try_from(high * 16 + low).ok(),
        _ => None,
    };
    digits?.chunks(2).map(pair).collect()
}

/// Refuse a task.
pub fn refuse<T>(code: ErrorCode, message: impl Into<String>) -> Result<T, TaskError> {
    Err(TaskError::new(code, message))
}

/// Put what was being done into an errno.
pub trait Context<T> {
    fn doing(self, what: impl std::fmt::Display) -> Result<T, TaskError>;
}

impl<T> Context<T> for Result<T, rustix::io::Errno> {
    fn doing(self, what: impl std::fmt::Display) -> Result<T, TaskError> {
        self.map_err(|errno| TaskError::io(what, &errno.into()))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn doing(self, what: impl std::fmt::Display) -> Result<T, TaskError> {
        self.map_err(|error| TaskError::io(what, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits() {
        assert_eq!(parse_hex("00ffA5"), Some(vec![0, 255, 0xa5]));
        assert_eq!(parse_hex(""), Some(Vec::new()));
        for bad in ["0", "0g", "+f", "é0"] {
            assert_eq!(parse_hex(bad), None, "{bad}");
        }
    }
}
