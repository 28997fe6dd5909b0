//! Frames: `u32 length · u8 type · payload[length - 1]`, big-endian (`PROTOCOL.md`, section 2).

use crate::error::ProtocolError;
use crate::json;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::io::{self, Read, Write};

/// The largest value of the length field: type byte and payload together.
pub const MAX_LENGTH: u32 = 1_048_576;
/// The largest payload.
pub const MAX_PAYLOAD: usize = MAX_LENGTH as usize - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameType {
    Request = 0x01,
    Reply = 0x02,
    Error = 0x03,
    Event = 0x04,
    Stdin = 0x10,
    Stdout = 0x11,
    Stderr = 0x12,
    Data = 0x13,
    Exit = 0x14,
    Resize = 0x15,
    Signal = 0x16,
}

impl FrameType {
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Request,
            0x02 => Self::Reply,
            0x03 => Self::Error,
            0x04 => Self::Event,
            0x10 => Self::Stdin,
            0x11 => Self::Stdout,
            0x12 => Self::Stderr,
            0x13 => Self::Data,
            0x14 => Self::Exit,
            0x15 => Self::Resize,
            0x16 => Self::Signal,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "REQUEST",
            Self::Reply => "REPLY",
            Self::Error => "ERROR",
            Self::Event => "EVENT",
            Self::Stdin => "STDIN",
            Self::Stdout => "STDOUT",
            Self::Stderr => "STDERR",
            Self::Data => "DATA",
            Self::Exit => "EXIT",
            Self::Resize => "RESIZE",
            Self::Signal => "SIGNAL",
        }
    }

    /// True if the payload is a JSON object.
    pub fn is_json(self) -> bool {
        !matches!(self, Self::Stdin | Self::Stdout | Self::Stderr | Self::Data)
    }
}

/// One frame whose payload has been checked: a JSON payload is a strict object, output is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub frame_type: FrameType,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Check a payload against its type.
    pub fn new(frame_type: FrameType, payload: Vec<u8>) -> Result<Self, ProtocolError> {
        if frame_type.is_json() {
            json::parse_object(&payload)?;
        } else if payload.is_empty() && matches!(frame_type, FrameType::Stdout | FrameType::Stderr) {
            return Err(ProtocolError::EmptyPayload(frame_type.name()));
        }
        Ok(Self { frame_type, payload })
    }

    /// The payload as an object; [`ProtocolError::BadJson`] for a frame that carries bytes.
    pub fn object(&self) -> Result<Map<String, Value>, ProtocolError> {
        json::parse_object(&self.payload)
    }

    /// The payload as a message type.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, ProtocolError> {
        serde_json::from_slice(&self.payload).map_err(|error| ProtocolError::BadJson(error.to_string()))
    }
}

/// Header of a frame, or [`ProtocolError::TooLong`] (carrying the length) for a payload that does not fit.
pub fn encode_header(frame_type: FrameType, payload_length: usize) -> Result<[u8; 5], ProtocolError> {
    let length = u32::try_from(payload_length).unwrap_or(u32::MAX).saturating_add(1);
    if length > MAX_LENGTH {
        return Err(ProtocolError::TooLong(length));
    }
    let [a, b, c, d] = length.to_be_bytes();
    Ok([a, b, c, d, frame_type as u8])
}

/// Type and payload length from the five bytes of a header.
pub fn decode_header(header: [u8; 5]) -> Result<(FrameType, usize), ProtocolError> {
    let [a, b, c, d, kind] = header;
    let length = u32::from_be_bytes([a, b, c, d]);
    match length {
        0 => Err(ProtocolError::ZeroLength),
        1..=MAX_LENGTH => match FrameType::from_byte(kind) {
            Some(frame_type) => Ok((frame_type, length as usize - 1)),
            None => Err(ProtocolError::UnknownType(kind)),
        },
        _ => Err(ProtocolError::TooLong(length)),
    }
}

/// Read one frame. [`ProtocolError::Closed`] at a clean end of the stream.
pub fn read_frame(stream: &mut dyn Read) -> Result<Frame, ProtocolError> {
    let mut length = [0_u8; 4];
    if !read_or_end(stream, &mut length)? {
        return Err(ProtocolError::Closed);
    }
    let mut kind = [0_u8; 1];
    let [a, b, c, d] = length;
    if u32::from_be_bytes(length) == 0 {
        return Err(ProtocolError::ZeroLength);
    }
    read_rest(stream, &mut kind)?;
    let [kind] = kind;
    let (frame_type, payload_length) = decode_header([a, b, c, d, kind])?;
    let mut payload = vec![0_u8; payload_length];
    read_rest(stream, &mut payload)?;
    Frame::new(frame_type, payload)
}

/// Write one frame with one `write` for small ones.
pub fn write_frame(stream: &mut dyn Write, frame_type: FrameType, payload: &[u8]) -> Result<(), ProtocolError> {
    const TOGETHER: usize = 65_536;
    let header = encode_header(frame_type, payload.len())?;
    if payload.len() <= TOGETHER {
        let mut bytes = Vec::with_capacity(header.len() + payload.len());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(payload);
        stream.write_all(&bytes)?;
    } else {
        stream.write_all(&header)?;
        stream.write_all(payload)?;
    }
    stream.flush()?;
    Ok(())
}

/// Fill the buffer; false if the stream ended before its first byte.
fn read_or_end(stream: &mut dyn Read, mut buffer: &mut [u8]) -> Result<bool, ProtocolError> {
    let mut first = true;
    while !buffer.is_empty() {
        match stream.read(buffer) {
            Ok(0) if first => return Ok(false),
            Ok(0) => return Err(ProtocolError::Truncated),
            Ok(count) => {
                first = false;
                buffer = std::mem::take(&mut buffer).get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn read_rest(stream: &mut dyn Read, buffer: &mut [u8]) -> Result<(), ProtocolError> {
    if buffer.is_empty() || read_or_end(stream, buffer)? {
        Ok(())
    } else {
        Err(ProtocolError::Truncated)
    }
}
