//! What can go wrong: on a stream ([`ProtocolError`]) and in a task ([`TaskError`], [`ErrorCode`]).

use std::fmt;
use std::io;

/// The codes that an ERROR frame can carry (`PROTOCOL.md`, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    Protocol,
    BadRequest,
    UnsupportedOp,
    NotFound,
    NotExecutable,
    NoSuchUser,
    NoSuchDirectory,
    Exists,
    NotADirectory,
    Escapes,
    NoSpace,
    Busy,
    Io,
    BadArchive,
    Limit,
    HookFailed,
    Internal,
}

impl ErrorCode {
    /// The code as it is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::BadRequest => "bad-request",
            Self::UnsupportedOp => "unsupported-op",
            Self::NotFound => "not-found",
            Self::NotExecutable => "not-executable",
            Self::NoSuchUser => "no-such-user",
            Self::NoSuchDirectory => "no-such-directory",
            Self::Exists => "exists",
            Self::NotADirectory => "not-a-directory",
            Self::Escapes => "escapes",
            Self::NoSpace => "no-space",
            Self::Busy => "busy",
            Self::Io => "io",
            Self::BadArchive => "bad-archive",
            Self::Limit => "limit",
            Self::HookFailed => "hook-failed",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A stream that broke or a peer that broke the rules. After any of these the stream is of no use.
#[derive(Debug)]
pub enum ProtocolError {
    /// The peer closed its side between two frames.
    Closed,
    /// The peer closed its side within a frame or a record.
    Truncated,
    /// A length of 0.
    ZeroLength,
    /// A length above the limit.
    TooLong(u32),
    /// A frame type that this version does not know.
    UnknownType(u8),
    /// STDOUT or STDERR without a byte.
    EmptyPayload(&'static str),
    /// A JSON payload that is no single JSON object without duplicate keys.
    BadJson(String),
    /// A JSON payload nested deeper than [`crate::json::MAX_DEPTH`].
    TooDeep,
    /// A well-formed frame in the wrong state.
    Unexpected(String),
    /// The transport failed.
    Io(io::Error),
}

impl ProtocolError {
    /// The name that the golden vectors use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Truncated => "truncated",
            Self::ZeroLength => "zero-length",
            Self::TooLong(_) => "too-long",
            Self::UnknownType(_) => "unknown-type",
            Self::EmptyPayload(_) => "empty-payload",
            Self::BadJson(_) => "bad-json",
            Self::TooDeep => "too-deep",
            Self::Unexpected(_) => "unexpected",
            Self::Io(_) => "io",
        }
    }

    /// True if the peer broke the rules, so that an ERROR `protocol` is owed to it.
    pub fn is_violation(&self) -> bool {
        !matches!(self, Self::Closed | Self::Truncated | Self::Io(_))
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the stream is closed"),
            Self::Truncated => f.write_str("the stream ended within a frame"),
            Self::ZeroLength => f.write_str("a frame of length 0"),
            Self::TooLong(length) => write!(f, "a frame of length {length} is above the limit"),
            Self::UnknownType(kind) => write!(f, "unknown frame type {kind:#04x}"),
            Self::EmptyPayload(kind) => write!(f, "an empty {kind} frame"),
            Self::BadJson(why) => write!(f, "bad JSON: {why}"),
            Self::TooDeep => f.write_str("JSON nested too deep"),
            Self::Unexpected(what) => write!(f, "unexpected {what}"),
            Self::Io(error) => write!(f, "stream: {error}"),
        }
    }
}

impl std::error::Error for ProtocolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ProtocolError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How a task on a stream ends other than well.
#[derive(Debug)]
pub enum TaskError {
    /// The task is refused or has failed: the peer gets this as an ERROR frame.
    Refused { code: ErrorCode, message: String },
    /// The stream itself is broken.
    Stream(ProtocolError),
}

impl TaskError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Refused { code, message: message.into() }
    }

    /// An errno in words, with what was being done to which object. ENOSPC and EDQUOT are `no-space`.
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        const ENOSPC: i32 = 28;
        const EDQUOT: i32 = 122;
        let code = match error.raw_os_error() {
            Some(ENOSPC | EDQUOT) => ErrorCode::NoSpace,
            _ => ErrorCode::Io,
        };
        Self::new(code, format!("{doing}: {error}"))
    }

    /// The code and the message of the ERROR frame that is owed to the peer, if one is.
    pub fn as_error_frame(&self) -> Option<(ErrorCode, String)> {
        match self {
            Self::Refused { code, message } => Some((*code, message.clone())),
            Self::Stream(error) if error.is_violation() => Some((ErrorCode::Protocol, error.to_string())),
            Self::Stream(_) => None,
        }
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { code, message } => write!(f, "{code}: {message}"),
            Self::Stream(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TaskError {}

impl From<ProtocolError> for TaskError {
    fn from(error: ProtocolError) -> Self {
        Self::Stream(error)
    }
}
