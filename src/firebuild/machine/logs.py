"""Reading what a machine's entrypoint printed: the CRI log format, rotated once, followed by inotify."""

from __future__ import annotations

import datetime
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from firebuild.host.watch import FileWatch
from firebuild.layout import MachineLayout
from firebuild.machine.supervisor import open_supervisor


class LogEntry(msgspec.Struct, frozen=True):
    """One piece of output. `time`: RFC 3339, UTC; `stream`: stdout or stderr; `data` ends with a newline unless the line goes on."""

    time: str
    stream: str
    data: bytes


def parse_entry(line: bytes) -> LogEntry | None:
    """One line of a CRI log (`TIME STREAM P|F TEXT`, Kubernetes design: container runtime interface), or None if it is damaged."""
    parts = line.rstrip(b"\n").split(b" ", 3)
    if len(parts) < 3 or parts[1] not in (b"stdout", b"stderr") or parts[2] not in (b"P", b"F"):
        return None
    text = parts[3] if len(parts) == 4 else b""
    return LogEntry(
        time=parts[0].decode("ascii", "replace"),
        stream=parts[1].decode(),
        data=text + (b"\n" if parts[2] == b"F" else b""),
    )


def read_entries(path: Path) -> Iterator[LogEntry]:
    """The entries of a log and of its older half (`PATH.1`), oldest first; nothing if there is none yet."""
    yield from _read_whole(path.with_name(path.name + ".1"))
    yield from _read_whole(path)


def follow_entries(
    paths: MachineLayout, choose: Callable[[Iterator[LogEntry]], Iterable[LogEntry]] = iter
) -> Iterator[LogEntry]:
    """Those of the entries so far that `choose` takes, and all to come, until the machine's VMM has ended and all is read."""
    path = paths.output_log
    with open_supervisor(paths) as link, FileWatch(path.parent) as watch:
        reader = _Reader(path)
        try:
            yield from choose(itertools.chain(_read_whole(path.with_name(path.name + ".1")), reader.read()))
            while True:
                yield from reader.read()
                if link is None:
                    yield from reader.read()
                    return
                ready = watch.wait([link.fileno()])
                if link.fileno() in ready:
                    event = link.find_event()
                    if event is None or event.get("event") == "vmm-exit":
                        link = None
        finally:
            reader.close()


def _read_whole(path: Path) -> Iterator[LogEntry]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    yield from (entry for entry in map(parse_entry, lines) if entry is not None)


class _Reader:
    """Reads whole lines from a log that grows and is rotated under it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def read(self) -> Iterator[LogEntry]:
        while True:
            if self._file is None:
                try:
                    self._file = open(self._path, "rb")  # noqa: SIM115 - closed by close()
                except FileNotFoundError:
                    return
            while chunk := self._file.read(65536):
                lines = (self._rest + chunk).split(b"\n")
                self._rest = lines.pop()
                yield from (entry for entry in map(parse_entry, lines) if entry is not None)
            if not self._rotated():
                return
            self.close()

    def _rotated(self) -> bool:
        assert self._file is not None
        try:
            return os.stat(self._path).st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._rest = b""


_AGE = re.compile(r"(?:[0-9]+[smhd])+")
_UNIX = re.compile(r"[0-9]{9,11}(?:\.[0-9]{1,9})?")


def parse_since(text: str, now: datetime.datetime) -> str:
    """As parse_moment, as an RFC 3339 time in UTC."""
    return parse_moment(text, now).strftime("%Y-%m-%dT%H:%M:%S.%f")


def parse_moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """A moment in UTC from an RFC 3339 time, Unix seconds, or an age such as `10m` or `1h30m`.

    Raises ValueError, OverflowError.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if _AGE.fullmatch(text):
        seconds = sum(int(number) * units[unit] for number, unit in re.findall(r"([0-9]+)([smhd])", text))
        moment = now - datetime.timedelta(seconds=seconds)
    elif _UNIX.fullmatch(text):
        moment = datetime.datetime.fromtimestamp(float(text), tz=datetime.UTC)
    else:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC)
