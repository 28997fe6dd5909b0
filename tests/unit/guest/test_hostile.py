"""A hostile vminit against the host's end of the control port: every violation is an error, in bounded time and memory."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firebuild.errors import DeadlineError, GuestError
from firebuild.guest.control import SEED_BYTES, ask, request_pause_for_snapshot, request_resume, say_hello
from firebuild.guest.exec import ExecSpec, open_exec
from firebuild.guest.frames import MAX_FRAME, FrameType, decode_frames, encode_frame
from firebuild.host.deadline import Deadline

OK = b"OK 1073741824\n"
PATIENCE_S = 20.0
SHORT_S = 0.4
MOST_MIB = 32


def frame(kind: int, payload: bytes = b"") -> bytes:
    return (len(payload) + 1).to_bytes(4, "big") + bytes((kind,)) + payload


@contextmanager
def hostile(folder: Path, talk: Callable[[socket.socket], None]) -> Iterator[Path]:
    """A guest behind a vsock device's socket; `talk` has the connection after the host's CONNECT."""
    path = folder / "v.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while connection.recv(1) != b"\n":
                    pass
                try:
                    talk(connection)
                except OSError:
                    return  # the host has hung up, as it should

        guest = threading.Thread(target=serve, daemon=True)
        guest.start()
        yield path
        guest.join(PATIENCE_S)
        assert not guest.is_alive(), "the host did not hang up"
    path.unlink()


def saying(data: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.sendall(OK + data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    return talk


VIOLATIONS = {
    "a length bomb": b"\xff\xff\xff\xff\x02",
    "one byte more than the most": (MAX_FRAME + 1).to_bytes(4, "big") + b"\x02",
    "a length of zero": b"\0\0\0\0\x02",
    "an unknown type": frame(0x77, b"x"),
    "half a header": b"\0\0",
    "half a payload": frame(2, b'{"protocol":1}')[:-3],
    "a frame of the host's own": frame(1, b'{"op":"hello"}'),
    "output in place of the answer": frame(0x11, b"hello"),
    "empty output": frame(0x11),
    "no JSON": frame(2, b"{not json"),
    "an array": frame(2, b"[]"),
    "nothing": frame(2),
    "a key twice": frame(2, b'{"protocol":1,"protocol":1}'),
    "NaN": frame(2, b'{"protocol":NaN}'),
    "bytes that are no text": frame(2, b'{"protocol":"\xff\xfe"}'),
    "half a surrogate pair": frame(2, b'{"protocol":"\\uD800"}'),
    "JSON 33 deep": frame(2, b'{"a":' + b"[" * 32 + b"]" * 32 + b"}"),
    "JSON half a million deep": frame(2, b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    "a number of a million digits": frame(2, b'{"protocol":' + b"1" * 1_000_000 + b"}"),
    "another protocol": frame(2, b'{"protocol":2}'),
    "a whole frame of keys": frame(2, json.dumps({str(number): 0 for number in range(80_000)}).encode()),
    "an error that is none": frame(3, b'{"code":[],"message":{"\\u001b[2J":1}}'),
    "the end": b"",
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_an_error(tmp_path: Path, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        hostile(tmp_path, saying(VIOLATIONS[name])) as vsock,
        pytest.raises(GuestError) as caught,
    ):
        say_hello(vsock, Deadline(PATIENCE_S, "hello"))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 8192
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown_mib < MOST_MIB


@pytest.mark.parametrize(
    "answer", [b"NO\n", b"OK\n", b"OK x\n", b"OK -1\n", b"x" * 64, b"OK 1", b"", b"\n"], ids=lambda text: repr(text)[:12]
)  # fmt: skip
def test_a_handshake_that_is_none(tmp_path: Path, answer: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(answer)

    with hostile(tmp_path, talk) as vsock, pytest.raises(GuestError):
        say_hello(vsock, Deadline(PATIENCE_S, "hello"))


def dripping(data: bytes, first: bytes = b"") -> Callable[[socket.socket], None]:
    """A byte now and then, and never the last."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(first)
        pause = threading.Event()
        for byte in data:
            connection.sendall(bytes((byte,)))
            pause.wait(SHORT_S / 4)
        while connection.recv(65536):
            pass

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        dripping(b"OK 1000000000000000000000000000"),
        dripping(frame(2, b" " * 200), OK),
        dripping(b"", OK + b"\0\0"),
        lambda connection: connection.recv(1 << 20) and connection.recv(1),
    ],
    ids=["a handshake by drops", "a frame by drops", "half a header", "silence"],
)
def test_a_slow_guest_has_the_time_that_it_was_given(tmp_path: Path, talk: Callable[[socket.socket], None]) -> None:
    with hostile(tmp_path, talk) as vsock, pytest.raises(DeadlineError):
        say_hello(vsock, Deadline(SHORT_S, "hello"))


