"""--chmod of COPY and ADD, checked as BuildKit checks it: an octal mode, or changes as chmod(1) has them."""

from __future__ import annotations

import re

from firebuild.dockerfile.errors import shown
from firebuild.errors import DockerfileError

_CLAUSE = re.compile(r"[ugoa]*([-+=][rwxXstugo]*)+")


def check_mode(text: str) -> None:
    """Raises DockerfileError for what is neither an octal mode up to 07777 nor symbolic (`u+x,go-w`)."""
    if text[:1].isdigit():
        if text.strip("01234567") or int(text, 8) > 0o7777:
            raise DockerfileError(
                f"{shown(text)} is not an octal mode between 0 and 07777", hint="write `--chmod=0644`"
            )
        return
    for clause in text.split(","):
        if not _CLAUSE.fullmatch(clause):
            raise DockerfileError(
                f"{shown(text)} is not a mode", hint="write octal digits, or changes such as `u+x,go-w`"
            )
