//! The entrypoint's input in system mode: its service makes it and lends it to the agent, to whom those who attach speak.
//!
//! A connection for each life of the entrypoint: one byte with the descriptor in it (`SCM_RIGHTS`), and a byte back when
//! the agent holds it.

use crate::handover::INPUT_SOCKET;
use crate::log;
use crate::stream::FdStream;
use crate::util::Context;
use firebuild_protocol::TaskError;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const TAKES: Duration = Duration::from_secs(30);

/// Lend it to the agent. Returns when the agent holds it.
pub fn lend(input: &OwnedFd) -> Result<(), TaskError> {
    let socket = open()?;
    let address = SocketAddrUnix::new(INPUT_SOCKET).doing("name the input's socket")?;
    rustix::net::connect(&socket, &address).doing("connect to the input's socket")?;
    send(&socket, input.as_fd())?;
    let mut byte = [0];
    rustix::io::read(&socket, &mut byte).doing("lend the input").map(|_| ())
}

/// Take what services lend, for ever.
pub fn take_all(listener: &OwnedFd, mut take: impl FnMut(OwnedFd)) {
    loop {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => match receive(&socket) {
                Ok(Some(input)) => {
                    take(input);
                    // A service that does not wait for it any more has ended.
                    let _ = rustix::io::write(&socket, b"1");
                }
                Ok(None) => log::error("a service lent nothing"),
                Err(error) => log::error(&error.to_string()),
            },
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The agent's side.
pub fn listen() -> Result<OwnedFd, TaskError> {
    let socket = open()?;
    let address = SocketAddrUnix::new(INPUT_SOCKET).doing("name the input's socket")?;
    rustix::net::bind(&socket, &address).doing("bind the input's socket")?;
    rustix::net::listen(&socket, 1).doing("listen on the input's socket")?;
    Ok(socket)
}

fn open() -> Result<OwnedFd, TaskError> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .doing("open the input's socket")
}

fn send(socket: &OwnedFd, input: BorrowedFd<'_>) -> Result<(), TaskError> {
    let inputs = [input];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&inputs));
    rustix::net::sendmsg(socket, &[IoSlice::new(b"1")], &mut control, SendFlags::NOSIGNAL)
        .doing("lend the input")
        .map(|_| ())
}

fn receive(socket: &OwnedFd) -> Result<Option<OwnedFd>, TaskError> {
    let own = FdStream::new(socket.try_clone().doing("duplicate a socket")?);
    own.set_read_timeout(Some(TAKES)).doing("set up a socket")?;
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .doing("take an input")?;
    let mut inputs = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(inputs) => Some(inputs),
        _ => None,
    });
    Ok(inputs.next().and_then(|mut inputs| inputs.next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_the_same_pipe() {
        let (one, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        send(&one, writer.as_fd()).unwrap();
        drop(writer);
        let lent = receive(&other).unwrap().unwrap();
        rustix::io::write(&lent, b"typed").unwrap();
        drop(lent);
        let mut buffer = [0_u8; 16];
        assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 5);
        assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn a_byte_with_nothing_in_it_is_nothing() {
        let (one, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::io::write(&one, b"1").unwrap();
        assert!(receive(&other).unwrap().is_none());
    }
}
