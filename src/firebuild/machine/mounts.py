"""What `-v` and `--mount` say: which disk of a machine stands for which of its folders. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

import msgspec

from firebuild.errors import UsageError
from firebuild.names import parse_object_name

# All drives behind the root's: what the interrupts of a microVM (19 of Firecracker's devices) leave room for.
MOUNTS_MAX = 12
_OWN = ("proc", "sys", "dev")
_KEYS = {
    "type": "type", "source": "source", "src": "source", "target": "target", "dst": "target", "destination": "target",
    "readonly": "readonly", "ro": "readonly", "volume-nocopy": "nocopy",
}  # fmt: skip
_FLAG = {"": True, "true": True, "1": True, "false": False, "0": False}
_PATH = re.compile(r"[./~]")


class MountRequest(msgspec.Struct, frozen=True):
    """A folder of a machine that gets a disk of its own. `source`: a volume's name, or with `is_folder` a folder of the host.

    `target`: absolute and clean. `seed`: an empty volume gets what the image has there."""

    source: str
    target: str
    read_only: bool = False
    seed: bool = True
    is_folder: bool = False


def parse_volume_option(text: str) -> MountRequest:
    """`NAME:/PATH[:OPTIONS]` or `./FOLDER:/PATH[:OPTIONS]`; options are ro, rw and nocopy. Raises UsageError."""
    source, _, rest = text.partition(":")
    target, _, words = rest.partition(":")
    if not target:
        raise UsageError(
            f"`{text}` names no volume and path", hint="write NAME:/PATH or ./FOLDER:/PATH; what is written elsewhere is"
            " on the machine's own disk and stays until `firebuild rm`",
        )  # fmt: skip
    options = set(filter(None, words.split(",")))
    unknown = sorted(options - {"ro", "rw", "nocopy"})
    if unknown or {"ro", "rw"} <= options:
        raise UsageError(f"`{text}`: the options of a volume are ro or rw, and nocopy")
    return _make_request(source, target, "ro" in options, "nocopy" not in options, text)


def parse_mount_option(text: str) -> MountRequest:
    """`type=volume,source=NAME,target=/PATH[,readonly][,volume-nocopy]`, Docker's words; type=bind for a folder. Raises UsageError."""
    found: dict[str, str] = {}
    for part in text.split(","):
        word, _, value = part.partition("=")
        key = _KEYS.get(word.strip())
        if key is None:
            raise UsageError(f"`{text}`: `{part}` is not a key of --mount", hint=f"the keys are {', '.join(_KEYS)}")
        found[key] = value
    kind = found.get("type", "volume")
    if kind not in ("volume", "bind"):
        raise UsageError(f"`{text}`: a mount of the type `{kind}`", hint="type=volume, or type=bind for a folder")
    flags = {key: _FLAG.get(found[key].lower()) for key in ("readonly", "nocopy") if key in found}
    source, target = found.get("source", ""), found.get("target", "")
    if None in flags.values() or not source or not target:
        raise UsageError(f"`{text}` is not a mount", hint="write type=volume,source=NAME,target=/PATH[,readonly]")
    request = _make_request(source, target, bool(flags.get("readonly")), not flags.get("nocopy"), text)
    if request.is_folder != (kind == "bind"):
        what = "a folder needs type=bind" if request.is_folder else "type=bind needs a path: ./FOLDER or /FOLDER"
        raise UsageError(f"`{text}`: {what}")
    return request


def _make_request(source: str, target: str, read_only: bool, seed: bool, text: str) -> MountRequest:
    is_folder = bool(_PATH.match(source))
    if not is_folder:
        parse_object_name("volume", source)
    clean = posixpath.normpath(target)
    if not target.startswith("/") or "\0" in target or len(target) > 1024:
        raise UsageError(f"`{text}`: `{target[:200]}` is not an absolute path in the machine")
    first = clean.strip("/").partition("/")[0]
    if first in ("", *_OWN):
        raise UsageError(f"`{text}`: nothing can be mounted on `{target}`")
    return MountRequest(source, "/" + clean.strip("/"), read_only, seed and not is_folder, is_folder)


class DiskRequest(msgspec.Struct, frozen=True):
    """A file or block device of the host that the machine sees as a block device. `path`: as it was written."""

    path: str
    read_only: bool = False


def parse_disk_option(text: str) -> DiskRequest:
    """`PATH[:ro|rw]`. Raises UsageError."""
    path, colon, word = text.rpartition(":")
    if not colon or word not in ("ro", "rw"):
        path, word = text, "rw"
    if not path or "\0" in path:
        raise UsageError(f"`{text}` names no disk", hint="write PATH or PATH:ro: a file or a block device of the host")
    return DiskRequest(path, word == "ro")


def plan_mounts(requests: Iterable[MountRequest]) -> Sequence[MountRequest]:
    """In the order in which they are mounted: a folder before those in it. Raises UsageError for what cannot be together."""
    mounts = sorted(requests, key=lambda mount: mount.target.split("/"))
    if len(mounts) > MOUNTS_MAX:
        raise UsageError(f"a machine has at most {MOUNTS_MAX} volumes, not {len(mounts)}")
    for field, what in (("target", "the folder `{}` gets two volumes"), ("source", "the volume `{}` is named twice")):
        values = [str(getattr(mount, field)) for mount in mounts if field == "target" or not mount.is_folder]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise UsageError(what.format(twice))
    return mounts
