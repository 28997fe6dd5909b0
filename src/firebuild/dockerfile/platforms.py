"""Platform strings such as `linux/arm64/v8` or `amd64`: their reading, their normal form, and which are the same.

The grammar and the normal form are those of containerd's platforms package, which BuildKit reads FROM --platform with:
`<os>`, `<arch>`, `<os>/<arch>`, `<os>/<arch>/<variant>`, and an OS may carry its version, `windows(10.0.17763)`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec

from firebuild.dockerfile.errors import did_you_mean, shown
from firebuild.dockerfile.scope import Platform
from firebuild.errors import DockerfileError

# Go's names (go/build, syslist.go): only these can stand alone.
# fmt: off
OPERATING_SYSTEMS = frozenset((
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd",
    "openbsd", "plan9", "solaris", "windows", "zos",
))
ARCHITECTURES = frozenset((
    "386", "amd64", "amd64p32", "arm", "arm64", "arm64be", "armbe", "loong64", "mips", "mips64", "mips64le",
    "mips64p32", "mips64p32le", "mipsle", "ppc", "ppc64", "ppc64le", "riscv", "riscv64", "s390", "s390x", "sparc",
    "sparc64", "wasm",
))
# fmt: on

_OS = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)(\+[A-Za-z0-9_.%+-]*)?\))?")
_PART = re.compile(r"[A-Za-z0-9_.-]+")
_MAX_LENGTH = 255
_HINT = "write `linux/amd64`, `linux/arm64/v8` or `arm64`"


def parse_platform(text: str, default: Platform) -> Platform:
    """The platform that a text names; what it leaves out is taken from `default`. Raises DockerfileError."""
    parts = text.split("/")
    match = _OS.fullmatch(parts[0]) if len(text) <= _MAX_LENGTH else None
    if match is None or len(parts) > 3 or not all(_PART.fullmatch(part) for part in parts[1:]):
        raise DockerfileError(f"{shown(text)} is not a platform", hint=_HINT)
    if match[3]:
        raise DockerfileError(f"the platform {shown(text)} asks for features of the system", hint=_HINT)
    system = _normal_os(match[1])
    version = unquote(match[2] or "")
    if len(parts) == 1:
        return _parse_one(text, system, version, default)
    architecture, variant = _normal_architecture(parts[1], parts[2] if len(parts) == 3 else "")
    if len(parts) == 2 and (architecture, variant) == ("arm", "v7"):
        variant = ""
    elif len(parts) == 3 and (architecture, variant) == ("arm64", ""):
        variant = "v8"
    return Platform(system, architecture, variant, version)


def _parse_one(text: str, system: str, version: str, default: Platform) -> Platform:
    if system in OPERATING_SYSTEMS:
        variant = default.variant if default.architecture == "arm" and default.variant != "v7" else ""
        return Platform(system, default.architecture, variant, version)
    architecture, variant = _normal_architecture(text, "")
    if architecture not in ARCHITECTURES:
        known = (*OPERATING_SYSTEMS, *ARCHITECTURES)
        raise DockerfileError(
            f"{shown(text)} is neither an operating system nor an architecture", hint=did_you_mean(text, known) or _HINT
        )
    return Platform(default.os, architecture, "" if (architecture, variant) == ("arm", "v7") else variant)


def normalize_platform(platform: Platform) -> Platform:
    """The one form of all that mean the same: `linux/aarch64/v8` becomes `linux/arm64`, `linux/arm` `linux/arm/v7`."""
    architecture, variant = _normal_architecture(platform.architecture, platform.variant)
    return msgspec.structs.replace(platform, os=_normal_os(platform.os), architecture=architecture, variant=variant)


def is_same_platform(one: Platform, other: Platform) -> bool:
    """Whether two platforms are the same, however they are written. The version of the system does not count."""
    left, right = normalize_platform(one), normalize_platform(other)
    return (left.os, left.architecture, left.variant) == (right.os, right.architecture, right.variant)


def _normal_os(name: str) -> str:
    name = name.lower()
    return "darwin" if name == "macos" else name


def _normal_architecture(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = architecture.lower(), variant.lower()
    match architecture:
        case "i386":
            return "386", ""
        case "x86_64" | "x86-64" | "amd64":
            return "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            if variant in ("8", "v8", "v8.0"):
                return "arm64", ""
            return "arm64", "v9" if variant in ("9", "9.0", "v9.0") else variant
        case "armhf":
            return "arm", "v7"
        case "armel":
            return "arm", "v6"
        case "arm":
            if variant in ("", "7"):
                return "arm", "v7"
            return "arm", f"v{variant}" if variant in ("5", "6", "8") else variant
    return architecture, variant
