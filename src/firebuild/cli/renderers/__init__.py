"""Shows the progress of builds on standard error: plain, tty, rawjson, quiet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TextIO, runtime_checkable

from firebuild.errors import UsageError
from firebuild.events.progress import NullSink, ProgressSink


@runtime_checkable
class Pausable(Protocol):
    """A renderer whose terminal somebody else may have for a while. What happens meanwhile is shown afterwards."""

    def pause(self) -> None:
        """Write nothing from now on."""

    def resume(self) -> None:
        """Go on."""


MODES = ("auto", "plain", "tty", "rawjson", "quiet", "none")


def choose_mode(asked: str, stream: TextIO, environment: Mapping[str, str] = os.environ) -> str:
    """The mode that `--progress` means here: `auto` is `tty` on a terminal that can move its cursor, else `plain`.

    FIREBUILD_PROGRESS stands in where `auto` is asked. Raises UsageError for an unknown mode.
    """
    if asked == "auto":
        asked = environment.get("FIREBUILD_PROGRESS") or "auto"
    if asked not in MODES:
        raise UsageError(f"`{asked}` is not a progress mode", hint=f"one of {', '.join(MODES)}")
    if asked == "auto":
        movable = stream.isatty() and environment.get("TERM", "dumb") != "dumb"
        return "tty" if movable else "plain"
    if asked == "tty" and not stream.isatty():
        raise UsageError("`--progress tty` needs a terminal on standard error", hint="use `--progress plain`")
    return asked


@contextmanager
def open_renderer(mode: str, stream: TextIO, environment: Mapping[str, str] = os.environ) -> Iterator[ProgressSink]:
    """A sink that shows a build's events on `stream` (standard error) until the block ends. Raises UsageError."""
    chosen = choose_mode(mode, stream, environment)
    if chosen == "plain":
        from firebuild.cli.renderers.plain import PlainRenderer

        plain = PlainRenderer(stream)
        try:
            yield plain
        finally:
            plain.close()
    elif chosen == "tty":
        from firebuild.cli.renderers.tty import TtyRenderer

        with TtyRenderer(stream, environment) as live:
            yield live
    elif chosen == "rawjson":
        from firebuild.cli.renderers.rawjson import RawJsonRenderer

        yield RawJsonRenderer(stream)
    else:
        yield NullSink()
