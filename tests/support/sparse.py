"""Looks for bytes in files without reading their holes: a state's disks are gigabytes, most of them nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

CHUNK_BYTES = 1 << 22


def find_files_with(needle: bytes, *roots: Path) -> list[Path]:
    """The regular files below `roots` whose data hold `needle`."""
    files = (path for root in roots for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if _holds(path, needle)]


def _holds(path: Path, needle: bytes) -> bool:
    with path.open("rb") as file:
        for start, end in _find_data(file.fileno()):
            file.seek(start)
            tail = b""
            while (left := end - file.tell()) > 0 and (chunk := file.read(min(left, CHUNK_BYTES))):
                if needle in tail + chunk:
                    return True
                tail = chunk[1 - len(needle) :]
    return False


def _find_data(descriptor: int) -> Iterator[tuple[int, int]]:
    """The data extents of an open file as (start, end), lseek(2)."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
