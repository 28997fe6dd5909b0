//! The bytes of one virtio-serial port: whole records in both directions, without blocking.

use firebuild_protocol::record::{encode, Decoder, Record, RecordError};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub struct Port {
    fd: OwnedFd,
    decoder: Decoder,
    /// The record being written and how much of it is written.
    unsent: Vec<u8>,
    sent: usize,
    buffer: Vec<u8>,
}

impl Port {
    pub fn open(path: &Path) -> rustix::io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::open(path, flags, Mode::empty())?,
            decoder: Decoder::default(),
            unsent: Vec::new(),
            sent: 0,
            buffer: vec![0; 65_536],
        })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// True while a record is not fully written.
    pub fn is_writing(&self) -> bool {
        self.sent < self.unsent.len()
    }

    /// Take the next record to write. Only when nothing [`Port::is_writing`].
    pub fn start_record(&mut self, record: &Record) {
        self.unsent.clear();
        self.sent = 0;
        encode(record, &mut self.unsent);
    }

    /// Write on; false while the port takes no more. A record that fits one buffer of the device is written
    /// by one call, so that a snapshot never holds half of one.
    pub fn write(&mut self) -> rustix::io::Result<bool> {
        while let Some(rest) = self.unsent.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(&self.fd, rest) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    /// Read some of what is there; nothing if the host has gone, which the next poll(2) tells.
    pub fn read(&mut self) -> rustix::io::Result<()> {
        const READS: usize = 64;
        for _ in 0..READS {
            match rustix::io::read(&self.fd, self.buffer.as_mut_slice()) {
                Ok(0) => break,
                Ok(count) => self.decoder.push(self.buffer.get(..count).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    pub fn next_record(&mut self) -> Result<Option<Record>, RecordError> {
        self.decoder.next_record()
    }

    /// Forget what was begun in either direction: the host has gone.
    pub fn forget(&mut self) {
        self.decoder = Decoder::default();
        self.unsent.clear();
        self.sent = 0;
    }
}
