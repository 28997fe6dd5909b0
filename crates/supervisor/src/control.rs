//! The control socket: any number of clients, one JSON line per event; who does not read is dropped.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

/// Lines that a client has not read yet; above this it is dropped.
const MAX_UNREAD: usize = 256 * 1024;
/// Longest line that a client may send.
const MAX_LINE: usize = 4096;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Op {
    Kill,
    /// It cleans up when the VMM has ended, as long as it is connected.
    Clean,
    /// It has cleaned up.
    Cleaned,
    Status,
    Unknown,
}

/// One client of the control socket.
pub struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    input_closed: bool,
    /// Whether it cleans up when the VMM has ended.
    pub cleans: bool,
    /// Set when it is to be dropped after the present round.
    pub closed: bool,
}

impl Client {
    /// Takes a new connection; `history` is sent to it first.
    pub fn new(stream: UnixStream, history: &str) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: history.as_bytes().to_vec(),
            input_closed: false,
            cleans: false,
            closed: false,
        })
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub fn wants_read(&self) -> bool {
        !self.input_closed
    }

    pub fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Queues a line and sends what can be sent; false when the client is to be dropped.
    pub fn send(&mut self, line: &str) -> bool {
        self.output.extend_from_slice(line.as_bytes());
        self.flush() && self.output.len() <= MAX_UNREAD
    }

    pub fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(count) => {
                    self.output.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads requests; None when the client is to be dropped. A client that only closed its sending side stays.
    pub fn read(&mut self) -> Option<Vec<Op>> {
        let mut buffer = [0_u8; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.input_closed = true,
            Ok(count) => self.input.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
        let mut ops = Vec::new();
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            ops.push(parse_op(&line));
        }
        (self.input.len() <= MAX_LINE).then_some(ops)
    }
}

fn parse_op(line: &[u8]) -> Op {
    let Ok(value) = serde_json::from_slice::<Value>(line) else {
        return Op::Unknown;
    };
    match value.get("op").and_then(Value::as_str) {
        Some("kill") => Op::Kill,
        Some("clean") => Op::Clean,
        Some("cleaned") => Op::Cleaned,
        Some("status") => Op::Status,
        _ => Op::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::{Client, Op};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn requests_arrive_in_pieces_and_an_endless_line_ends_the_client() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let mut client = Client::new(ours, "").expect("client");
        theirs.write_all(b"{\"op\":\"ki").expect("write");
        assert_eq!(client.read(), Some(vec![]));
        theirs.write_all(b"ll\"}\nnonsense\n{\"op\":\"status\"}\n").expect("write");
        assert_eq!(client.read(), Some(vec![Op::Kill, Op::Unknown, Op::Status]));
        theirs.write_all(&[b'x'; 8192]).expect("write");
        assert_eq!(client.read(), Some(vec![]));
        assert_eq!(client.read(), None);
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped() {
        let (ours, _theirs) = UnixStream::pair().expect("pair");
        let mut client = Client::new(ours, "").expect("client");
        let line = format!("{}\n", "x".repeat(1000));
        let kept = (0..10_000).take_while(|_| client.send(&line)).count();
        assert!(kept < 10_000);
    }
}