def test_a_flood_of_output_is_handed_on_and_not_kept(tmp_path: Path) -> None:
    chunk = frame(0x11, b"y" * (MAX_FRAME - 1))

    def talk(connection: socket.socket) -> None:
        connection.sendall(OK + frame(2, b'{"pid":7}'))
        for _ in range(256):
            connection.sendall(chunk)
        connection.sendall(frame(0x14, b'{"code":0,"signal":null}'))
        connection.recv(1 << 20)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = 0

    def count(_: str, data: bytes) -> None:
        nonlocal seen
        seen += len(data)

    with (
        hostile(tmp_path, talk) as vsock,
        open_exec(vsock, ExecSpec(["/bin/yes"]), Deadline(PATIENCE_S, "exec")) as session,
    ):
        assert session.wait(count, Deadline(PATIENCE_S * 6, "exec")) == 0
    assert seen == 256 * (MAX_FRAME - 1)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < MOST_MIB


@pytest.mark.parametrize(
    "answers",
    [
        frame(2, b'{"pid":"seven"}'),
        frame(2, b'{"pid":7}') + frame(0x14, b'{"code":1000,"signal":null}'),
        frame(2, b'{"pid":7}') + frame(0x14, b'{"code":true}'),
        frame(2, b'{"pid":7}') + frame(0x14, b'{"code":0,"signal":"x"}'),
        frame(2, b'{"pid":7}') + frame(2, b'{"pid":8}'),
        frame(2, b'{"pid":7}') + frame(0x13, b"data"),
        frame(2, b'{"pid":7}'),
    ],
    ids=["pid", "code", "bool", "signal", "two answers", "data", "no end"],
)
def test_a_program_that_is_told_of_wrongly(tmp_path: Path, answers: bytes) -> None:
    with (
        hostile(tmp_path, saying(answers)) as vsock,
        pytest.raises(GuestError),
        open_exec(vsock, ExecSpec(["/bin/true"]), Deadline(PATIENCE_S, "exec")) as session,
    ):
        session.wait(lambda *_: None, Deadline(PATIENCE_S, "exec"))


def test_a_resume_is_told_step_by_step(tmp_path: Path) -> None:
    asked = bytearray()

    def talk(connection: socket.socket) -> None:
        connection.sendall(OK)
        while len(asked) < 4 or len(asked) < 4 + int.from_bytes(asked[:4], "big"):
            asked.extend(connection.recv(1 << 20))
        connection.sendall(frame(2, b'{"steps":[{"name":"clock\\u001b[2J","ms":7,"more":1}]}'))
        connection.recv(1 << 20)

    with hostile(tmp_path, talk) as vsock:
        (step,) = request_resume(vsock, {"id": "x"}, Deadline(PATIENCE_S, "resume"))
    assert (step.ms, "\x1b" in step.name) == (7, False)
    (request,) = decode_frames(bytes(asked))
    sent = request.json()
    assert len(bytes.fromhex(sent["seed"])) == SEED_BYTES and sent["boot"] == {"id": "x"}
    assert abs(sent["clock_ns"] - time.time_ns()) < 3600 * 10**9


@pytest.mark.parametrize("answer", ["{}", '{"steps":{}}', '{"steps":[{"name":1,"ms":1}]}', '{"held_by":"magic"}'])
@pytest.mark.parametrize("ask_for", [request_pause_for_snapshot, lambda vsock, wait: request_resume(vsock, {}, wait)])
def test_a_guest_that_is_held_or_resumed_in_an_unknown_way(tmp_path: Path, answer: str, ask_for: Any) -> None:
    with hostile(tmp_path, saying(frame(2, answer.encode()))) as vsock, pytest.raises(GuestError):
        ask_for(vsock, Deadline(PATIENCE_S, "resume"))


def test_an_answer_may_come_by_the_byte(tmp_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        for byte in OK + frame(2, b'{"protocol":1,"version":"v","features":[]}'):
            connection.sendall(bytes((byte,)))
        connection.recv(1 << 20)

    with hostile(tmp_path, talk) as vsock:
        assert ask(vsock, {"op": "hello"}, Deadline(PATIENCE_S, "hello"))["version"] == "v"


FRAMES = st.lists(
    st.tuples(st.sampled_from(list(FrameType)), st.one_of(st.binary(max_size=40), st.just(b'{"a":[1,{"b":null}]}'))),
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(FRAMES, st.data())
def test_bytes_that_were_damaged_are_frames_or_an_error(
    frames: list[tuple[FrameType, bytes]], data: st.DataObject
) -> None:
    text = bytearray(b"".join(encode_frame(kind, payload) for kind, payload in frames))
    for _ in range(data.draw(st.integers(0, 3))):
        if text:
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_frames(bytes(text[: data.draw(st.integers(0, len(text)))]))
    except GuestError as error:
        assert error.guest_code == "protocol"
    else:
        assert all(isinstance(each.type, FrameType) for each in decoded)
