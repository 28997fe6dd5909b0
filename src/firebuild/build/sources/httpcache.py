"""Files that ADD fetched, kept with what their servers called them, so that an unchanged one is not fetched again.

<folder>/<key>.body     the bytes; the key is the digest of the URL without credentials: who may have it, the server says
<folder>/<key>.json     Kept; written last, so that a body without one counts for nothing

RFC 9110, section 13: a stored ETag goes into If-None-Match, a stored Last-Modified into If-Modified-Since.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from firebuild.build.sources.fetched import Fetched, Validators
from firebuild.build.sources.url import Url
from firebuild.errors import FirebuildError
from firebuild.host.files import map_os_error, open_atomic, write_atomic

# What is larger is fetched each time: the cache is for files that builds wait for, not an archive.
MAX_BODY_BYTES = 1 << 30
_KEY = re.compile(r"[0-9a-f]{64}")


class Kept(msgspec.Struct, frozen=True):
    """A file that was fetched. `shown`: its URL without credentials; `sha256`: hex; `mtime_s`: as the server said, or None."""

    key: str
    shown: str
    sha256: str
    size_bytes: int
    validators: Validators
    mtime_s: int | None
    content_type: str
    created_at_ns: int
    used_at_ns: int


class HttpCache:
    """The files below one folder. Creating the object touches nothing. Two builds at once may write one entry: the last wins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, url: Url) -> Kept | None:
        """What is kept of a URL, if its body is there too."""
        kept = self._load(_key_of(url))
        return kept if kept is not None and (self.folder / f"{kept.key}.body").exists() else None

    def open(self, kept: Kept, url: Url) -> Fetched | None:
        """The kept file as if it had been fetched now; None, and it is dropped, if its bytes are no longer what they were."""
        file: BinaryIO | None = None
        try:
            file = open(self.folder / f"{kept.key}.body", "rb")  # noqa: SIM115 - the caller closes it
            if hashlib.file_digest(file, "sha256").hexdigest() == kept.sha256:
                file.seek(0)
                self._write(msgspec.structs.replace(kept, used_at_ns=time.time_ns()))
                return Fetched(
                    url=url, file=file, size=kept.size_bytes, sha256=kept.sha256, mtime_s=kept.mtime_s,
                    content_type=kept.content_type, validators=kept.validators,
                )  # fmt: skip
        except OSError:
            pass  # another process has removed it: it is fetched
        if file is not None:
            file.close()
        self.remove(kept.key)
        return None

    def keep(self, url: Url, fetched: Fetched) -> None:
        """Keep a file that has a validator and is not too large. Raises DiskFullError, HostError."""
        if not fetched.validators or fetched.size > MAX_BODY_BYTES:
            return
        now = time.time_ns()
        key = _key_of(url)
        kept = Kept(
            key, url.shown, fetched.sha256, fetched.size, fetched.validators, fetched.mtime_s, fetched.content_type, now, now
        )  # fmt: skip
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open_atomic(self.folder / f"{key}.body", mode=0o600) as file:
                position = fetched.file.tell()
                fetched.file.seek(0)
                from shutil import copyfileobj

                copyfileobj(fetched.file, file)
                fetched.file.seek(position)
        except OSError as error:
            raise map_os_error(error, f"keeping `{url.shown}`") from error
        self._write(kept)

    def list_kept(self) -> list[Kept]:
        """All that is kept, the least recently used first."""
        try:
            keys = [name.removesuffix(".json") for name in os.listdir(self.folder) if name.endswith(".json")]
        except FileNotFoundError:
            return []
        found = [kept for kept in map(self._load, keys) if kept is not None]
        return sorted(found, key=lambda kept: (kept.used_at_ns, kept.key))

    def remove(self, key: str) -> None:
        """Remove what is kept under a key; absent is fine. Raises HostError."""
        for suffix in ("json", "body"):
            with suppress(FileNotFoundError):
                (self.folder / f"{key}.{suffix}").unlink()

    def _load(self, key: str) -> Kept | None:
        if not _KEY.fullmatch(key):
            return None
        try:
            kept = msgspec.json.decode((self.folder / f"{key}.json").read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError, FirebuildError):
            return None
        return kept if kept.key == key else None

    def _write(self, kept: Kept) -> None:
        write_atomic(self.folder / f"{kept.key}.json", msgspec.json.encode(kept), mode=0o600)


def _key_of(url: Url) -> str:
    return hashlib.sha256(url.text.encode("utf-8", "surrogateescape")).hexdigest()
