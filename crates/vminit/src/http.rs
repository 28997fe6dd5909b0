//! A small HTTP/1.1 client for the metadata service: one request a connection, bounded in size and time.

use crate::util::{refuse, Context, Deadline};
use firebuild_protocol::{ErrorCode, TaskError};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

const MOST_HEAD: usize = 16 * 1024;
const MOST_BODY: usize = 1024 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Send one request without a body. Errors: `io` for the connection, `protocol` for an answer that is none.
pub fn request(
    address: IpAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    deadline: Deadline,
) -> Result<Response, TaskError> {
    let what = format!("{method} http://{address}{path}");
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, 80), left(deadline)).doing(&what)?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "PUT" {
        head.push_str("Content-Length: 0\r\n");
    }
    head.push_str("\r\n");
    stream.set_write_timeout(Some(left(deadline))).doing(&what)?;
    stream.write_all(head.as_bytes()).doing(&what)?;
    let mut got = Vec::new();
    loop {
        match parse(&got, false) {
            Ok(Some(response)) => return Ok(response),
            Ok(None) => {}
            Err(why) => return refuse(ErrorCode::Protocol, format!("{what}: {why}")),
        }
        if deadline.has_passed() {
            return refuse(ErrorCode::Io, format!("{what}: no answer in time"));
        }
        stream.set_read_timeout(Some(left(deadline))).doing(&what)?;
        let mut buffer = [0_u8; 4096];
        let count = stream.read(&mut buffer).doing(&what)?;
        if count == 0 {
            return match parse(&got, true) {
                Ok(Some(response)) => Ok(response),
                Ok(None) => refuse(ErrorCode::Protocol, format!("{what}: the answer is cut off")),
                Err(why) => refuse(ErrorCode::Protocol, format!("{what}: {why}")),
            };
        }
        got.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
}

fn left(deadline: Deadline) -> Duration {
    deadline.remaining().max(Duration::from_millis(1))
}

/// A whole response, None while more must come. `ended`: nothing more will.
fn parse(bytes: &[u8], ended: bool) -> Result<Option<Response>, &'static str> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() > MOST_HEAD { Err("the answer's head is too long") } else { Ok(None) };
    };
    let head = std::str::from_utf8(bytes.get(..end).unwrap_or_default()).map_err(|_| "the answer's head is no text")?;
    let body = bytes.get(end + 4..).unwrap_or_default();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let status = status.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
    let status: u16 = status.ok_or("the answer has no status")?;
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("the answer has a transfer encoding");
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().map_err(|_| "the answer's length is no number")?);
        }
    }
    if length.unwrap_or(body.len()) > MOST_BODY {
        return Err("the answer is too long");
    }
    match length {
        Some(length) => Ok(body.get(..length).map(|body| Response { status, body: body.to_vec() })),
        None if ended => Ok(Some(Response { status, body: body.to_vec() })),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd";
        assert_eq!(parse(text, false).unwrap(), Some(Response { status: 200, body: b"abc".to_vec() }));
        for cut in 0..text.len() - 1 {
            assert_eq!(parse(&text[..cut], false).unwrap(), None, "{cut}");
        }
        let text = b"HTTP/1.0 404 Not Found\r\n\r\nno";
        assert_eq!(parse(text, false).unwrap(), None);
        assert_eq!(parse(text, true).unwrap(), Some(Response { status: 404, body: b"no".to_vec() }));
    }

    #[test]
    fn answers_that_are_none() {
        for text in [
            "garbage\r\n\r\n",
            "HTTP/1.1 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(parse(text.as_bytes(), true).is_err(), "{text}");
        }
        assert!(parse(&vec![b'x'; MOST_HEAD + 1], false).is_err());
    }
}
