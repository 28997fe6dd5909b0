"""User and group ids out of a range, each given to one holder on this host at a time."""

from __future__ import annotations

import os
from pathlib import Path

from firebuild.errors import BusyError
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error
from firebuild.host.locks import hold_lock

_LOCK = ".lock"
_LOCK_S = 60.0


def claim_id(folder: Path, first: int, last: int, holder: Path) -> int:
    """An id from `first` to `last` that is `holder`'s until `free_ids`, or until that folder is gone. Raises BusyError.

    A claim is a link in `folder`, named after the id, to its holder: it needs nobody to live."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with hold_lock(folder / _LOCK, "the ids of VMMs", deadline=Deadline(_LOCK_S, "waiting for the ids of VMMs")):
            taken = set(os.listdir(folder))
            for number in range(first, last + 1):
                claim = folder / str(number)
                if claim.name in taken:
                    if Path(os.readlink(claim)).exists():
                        continue
                    claim.unlink()
                claim.symlink_to(holder)
                return number
    except OSError as error:
        raise map_os_error(error, f"claiming a user id in `{folder}`") from error
    raise BusyError(
        f"all {last - first + 1} user ids for VMMs, {first} to {last}, are in use",
        hint="end machines, or give the profile a wider range with --jailer-ids FIRST-LAST",
    )


def free_ids(folder: Path, holder: Path) -> None:
    """Give up what `holder` has; nothing is fine."""
    try:
        # Most have none. Nobody takes one for a holder that is being taken down, so that looking needs no lock; and where
        # descriptors have run out, what is looked for is not kept from being undone.
        if not folder.is_dir() or not _find_ids(folder, holder):
            return
        with hold_lock(folder / _LOCK, "the ids of VMMs", deadline=Deadline(_LOCK_S, "waiting for the ids of VMMs")):
            for name in _find_ids(folder, holder):
                (folder / name).unlink()
    except OSError as error:
        raise map_os_error(error, f"giving up a user id in `{folder}`") from error


def _find_ids(folder: Path, holder: Path) -> list[str]:
    found = []
    for name in os.listdir(folder):
        try:
            if name != _LOCK and os.readlink(folder / name) == str(holder):
                found.append(name)
        except FileNotFoundError:
            # Another machine's, given up meanwhile.
            continue
    return found
