//! Frames out of bytes that arrive in pieces (PROTOCOL.md section 2), without blocking and in bounded memory.

use firebuild_protocol::frame::{decode_header, encode_header};
use firebuild_protocol::{Frame, FrameType, ProtocolError};
use serde_json::Value;

const HEADER_BYTES: usize = 5;
/// Buffers above this are given back once they are empty: most frames are small, and supervisors are many.
const KEPT_BYTES: usize = 64 * 1024;

/// Bytes that have arrived and are not yet a frame; never more than one frame and one reading.
#[derive(Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl FrameBuffer {
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, or None when more bytes are needed. A bad header is found before its payload arrives.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let waiting = self.bytes.get(self.start..).unwrap_or_default();
        if let Some(length) = waiting.get(..4) {
            if length.iter().all(|byte| *byte == 0) {
                return Err(ProtocolError::ZeroLength);
            }
        }
        let header = waiting.get(..HEADER_BYTES).and_then(|header| <[u8; HEADER_BYTES]>::try_from(header).ok());
        let Some(header) = header else {
            self.compact();
            return Ok(None);
        };
        let (frame_type, length) = decode_header(header)?;
        let Some(payload) = waiting.get(HEADER_BYTES..HEADER_BYTES + length) else {
            self.compact();
            return Ok(None);
        };
        let frame = Frame::new(frame_type, payload.to_vec())?;
        self.start += HEADER_BYTES + length;
        Ok(Some(frame))
    }

    fn compact(&mut self) {
        self.bytes.drain(..self.start);
        self.start = 0;
        if self.bytes.capacity() > KEPT_BYTES && self.bytes.len() < KEPT_BYTES / 4 {
            self.bytes.shrink_to(KEPT_BYTES);
        }
    }
}

/// Appends one frame with a JSON payload.
pub fn append_json(output: &mut Vec<u8>, frame_type: FrameType, value: &Value) -> Result<(), ProtocolError> {
    let payload = value.to_string();
    output.extend_from_slice(&encode_header(frame_type, payload.len())?);
    output.extend_from_slice(payload.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{append_json, FrameBuffer};
    use firebuild_protocol::{FrameType, ProtocolError};
    use serde_json::json;

    #[test]
    fn frames_arrive_byte_by_byte_and_many_at_once() {
        let mut bytes = Vec::new();
        append_json(&mut bytes, FrameType::Event, &json!({"event": "a"})).expect("fits");
        append_json(&mut bytes, FrameType::Event, &json!({"event": "b"})).expect("fits");
        let mut slowly = FrameBuffer::default();
        let mut found = 0;
        for byte in &bytes {
            slowly.extend(&[*byte]);
            while slowly.next_frame().expect("good").is_some() {
                found += 1;
            }
        }
        assert_eq!(found, 2);
        let mut at_once = FrameBuffer::default();
        at_once.extend(&bytes);
        assert!(at_once.next_frame().expect("good").is_some());
        assert!(at_once.next_frame().expect("good").is_some());
        assert!(at_once.next_frame().expect("good").is_none());
    }

    #[test]
    fn a_length_bomb_is_refused_by_its_header() {
        let mut buffer = FrameBuffer::default();
        buffer.extend(&[0xff, 0xff, 0xff, 0xff, 0x11]);
        assert!(matches!(buffer.next_frame(), Err(ProtocolError::TooLong(_))));
        let mut buffer = FrameBuffer::default();
        buffer.extend(&[0, 0, 0, 0]);
        assert!(matches!(buffer.next_frame(), Err(ProtocolError::ZeroLength)));
    }
}
