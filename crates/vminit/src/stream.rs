//! Frames over a descriptor: a vsock stream, or one end of the socket pair that the mux feeds.

use firebuild_protocol::frame::{read_frame, write_frame};
use firebuild_protocol::{Frame, FrameStream, FrameType, ProtocolError, TaskError};
use rustix::net::Shutdown;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Reads are not buffered, so that a duplicate of the descriptor can go on where this one stopped.
pub struct FdStream {
    file: File,
}

impl FdStream {
    pub fn new(fd: OwnedFd) -> Self {
        Self { file: File::from(fd) }
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// Send no more.
    pub fn finish(&self) {
        // The peer may have gone: then there is nobody left to tell.
        let _ = rustix::net::shutdown(&self.file, Shutdown::Write);
    }

    /// Let reads fail after that time without a byte.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_timeout(&self.file, rustix::net::sockopt::Timeout::Recv, timeout)?)
    }

    /// Let writes fail after that time without room.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_timeout(&self.file, rustix::net::sockopt::Timeout::Send, timeout)?)
    }

    /// End an orderly conversation: send no more, then read until the peer has closed too, so that what was
    /// sent last is not lost to a reset because of bytes still under way.
    pub fn linger(&self, timeout: Duration) {
        const MOST_BYTES: usize = 64 << 20;
        self.finish();
        let deadline = crate::util::Deadline::after(timeout);
        let mut buffer = vec![0_u8; 65_536];
        let mut seen = 0;
        while seen < MOST_BYTES && !deadline.has_passed() {
            if self.set_read_timeout(Some(deadline.remaining().max(Duration::from_millis(1)))).is_err() {
                return;
            }
            match rustix::io::read(&self.file, buffer.as_mut_slice()) {
                Ok(0) | Err(_) => return,
                Ok(count) => seen += count,
            }
        }
    }

    /// Tell the peer how a task failed, if the stream still carries anything.
    pub fn send_error(&mut self, error: &TaskError) {
        if let Some((code, message)) = error.as_error_frame() {
            let payload = error_payload(code.as_str(), &message);
            // A stream that broke in the meantime ends the task just as well.
            let _ = self.write_frame(FrameType::Error, &payload);
        }
    }
}

impl AsFd for FdStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FrameStream for FdStream {
    fn read_frame(&mut self) -> Result<Frame, ProtocolError> {
        read_frame(&mut self.file)
    }

    fn write_frame(&mut self, frame_type: FrameType, payload: &[u8]) -> Result<(), ProtocolError> {
        write_frame(&mut self.file, frame_type, payload)
    }

    fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }
}

/// The payload of an ERROR frame; the message is cut to a bounded length.
pub fn error_payload(code: &str, message: &str) -> Vec<u8> {
    const LONGEST: usize = 4096;
    let message: String = message.chars().take(LONGEST).collect();
    serde_json::json!({ "code": code, "message": message }).to_string().into_bytes()
}
