//! The firebuild guest protocol, version 1 (`protocol/PROTOCOL.md`): everything of it that needs no
//! input or output of its own.
//!
//! * [`frame`]: frames within a stream, [`json`]: the strict JSON in them, [`message`]: its shapes.
//! * [`record`]: mux records on a virtio-serial port, [`mux`]: the state behind them.
//! * [`users`]: `user[:group]` against a root's own `passwd` and `group` texts.
//! * [`seam`]: the traits by which `vminit` hands its streams and its reaper to the `layers` crate.
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod error;
pub mod frame;
pub mod json;
pub mod message;
pub mod mux;
pub mod record;
pub mod seam;
pub mod users;

pub use error::{ErrorCode, ProtocolError, TaskError};
pub use frame::{Frame, FrameType};
pub use seam::{FrameStream, ProcessExit, ProcessHost, SessionOptions};

/// The protocol version that HELLO, `hello` and `boot` carry.
pub const PROTOCOL_VERSION: u32 = 1;
/// vminit listens here; the host opens one stream per request.
pub const CONTROL_PORT: u32 = 1024;
/// The supervisor listens here; vminit opens one stream per boot.
pub const PUSH_PORT: u32 = 1025;
/// Name of the virtio-serial port that carries the mux.
pub const SERIAL_PORT_NAME: &str = "org.firebuild.vsock.0";
