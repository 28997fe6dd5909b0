"""File systems without a free byte."""

from __future__ import annotations

import errno
from pathlib import Path


def fill(folder: Path) -> Path:
    """A file in the folder that has all of its file system's room; what others write meanwhile only makes it smaller."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for block in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return filler
