"""The records and the flow control of the multiplexed port, against the golden vectors and against themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firebuild.emulator import mux
from firebuild.emulator.mux import Kind, Mux, MuxError, encode, encode_value, scan

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[3] / "protocol" / "vectors" / "mux.json").read_text()
)
VALUES = {"OPEN": "port", "WINDOW": "bytes", "HELLO": "version"}


def describe(record: mux.Record) -> dict[str, Any]:
    name = record.kind.name
    shown: dict[str, Any] = {"kind": name, "stream": record.stream}
    if name in VALUES:
        shown[VALUES[name]] = record.value
    if name == "DATA":
        shown["payload_hex"] = record.payload.hex()
    return shown


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_golden_vectors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    if vector.get("error") == "truncated":
        assert list(scan(memoryview(data))) == []
    elif vector.get("framing") == "lost":
        with pytest.raises(MuxError) as caught:
            list(scan(memoryview(data)))
        assert (caught.value.code, caught.value.stream) == (vector["error"], None)
    elif "error" in vector:
        [(record, end)] = scan(memoryview(data))
        assert (record.fault, end) == (vector["error"], len(data))
    else:
        found = list(scan(memoryview(data)))
        assert [describe(record) for record, _ in found] == vector["records"]
        assert (found[-1][1] if found else 0) == len(data)


@pytest.mark.parametrize("vector", [v for v in VECTORS if "records" in v], ids=lambda vector: vector["name"])
def test_golden_vectors_are_written_so(vector: dict[str, Any]) -> None:
    written = b""
    for record in vector["records"]:
        kind = Kind[record["kind"]]
        if record["kind"] in VALUES:
            written += encode_value(kind, record["stream"], record[VALUES[record["kind"]]])
        else:
            written += encode(kind, record["stream"], bytes.fromhex(record.get("payload_hex", "")))
    assert written.hex() == vector["hex"]


def feed(subject: Mux, data: bytes) -> list[mux.Record]:
    return [record for record, _ in scan(memoryview(data)) if subject.receive(record)]


def greeted() -> Mux:
    subject = Mux()
    feed(subject, encode_value(Kind.HELLO, 0, 1))
    take(subject)
    return subject


def take(subject: Mux) -> bytes:
    data = b"".join(subject.output)
    subject.taken(len(data))
    assert subject.output_bytes == 0
    return data


def test_hello_is_answered_and_voids_the_streams() -> None:
    subject = Mux()
    assert feed(subject, encode_value(Kind.HELLO, 0, 1))
    assert take(subject) == encode_value(Kind.HELLO, 0, 1)
    subject.open(1024)
    feed(subject, encode_value(Kind.HELLO, 0, 1))
    assert subject.streams == {}
    assert subject.open(1024) == 1


@pytest.mark.parametrize(
    "data", [encode(Kind.RESET, 1), encode_value(Kind.OPEN, 2, 7), encode(Kind.DATA, 1, b"x")], ids=str
)
def test_nothing_may_come_before_hello(data: bytes) -> None:
    with pytest.raises(MuxError, match="no-hello"):
        feed(Mux(), data)


def test_another_version_closes_the_port() -> None:
    with pytest.raises(MuxError) as caught:
        feed(Mux(), encode_value(Kind.HELLO, 0, 2))
    assert (caught.value.code, caught.value.stream) == ("version", None)


def opened(subject: Mux) -> int:
    number = subject.open(1024)
    feed(subject, encode(Kind.ACCEPT, number))
    take(subject)
    return number


VIOLATIONS = {
    "data beyond the window": ("beyond-window", [encode(Kind.DATA, 1, bytes(65536))] * 5),
    "data after fin": ("after-fin", [encode(Kind.FIN, 1), encode(Kind.DATA, 1, b"x")]),
    "a second fin": ("after-fin", [encode(Kind.FIN, 1), encode(Kind.FIN, 1)]),
    "a second accept": ("bad-accept", [encode(Kind.ACCEPT, 1)]),
    "a window that was never used": ("bad-window", [encode_value(Kind.WINDOW, 1, 1)]),
    "data on an id never opened": ("never-opened", [encode(Kind.DATA, 9, b"x")]),
    "an odd id opened by the guest": ("bad-stream", [encode_value(Kind.OPEN, 5, 7)]),
    "an id opened twice": ("bad-stream", [encode_value(Kind.OPEN, 2, 7), encode_value(Kind.OPEN, 2, 7)]),
    "data before the host has accepted": ("not-accepted", [encode_value(Kind.OPEN, 2, 7), encode(Kind.DATA, 2, b"x")]),
    "empty data": ("bad-length", [encode(Kind.DATA, 1)]),
}


@pytest.mark.parametrize(("code", "records"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_resets_its_stream_only(code: str, records: list[bytes]) -> None:
    subject = greeted()
    assert opened(subject) == 1
    other = opened(subject)
    for record in records[:-1]:
        feed(subject, record)
    with pytest.raises(MuxError) as caught:
        feed(subject, records[-1])
    assert caught.value.code == code
    number = caught.value.stream
    assert number is not None and number not in subject.streams and other in subject.streams
    assert take(subject).endswith(encode(Kind.RESET, number))


def test_what_follows_a_reset_is_ignored() -> None:
    subject = greeted()
    number = opened(subject)
    subject.reset(number)
    late = encode(Kind.DATA, number, b"x") + encode_value(Kind.WINDOW, number, 5) + encode(Kind.FIN, number)
    assert feed(subject, late) == []


def test_a_stream_is_gone_after_both_fins() -> None:
    subject = greeted()
    number = opened(subject)
    subject.finish(number)
    assert subject.sendable(number) == 0 and number in subject.streams
    feed(subject, encode(Kind.FIN, number))
    assert number not in subject.streams


def test_no_data_before_the_guest_accepts() -> None:
    subject = greeted()
    number = subject.open(1024)
    assert subject.sendable(number) == 0
    feed(subject, encode(Kind.ACCEPT, number))
    assert subject.sendable(number) == mux.PAYLOAD_MAX


@given(st.binary(max_size=300), st.data())
def test_any_bytes_scan_or_are_refused(data: bytes, source: st.DataObject) -> None:
    """No input does anything but give records or MuxError, and how it is cut makes no difference."""

    def read(view: memoryview) -> tuple[list[dict[str, Any]], str | None]:
        records: list[dict[str, Any]] = []
        try:
            records.extend(describe(record) for record, _ in scan(view))
        except MuxError as error:
            return records, error.code
        return records, None

    whole, code = read(memoryview(data))
    cut = source.draw(st.integers(0, len(data)))
    part, _ = read(memoryview(data)[:cut])
    assert part == whole[: len(part)]
    assert code is None or code in {"unknown-kind", "reserved", "too-long", "bad-length", "bad-stream"}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["send", "consume", "carry"]), st.integers(1, 70000)), max_size=60))
def test_flow_control_never_overruns_and_never_sticks(steps: list[tuple[str, int]]) -> None:
    """Two ends, records in flight between them, a consumer that lags: no violation, and all arrives in the end."""
    host, guest = greeted(), _Guest()
    number = opened(host)
    sent = received = waiting = 0
    in_flight: list[bytes] = []

    def carry() -> None:
        nonlocal received, waiting
        for record, _ in scan(memoryview(take(host))):
            if record.kind is Kind.DATA:
                waiting += len(record.payload)
                received += len(record.payload)
                guest.got(len(record.payload))
        while in_flight:
            feed(host, in_flight.pop(0))

    for what, size in steps:
        if what == "send":
            size = min(size, host.sendable(number))
            if size:
                host.send(number, bytes(size))
                sent += size
        elif what == "consume":
            size = min(size, waiting)
            waiting -= size
            in_flight += guest.consumed(number, size)
        else:
            carry()
    carry()
    in_flight += guest.consumed(number, waiting)
    carry()
    assert received == sent
    assert host.sendable(number) > 0


class _Guest:
    """The receiving end of one stream."""

    def __init__(self) -> None:
        self.window = mux.WINDOW
        self.grant = 0

    def got(self, size: int) -> None:
        self.window -= size
        assert self.window >= 0

    def consumed(self, number: int, size: int) -> list[bytes]:
        self.grant += size
        if self.grant < mux.WINDOW // 2:
            return []
        granted, self.grant = self.grant, 0
        self.window += granted
        return [encode_value(Kind.WINDOW, number, granted)]


@given(st.lists(st.integers(1, 65536), min_size=1, max_size=40))
def test_the_host_grants_what_it_consumes(sizes: list[int]) -> None:
    """A guest that keeps to its window is never reset, and gets every byte of it back but less than half a window."""
    subject = greeted()
    number = opened(subject)
    window = mux.WINDOW
    for size in sizes:
        assert size <= window, "half a window may wait at most, and a record is a quarter"
        feed(subject, encode(Kind.DATA, number, bytes(size)))
        window -= size
        subject.consume(number, size)
        window += sum(record.value for record, _ in scan(memoryview(take(subject))))
        assert window > mux.WINDOW // 2


def test_streams_are_void_from_our_hello_to_the_guests_answer() -> None:
    subject = Mux()
    subject.receive(record(Kind.HELLO, 0, 1))
    number = subject.open(1024)
    subject.taken(subject.output_bytes)
    subject.void(b"rest")
    assert b"".join(subject.output) == b"rest" + encode_value(Kind.HELLO, 0, 1)
    # What the guest had under way concerns nobody, whatever it is.
    assert not subject.receive(record(Kind.ACCEPT, number)) and not subject.receive(record(Kind.WINDOW, 99, 1))
    subject.taken(subject.output_bytes)
    assert subject.receive(record(Kind.HELLO, 0, 1))
    assert subject.greeted and not subject.awaiting and not subject.output, "an answer is not answered"
    assert subject.open(1024) == 1


def test_a_hello_that_is_to_be_answered_is_not_said_again() -> None:
    subject, other = Mux(), Mux()
    subject.receive(record(Kind.HELLO, 0, 1))
    subject.taken(subject.output_bytes)
    subject.void()
    subject.void()
    assert b"".join(subject.output) == encode_value(Kind.HELLO, 0, 1)
    other.void(said=True)
    assert other.awaiting and not other.output
    assert other.receive(record(Kind.HELLO, 0, 1)) and not other.output


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.data())
def test_the_rest_of_a_record_that_was_read_in_part(sizes: list[int], data: st.DataObject) -> None:
    subject = Mux()
    subject.receive(record(Kind.HELLO, 0, 1))
    number = subject.open(1024)
    subject.receive(record(Kind.ACCEPT, number))
    for size in sizes:
        subject.send(number, b"x" * size)
    whole = b"".join(subject.output)
    ends = [end for _, end in scan(memoryview(whole))]
    written = data.draw(st.integers(0, len(whole)))
    read = data.draw(st.integers(0, written))
    subject.taken(written)
    rest = subject.unfinished(written - read)
    assert read + rest == next(end for end in [0, *ends] if end >= read)


def record(kind: Kind, stream: int, value: int = 0) -> mux.Record:
    return mux.Record(kind, stream, value, memoryview(b""), None)
