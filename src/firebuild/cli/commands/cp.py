"""`firebuild cp`: files into and out of machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firebuild.cli.output import format_size, note
from firebuild.cli.progress import open_meter
from firebuild.engine.core import Engine
from firebuild.errors import UsageError

if TYPE_CHECKING:
    from firebuild.engine.copy_plan import End
    from firebuild.engine.copying import Copied, CopyOptions


@click.command()
@click.option("-a", "--archive", is_flag=True, help="Keep the owners of files: their numbers, as at the source.")
@click.option("-L", "--follow-link", is_flag=True, help="If the source is a link, copy what it leads to.")
@click.option("-q", "--quiet", is_flag=True, help="Show neither progress nor what was copied.")
@click.argument("source")
@click.argument("target")
def cp(archive: bool, follow_link: bool, quiet: bool, source: str, target: str) -> None:
    """Copy files between the host and a machine: MACHINE:PATH on one side, a path of the host, or `-` for a tar on
    standard input or output, on the other. A folder is copied with all that is in it; FOLDER/. means what is in it."""
    from firebuild.engine import copying
    from firebuild.engine.copy_plan import STREAM, parse_end
    from firebuild.engine.reach import open_files

    origin, goal = parse_end(source), parse_end(target)
    if bool(origin.machine) == bool(goal.machine):
        what = "two machines" if origin.machine else "two places of the host"
        raise UsageError(f"`cp` does not copy between {what}", hint="write one of them as MACHINE:PATH")
    if goal.path == STREAM and not goal.machine and sys.stdout.isatty():
        raise UsageError("a tar is not written to a terminal", hint="send it to a file or a program")
    left_out: list[str] = []
    with (
        Engine() as engine, open_files(engine, origin.machine or goal.machine, lambda text: None if quiet else note(text)) as vsock,
        open_meter(f"copying {source}", quiet=quiet) as progress,
    ):  # fmt: skip
        options = copying.CopyOptions(
            keep_owner=archive, follow_link=follow_link, progress=progress,
            # A hostile guest may name millions.
            left_out=lambda text: left_out.append(text) if len(left_out) < 20 else None,
        )  # fmt: skip
        copied = _copy(vsock, origin, goal, options)
    for text in left_out:
        note(f"note: {text}")
    if not quiet:
        note(f"copied {format_size(copied.bytes)} to {target}")


def _copy(vsock: Path, origin: End, goal: End, options: CopyOptions) -> Copied:
    from firebuild.engine import copying
    from firebuild.engine.copy_plan import STREAM

    if goal.machine:
        if origin.path == STREAM:
            return copying.copy_stream_to_guest(vsock, sys.stdin.buffer, goal.path, options)
        return copying.copy_to_guest(vsock, origin.path, goal.path, options)
    if goal.path == STREAM:
        return copying.copy_stream_from_guest(vsock, origin.path, sys.stdout.buffer, options)
    return copying.copy_from_guest(vsock, origin.path, goal.path, options)
