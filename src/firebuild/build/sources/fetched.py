"""What a fetch over HTTP gives: told apart from the fetching, whose libraries are large, for those who only keep it."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from firebuild.build.sources.url import Url


class Validators(msgspec.Struct, frozen=True):
    """What a server calls a version of a file: its ETag and its Last-Modified, as they came; empty where it said none."""

    etag: str = ""
    last_modified: str = ""

    def __bool__(self) -> bool:
        return bool(self.etag or self.last_modified)


NO_VALIDATORS = Validators()


class Fetched(msgspec.Struct, frozen=True):
    """A fetched body, in a file without a name. `url`: after redirects; `sha256`: hex; `mtime_s`: Last-Modified or None."""

    url: Url
    file: BinaryIO
    size: int
    sha256: str
    mtime_s: int | None
    content_type: str
    validators: Validators = NO_VALIDATORS
