"""How results are shown: tables for people, JSON for programs, guest text made harmless for terminals."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from firebuild.errors import FirebuildError, UsageError


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns aligned with three spaces between them."""
    table = [list(headings), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    click.echo("\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in table))


def print_rows(
    format_name: str, headings: Sequence[str], rows: Sequence[Sequence[str]], objects: Sequence[object]
) -> None:
    """A table, or with `json` one object per line. Raises UsageError for another format."""
    if format_name == "json":
        for item in objects:
            click.echo(msgspec.json.encode(item).decode())
    elif format_name == "table":
        print_table(headings, rows)
    else:
        raise UsageError(f"`{format_name}` is not an output format", hint="choose table or json")


def print_json(value: Any) -> None:
    """One JSON value, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def format_size(size: float) -> str:
    """Bytes in decimal units, as Docker shows them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g}{unit}" if unit != "B" else f"{int(size)}B"
        size /= 1000
    return f"{size:.3g}TB"


def format_age(nanoseconds: int) -> str:
    """A Unix time as an age: `2 minutes ago`."""
    seconds = max(0, time.time_ns() - nanoseconds) // 10**9
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return f"{seconds} second{'s' if seconds != 1 else ''} ago"


def format_time(nanoseconds: int | None) -> str | None:
    """A Unix time as RFC 3339 in UTC."""
    if nanoseconds is None:
        return None
    moment = datetime.datetime.fromtimestamp(nanoseconds / 1e9, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_output(stream: str, data: bytes) -> None:
    """Program output, unchanged, to standard output or standard error."""
    target = sys.stderr.buffer if stream == "stderr" else sys.stdout.buffer
    target.write(data)
    target.flush()


_json_log = [False]


def use_json_log() -> None:
    """From here on notes and errors are one JSON object a line (--log-as-json), and tables of machines are too."""
    _json_log[0] = True


def is_json_log() -> bool:
    """Whether --log-as-json was given."""
    return _json_log[0]


def _log(level: str, message: str, **more: object) -> None:
    # The keys of hashicorp/go-hclog's JSON format, which scripts around the original know.
    now = format_time(time.time_ns())
    click.echo(
        msgspec.json.encode({"@level": level, "@message": message, "@timestamp": now, **more}).decode(), err=True
    )


def note(text: str) -> None:
    """A line of talk, on standard error."""
    if is_json_log():
        _log("info", text)
        return
    click.echo(text, err=True)


def print_error(error: FirebuildError) -> None:
    """`error: message`, its details, its hint, on standard error."""
    if is_json_log():
        _log("error", error.message, code=error.code, details=error.details, hint=error.hint)
        return
    click.echo(f"error: {error.message}", err=True)
    if error.details:
        click.echo(error.details, err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(f"note: {note}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
