//! How streams reach the host: multiplexed over one virtio-serial port, or each a vsock connection.

mod find;
mod port;
mod serial;
mod uevent;
mod vsock;

pub use uevent::Uevents;

use crate::stream::FdStream;
use crate::util::Deadline;
use firebuild_protocol::TaskError;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{channel, Receiver};

/// An open way to the host.
pub enum Transport {
    Serial(serial::Handle),
    Vsock,
}

impl Transport {
    /// Find the way to the host and start serving it. Streams that the host opens to the control port come
    /// out of the channel.
    pub fn start(deadline: Deadline) -> Result<(Self, Receiver<OwnedFd>), TaskError> {
        let (sender, incoming) = channel();
        let transport = match find::find(deadline)? {
            find::Found::Serial(path) => Self::Serial(serial::start(path, sender)?),
            find::Found::Vsock => {
                vsock::listen(firebuild_protocol::CONTROL_PORT, sender)?;
                Self::Vsock
            }
        };
        Ok((transport, incoming))
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Serial(_) => "virtio-serial",
            Self::Vsock => "vsock",
        }
    }

    /// Open a stream to a port of the host.
    pub fn open(&self, port: u32, deadline: Deadline) -> Result<FdStream, TaskError> {
        let fd = match self {
            Self::Serial(handle) => handle.open(port, deadline)?,
            Self::Vsock => vsock::connect(port, deadline)?,
        };
        Ok(FdStream::new(fd))
    }
}
