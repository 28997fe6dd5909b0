"""A guest that sends anything, and hosts that come and go: the channel stays whole, and loses no connection unnoticed."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from firebuild.emulator.channel import Channel
from firebuild.emulator.log import Log
from firebuild.emulator.loop import Loop
from firebuild.emulator.mux import HEADER, Kind, encode_value

RECORDS = st.builds(
    lambda kind, stream, payload: HEADER.pack(kind, 0, 0, stream, len(payload)) + payload,
    st.sampled_from([kind for kind in Kind if kind is not Kind.HELLO]),
    st.integers(1, 7),
    st.sampled_from([b"", b"x", (7).to_bytes(4, "big"), (2000).to_bytes(4, "big"), bytes(4), bytes(65536)]),
)
STEPS = st.one_of(
    RECORDS,
    st.just(encode_value(Kind.HELLO, 0, 1)),
    st.sampled_from(["connect", "close", "write", "shut", "read", "guest reads"]),
    st.binary(max_size=20),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_any_guest_and_any_hosts(steps: list[bytes | str]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="fbc-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "v.sock"
        loop = Loop()
        log = Log("fuzz")
        log._write = lambda level, message: None  # type: ignore[method-assign]
        channel = Channel(loop, log, str(path))
        listener.bind(f"{path}_2000")
        listener.listen()
        ours, port = socket.socketpair()
        channel.attach(ours)
        port.setblocking(False)
        port.send(encode_value(Kind.HELLO, 0, 1))
        hosts: list[socket.socket] = []
        try:
            for step in steps:
                act(step, path, port, hosts)
                for _ in range(3):
                    loop.run_once(0)
                assert set(channel._mux.streams) <= set(channel._streams)
            channel.drain(0.0)
            assert not channel._streams and not channel._mux.streams
        finally:
            for host in hosts:
                host.close()
            channel.close()
            port.close()
            loop.close()


def act(step: bytes | str, path: Path, port: socket.socket, hosts: list[socket.socket]) -> None:
    try:
        if isinstance(step, bytes):
            port.send(step)
        elif step == "guest reads":
            port.recv(1 << 20)
        elif step == "connect":
            host = socket.socket(socket.AF_UNIX)
            hosts.append(host)
            host.setblocking(False)
            host.connect(str(path))
            host.send(b"CONNECT 7\nearly")
        elif hosts and step == "write":
            hosts[-1].send(bytes(65536))
        elif hosts and step == "shut":
            hosts[-1].shutdown(socket.SHUT_WR)
        elif hosts and step == "read":
            hosts[-1].recv(1 << 20)
        elif hosts and step == "close":
            hosts.pop().close()
    except OSError:
        # What the channel has closed cannot be used any more: that is half of what is tried here.
        return
