"""Renders the lines of a Dockerfile around a place, the faulty ones marked."""

from __future__ import annotations

from collections.abc import Sequence

from firebuild.dockerfile.errors import printable
from firebuild.dockerfile.location import Location

CONTEXT_LINES = 2
MARKED_HEAD = 8
MARKED_TAIL = 3
LINE_LENGTH = 160


def render_excerpt(lines: Sequence[str], location: Location, *, line: int | None = None) -> str:
    """The lines of `location` marked with `>>>`, with two lines around them and their numbers.

    `line` is the very place of the fault: a long instruction is shown in part, but that line always. Each line is
    shortened and made printable, so that a hostile file cannot reach the terminal.
    """
    last = len(lines)
    if last == 0:
        return ""
    start = min(max(location.start_line, 1), last)
    end = min(max(location.end_line, start), last)
    wanted = set(range(max(1, start - CONTEXT_LINES), start))
    wanted |= set(range(end + 1, min(last, end + CONTEXT_LINES) + 1))
    if end - start + 1 <= MARKED_HEAD + MARKED_TAIL:
        wanted |= set(range(start, end + 1))
    else:
        wanted |= set(range(start, start + MARKED_HEAD)) | set(range(end - MARKED_TAIL + 1, end + 1))
        if line is not None and start <= line <= end:
            wanted |= set(range(max(start, line - CONTEXT_LINES), min(end, line + CONTEXT_LINES) + 1))
    while last in wanted and last > end and not lines[last - 1].strip():
        wanted.discard(last)
        last -= 1
    width = len(str(max(wanted)))
    rendered: list[str] = []
    previous = None
    for number in sorted(wanted):
        if previous is not None and number != previous + 1:
            rendered.append(f"{'':>{width}} |     …")
        mark = ">>>" if start <= number <= end else "   "
        text = printable(lines[number - 1].rstrip("\r\n"))
        if len(text) > LINE_LENGTH:
            text = text[: LINE_LENGTH - 1] + "…"
        rendered.append(f"{number:>{width}} | {mark} {text}".rstrip())
        previous = number
    return "\n".join(rendered)
