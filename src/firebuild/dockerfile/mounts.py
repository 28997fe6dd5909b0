"""`RUN --mount=…`: the flag as written and, once variables are expanded, the typed mount."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from firebuild.dockerfile.errors import did_you_mean, shown
from firebuild.dockerfile.values import parse_boolean, parse_size_bytes
from firebuild.errors import DockerfileError

MOUNT_TYPES = ("bind", "cache", "secret", "ssh", "tmpfs")
SHARING_MODES = ("locked", "private", "shared")

# Every key, and what it is another word for.
MOUNT_KEYS = {
    "destination": "target",
    "dst": "target",
    "env": "env",
    "from": "from",
    "gid": "gid",
    "id": "id",
    "mode": "mode",
    "readonly": "readonly",
    "readwrite": "readwrite",
    "required": "required",
    "ro": "readonly",
    "rw": "readwrite",
    "sharing": "sharing",
    "size": "size",
    "source": "source",
    "src": "source",
    "target": "target",
    "type": "type",
    "uid": "uid",
}
_MAY_STAND_ALONE = frozenset({"readonly", "readwrite", "required"})


class MountFlag(msgspec.Struct, frozen=True):
    """A --mount as written. `source`: its `from` (never expanded); `offset`: where the flag stands in its line."""

    text: str
    source: str | None
    offset: int


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount of a RUN. `type`: one of MOUNT_TYPES. What is absent in the file is None or empty: the planner knows the
    defaults that depend on the stage (a relative `target` is below the workdir; a cache's `id` is its target).

    `stage`: the `from`, a stage's name, a named context or an image; `size_bytes`: of a tmpfs, 0 without a limit;
    `env`: the variable that a secret goes to, and then not to a file unless there is a `target`.
    """

    type: str
    stage: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    id: str = ""
    sharing: str = ""
    required: bool = False
    size_bytes: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    env: str | None = None


def split_csv(text: str) -> list[str]:
    """The fields of one line of RFC 4180: quoted fields may hold commas, a doubled quote stands for one."""
    fields: list[str] = []
    position = 0
    while True:
        if text.startswith('"', position):
            chars: list[str] = []
            position += 1
            while True:
                end = text.find('"', position)
                if end < 0:
                    raise DockerfileError(f"a quote is not closed in {shown(text)}")
                chars.append(text[position:end])
                position = end + 1
                if not text.startswith('"', position):
                    break
                chars.append('"')
                position += 1
            fields.append("".join(chars))
            if position < len(text) and text[position] != ",":
                raise DockerfileError(f"a closing quote in {shown(text)} is not followed by a comma")
        else:
            end = text.find(",", position)
            end = len(text) if end < 0 else end
            if '"' in text[position:end]:
                raise DockerfileError(f"a quote stands inside a field of {shown(text)}")
            fields.append(text[position:end])
            position = end
        if position >= len(text):
            return fields
        position += 1


def _split_field(field: str) -> tuple[str, str | None]:
    name, equals, value = field.partition("=")
    return name.lower(), value if equals else None


def parse_mount_flag(text: str, offset: int) -> MountFlag:
    """Reads what must not depend on variables: the fields and `from`. Raises DockerfileError."""
    if not text:
        raise DockerfileError("--mount is empty", hint="write `--mount=type=cache,target=/…`")
    stage = None
    for field in split_csv(text):
        name, value = _split_field(field)
        if name == "from" and value is not None:
            dollar = value.find("$")
            if 0 <= dollar < len(value) - 1:
                raise DockerfileError(
                    f"`from` of --mount takes no variables: {shown(value)}",
                    hint="give the image a stage of its own: `FROM $IMAGE AS name`",
                )
            stage = value
    return MountFlag(text, stage, offset)


def parse_mount(text: str, expand: Callable[[str], str]) -> Mount:
    """The mount that a flag describes, its values expanded. Keys count in their order, as in BuildKit: `type` first.

    Raises DockerfileError.
    """
    kind = "bind"
    read_only: bool | None = None
    fields: dict[str, str] = {}
    numbers: dict[str, int] = {}
    required = False
    for field in split_csv(text):
        written, value = _split_field(field)
        key = MOUNT_KEYS.get(written)
        if key is None:
            raise DockerfileError(
                f"unknown key {shown(written)} of --mount",
                hint=did_you_mean(written, MOUNT_KEYS) or "the keys are " + ", ".join(sorted(MOUNT_KEYS)),
            )
        if value is None and key not in _MAY_STAND_ALONE:
            raise DockerfileError(f"{shown(written)} of --mount needs a value", hint=f"write `{key}=…`")
        value = "true" if value is None else expand(value)
        if key == "type":
            kind = value.lower()
            if kind not in MOUNT_TYPES:
                raise DockerfileError(
                    f"unknown mount type {shown(value)}",
                    hint=did_you_mean(value, MOUNT_TYPES) or "the types are " + ", ".join(MOUNT_TYPES),
                )
        elif key == "readonly":
            read_only = parse_boolean(value)
        elif key == "readwrite":
            read_only = not parse_boolean(value)
        elif key == "required":
            _check_key(key, kind, ("secret", "ssh"))
            required = parse_boolean(value)
        elif key == "size":
            _check_key(key, kind, ("tmpfs",))
            numbers[key] = parse_size_bytes(value)
        elif key in ("mode", "uid", "gid"):
            numbers[key] = _parse_number(key, value)
        else:
            fields[key] = value
    sharing = fields.get("sharing", "").lower()
    _check_mount(kind, fields, numbers, sharing)
    return Mount(
        type=kind,
        stage=fields.get("from", ""),
        source=fields.get("source", ""),
        target=fields.get("target", ""),
        read_only=kind not in ("cache", "tmpfs") if read_only is None else read_only,
        id=fields.get("id", ""),
        sharing=sharing,
        required=required,
        size_bytes=numbers.get("size", 0),
        mode=numbers.get("mode"),
        uid=numbers.get("uid"),
        gid=numbers.get("gid"),
        env=fields.get("env"),
    )


def _check_key(key: str, kind: str, kinds: tuple[str, ...]) -> None:
    if kind not in kinds:
        raise DockerfileError(
            f"`{key}` does not belong to a mount of type `{kind}`",
            hint=f"it belongs to {' and '.join(kinds)} mounts; `type` comes before it",
        )


def _check_mount(kind: str, fields: dict[str, str], numbers: dict[str, int], sharing: str) -> None:
    if "sharing" in fields and sharing not in SHARING_MODES:
        raise DockerfileError(
            f"unknown sharing mode {shown(sharing)}", hint="the modes are " + ", ".join(SHARING_MODES)
        )
    for key in ("mode", "uid", "gid"):
        if key in numbers:
            _check_key(key, kind, ("cache", "secret", "ssh"))
    if sharing:
        _check_key("sharing", kind, ("cache",))
    if kind == "secret":
        if fields.get("from"):
            raise DockerfileError("a secret mount takes no `from`")
        if fields.get("source") and fields.get("id"):
            raise DockerfileError("a secret mount takes `source` or `id`, not both")
        if not (fields.get("source") or fields.get("target") or fields.get("id")):
            raise DockerfileError("a secret mount needs an `id` or a `target`")


def _parse_number(key: str, text: str) -> int:
    base = 8 if key == "mode" else 10
    digits = "01234567" if base == 8 else "0123456789"
    if not text or text.strip(digits) or len(text) > 12 or int(text, base) >= 2**32:
        raise DockerfileError(
            f"{shown(text)} is no `{key}` of a mount", hint="`mode` is octal, `uid` and `gid` decimal"
        )
    return int(text, base)
