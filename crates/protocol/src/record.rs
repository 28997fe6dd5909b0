//! Mux records: `u8 kind · u8 zero · u16 zero · u32 stream · u32 length · payload` (`PROTOCOL.md`, section 1.2).

use std::fmt;

pub const HEADER_LENGTH: usize = 12;
pub const MAX_PAYLOAD: usize = 65_536;
/// What each direction of a stream may have under way.
pub const WINDOW: u32 = 262_144;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Open { stream: u32, port: u32 },
    Accept { stream: u32 },
    Reset { stream: u32 },
    Data { stream: u32, payload: Vec<u8> },
    Fin { stream: u32 },
    Window { stream: u32, bytes: u32 },
    Hello { version: u32 },
}

/// A record that breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    UnknownKind(u8),
    Reserved,
    TooLong(u32),
    Truncated,
    BadStream,
    /// Framing is intact: the stream is to be reset.
    BadLength(u32),
    /// Framing is intact: the stream is to be reset.
    BadWindow(u32),
}

impl RecordError {
    /// The name that the golden vectors use.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownKind(_) => "unknown-kind",
            Self::Reserved => "reserved",
            Self::TooLong(_) => "too-long",
            Self::Truncated => "truncated",
            Self::BadStream => "bad-stream",
            Self::BadLength(_) => "bad-length",
            Self::BadWindow(_) => "bad-window",
        }
    }

    /// The stream to reset where that is enough; None: the port is to be closed.
    pub fn stream(self) -> Option<u32> {
        match self {
            Self::BadLength(stream) | Self::BadWindow(stream) if stream != 0 => Some(stream),
            _ => None,
        }
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad mux record: {}", self.name())
    }
}

impl std::error::Error for RecordError {}

/// Append the bytes of a record. A DATA payload above [`MAX_PAYLOAD`] is cut there: callers split first.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    let word;
    let (kind, stream, payload): (u8, u32, &[u8]) = match record {
        Record::Open { stream, port } => {
            word = port.to_be_bytes();
            (1, *stream, &word)
        }
        Record::Accept { stream } => (2, *stream, &[]),
        Record::Reset { stream } => (3, *stream, &[]),
        Record::Data { stream, payload } => (4, *stream, payload.get(..MAX_PAYLOAD).unwrap_or(payload)),
        Record::Fin { stream } => (5, *stream, &[]),
        Record::Window { stream, bytes } => {
            word = bytes.to_be_bytes();
            (6, *stream, &word)
        }
        Record::Hello { version } => {
            word = version.to_be_bytes();
            (7, 0, &word)
        }
    };
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}

/// Takes bytes as they come and gives whole records.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record, or None until more bytes have come.
    pub fn next_record(&mut self) -> Result<Option<Record>, RecordError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((header, body)) = split_header(rest) else { return Ok(None) };
        let (kind, stream, length) = check_header(header)?;
        let Some(payload) = body.get(..length) else { return Ok(None) };
        let record = decode(kind, stream, payload);
        self.start += HEADER_LENGTH + length;
        record.map(Some)
    }

    /// [`RecordError::Truncated`] if the bytes ended within a record.
    pub fn finish(&self) -> Result<(), RecordError> {
        if self.start == self.buffer.len() {
            Ok(())
        } else {
            Err(RecordError::Truncated)
        }
    }
}

fn split_header(bytes: &[u8]) -> Option<([u8; HEADER_LENGTH], &[u8])> {
    let header: [u8; HEADER_LENGTH] = bytes.get(..HEADER_LENGTH)?.try_into().ok()?;
    Some((header, bytes.get(HEADER_LENGTH..)?))
}

fn check_header(header: [u8; HEADER_LENGTH]) -> Result<(u8, u32, usize), RecordError> {
    let [kind, z1, z2, z3, s1, s2, s3, s4, l1, l2, l3, l4] = header;
    let length = u32::from_be_bytes([l1, l2, l3, l4]);
    if !(1..=7).contains(&kind) {
        return Err(RecordError::UnknownKind(kind));
    }
    if (z1, z2, z3) != (0, 0, 0) {
        return Err(RecordError::Reserved);
    }
    if length as usize > MAX_PAYLOAD {
        return Err(RecordError::TooLong(length));
    }
    let stream = u32::from_be_bytes([s1, s2, s3, s4]);
    if (kind == 7) != (stream == 0) {
        return Err(RecordError::BadStream);
    }
    Ok((kind, stream, length as usize))
}

fn decode(kind: u8, stream: u32, payload: &[u8]) -> Result<Record, RecordError> {
    let bad_length = RecordError::BadLength(stream);
    let word = || <[u8; 4]>::try_from(payload).map(u32::from_be_bytes).map_err(|_| bad_length);
    let empty = |record| if payload.is_empty() { Ok(record) } else { Err(bad_length) };
    match kind {
        1 => Ok(Record::Open { stream, port: word()? }),
        2 => empty(Record::Accept { stream }),
        3 => empty(Record::Reset { stream }),
        4 if payload.is_empty() => Err(bad_length),
        4 => Ok(Record::Data { stream, payload: payload.to_vec() }),
        5 => empty(Record::Fin { stream }),
        6 => match word()? {
            bytes @ 1..=WINDOW => Ok(Record::Window { stream, bytes }),
            _ => Err(RecordError::BadWindow(stream)),
        },
        7 => Ok(Record::Hello { version: word()? }),
        _ => Err(RecordError::UnknownKind(kind)),
    }
}
