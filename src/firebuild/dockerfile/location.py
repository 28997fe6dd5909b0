"""Where something stands in a Dockerfile."""

from __future__ import annotations

import msgspec


class Location(msgspec.Struct, frozen=True):
    """A range of a file. Lines and columns count from 1, columns in characters; `end_column` is one past the last."""

    start_line: int
    start_column: int
    end_line: int
    end_column: int
