"""Which packages a file tree has installed, from the databases of dpkg(1) and apk(8)."""

from __future__ import annotations

from collections.abc import Iterator

# Name, with the architecture where dpkg has several, to version.
Packages = dict[str, str]

_DPKG = "/var/lib/dpkg/status"
DATABASES = (_DPKG, "/lib/apk/db/installed", "/usr/lib/apk/db/installed")


def parse_packages(path: str, data: bytes) -> Packages:
    """The packages that the database at `path` lists as installed; what does not parse is left out: it is a stranger's file."""
    text = data.decode("utf-8", "replace")
    return dict(_dpkg(text) if path == _DPKG else _apk(text))


def _dpkg(text: str) -> Iterator[tuple[str, str]]:
    """Stanzas of `Field: value` (deb-control(5)); `Status: install ok installed` is what counts."""
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] not in " \t")
        if "Package" in fields and "Version" in fields and fields.get("Status", "").endswith(" installed"):
            yield fields["Package"], fields["Version"]


def _apk(text: str) -> Iterator[tuple[str, str]]:
    """Blocks of `P:name` and `V:version` (apk's installed database)."""
    for block in text.split("\n\n"):
        fields = dict(line.split(":", 1) for line in block.splitlines() if line[1:2] == ":")
        if "P" in fields and "V" in fields:
            yield fields["P"], fields["V"]
