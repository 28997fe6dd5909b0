"""Value types: identifiers, image references, sizes, published ports. Pure; every parser refuses by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NewType

import msgspec

from firebuild.errors import UsageError

MachineId = NewType("MachineId", str)
Digest = NewType("Digest", str)

MACHINE_ID_LENGTH = 20
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ID_ALPHABET = _LETTERS + "0123456789"
# Patterns are texts: `re` compiles them when they are first used, which for most commands is never.
_MACHINE_ID = r"[a-z0-9]{20}"
_MACHINE_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}"
_HOSTNAME = r"(?=.{1,64}\Z)[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
_OBJECT_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.+-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}"

# distribution/reference, regexp.go: the grammar of image references.
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_REFERENCE = (
    rf"(?P<name>(?:{_DOMAIN}/)?{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def new_machine_id() -> MachineId:
    """A fresh machine id: 20 lower-case letters and digits, the first a letter."""
    # It takes longer to import than most commands, which make no machine, need to begin.
    import secrets

    first = secrets.choice(_LETTERS)
    return MachineId(first + "".join(secrets.choice(_ID_ALPHABET) for _ in range(MACHINE_ID_LENGTH - 1)))


def parse_machine_id(text: str) -> MachineId:
    """A whole machine id. Raises UsageError."""
    if not re.fullmatch(_MACHINE_ID, text):
        raise UsageError(f"`{text}` is not a machine id", hint="an id is 20 lower-case letters and digits")
    return MachineId(text)


def parse_machine_name(text: str) -> str:
    """A machine's name: as Docker's, at most 63 characters. Raises UsageError."""
    if not re.fullmatch(_MACHINE_NAME, text):
        raise UsageError(
            f"`{text}` is not a machine name",
            hint="a name starts with a letter or digit, then letters, digits, `_`, `.`, `-`; at most 63 characters",
        )
    return text


def parse_hostname(text: str) -> str:
    """A host name: labels of letters, digits and inner hyphens, at most 64 bytes (hostname(7), sethostname(2))."""
    if not re.fullmatch(_HOSTNAME, text):
        raise UsageError(f"`{text}` is not a host name")
    return text


def parse_object_name(kind: str, text: str) -> str:
    """The name of a kernel, profile, network or volume: safe as a file name. Raises UsageError."""
    if not re.fullmatch(_OBJECT_NAME, text):
        raise UsageError(
            f"`{text}` is not a {kind} name", hint="letters, digits, `_`, `.`, `+`, `-`; at most 128 characters"
        )
    return text


def parse_digest(text: str) -> Digest:
    """A sha256 digest, `sha256:` and 64 lower-case hex digits. Raises UsageError."""
    if not re.fullmatch(_DIGEST, text):
        raise UsageError(f"`{text[:100]}` is not a sha256 digest")
    return Digest(text)


class Reference(msgspec.Struct, frozen=True):
    """A normalised image reference.

    `domain`: the registry, `docker.io` if the text names none. `path`: the repository's path there, `library/NAME`
    for Docker's library images. `tag`: `latest` if the text gives neither tag nor digest.
    """

    domain: str
    path: str
    tag: str | None
    digest: Digest | None

    @property
    def name(self) -> str:
        """The full repository name, `docker.io/library/debian`."""
        return f"{self.domain}/{self.path}"

    @property
    def full(self) -> str:
        """The full reference: what the store keeps as its key, `docker.io/library/debian:bookworm-slim`."""
        text = self.name
        if self.tag is not None:
            text += f":{self.tag}"
        if self.digest is not None:
            text += f"@{self.digest}"
        return text

    @property
    def familiar(self) -> str:
        """The short form that users read and write, `debian:bookworm-slim`, `examples/redis:7`."""
        text = self.full
        for prefix in ("docker.io/library/", "docker.io/"):
            if text.startswith(prefix):
                return text[len(prefix) :]
        return text

    def __str__(self) -> str:
        return self.familiar


def parse_reference(text: str) -> Reference:
    """Parse and normalise an image reference as Docker does (distribution/reference, normalize.go).

    Raises UsageError for anything that the grammar refuses, for a bare 64-digit hex name, and for more than 255 characters.
    """
    match = re.fullmatch(_REFERENCE, text) if len(text) <= 512 else None
    if match is None or re.fullmatch(r"[0-9a-f]{64}", text):
        hint = "references look like `name:tag`, `org/name:version` or `registry.example/org/name:tag`"
        if text != text.lower():
            hint += "; repository names are lower case"
        raise UsageError(f"`{text[:200]}` is not an image reference", hint=hint)
    name, tag, digest = match["name"], match["tag"], match["digest"]
    domain, _, rest = name.partition("/")
    if not rest or not ("." in domain or ":" in domain or domain == "localhost" or domain != domain.lower()):
        domain, rest = "docker.io", name
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in rest:
        rest = f"library/{rest}"
    if len(domain) + 1 + len(rest) > 255:
        raise UsageError(f"`{text[:200]}` is not an image reference", hint="the name is longer than 255 characters")
    if tag is None and digest is None:
        tag = "latest"
    return Reference(domain=domain, path=rest, tag=tag, digest=Digest(digest) if digest else None)


# A registry that cannot exist: .internal is reserved for private use.
BASEOS_DOMAIN = "baseos.internal"


def baseos_reference(reference: Reference) -> Reference:
    """The name in the store of the base operating system that stands for an image's name: `baseos.internal/debian:12`.

    Beside the image's own, so that both can be stored. No two images share one. Raises UsageError for a registry
    that is an IPv6 address.
    """
    if is_baseos(reference):
        return reference
    # A port's colon is not part of a path; no domain has underscores.
    domain = reference.domain.lower().replace(":", "__")
    path = reference.path.removeprefix("library/") if domain == "docker.io" else f"{domain}/{reference.path}"
    return parse_reference(f"{BASEOS_DOMAIN}/{path}" + (f":{reference.tag}" if reference.tag is not None else ""))


def baseos_stands_for(reference: Reference) -> Reference:
    """The image's name that a base operating system stands for: undoes baseos_reference."""
    first, slash, rest = reference.path.partition("/")
    path = f"{first.replace('__', ':')}{slash}{rest}" if slash else first
    return parse_reference(path + (f":{reference.tag}" if reference.tag is not None else ""))


def is_baseos(reference: Reference) -> bool:
    """Whether the reference is the name of a base operating system."""
    return reference.domain == BASEOS_DOMAIN


_SIZE = r"(?P<number>[0-9]+)(?P<unit>[bkmgt]?)(?:i?b)?"
_SIZE_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(text: str, *, default_unit: str = "b") -> int:
    """A size in bytes from `512m`, `2g`, `1024`; units are powers of 1024, as Docker's -m takes them. Raises UsageError."""
    match = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"`{text}` is not a size", hint="write for example `512m` or `2g`")
    unit = match["unit"].lower() or default_unit
    return int(match["number"]) * _SIZE_UNITS[unit]


# What a network can allow its machines, beside addresses and ranges.
ALLOW_WORDS = ("host", "networks", "private", "metadata", "spoofing")


class PortMapping(msgspec.Struct, frozen=True):
    """A published port. `host_address`: empty for every address. Ports are 1..65535, `host_port` 0: any that is free;
    `protocol`: tcp or udp."""

    host_address: str
    host_port: int
    guest_port: int
    protocol: str

    def __str__(self) -> str:
        address = f"[{self.host_address}]" if ":" in self.host_address else self.host_address
        prefix = f"{address}:" if address else ""
        return f"{prefix}{self.host_port}:{self.guest_port}/{self.protocol}"


_PORT = (
    r"(?:(?:(?P<address>\[[0-9a-fA-F:]+\]|[0-9.]+):)?(?P<host>[0-9]+(?:-[0-9]+)?)?(?P<colon>:))?"
    r"(?P<guest>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>tcp|udp))?"
)


def parse_port_mappings(text: str) -> list[PortMapping]:
    """Parse `-p [[address:]host[-range]:]guest[-range][/tcp|udp]`. Without a host port the guest's number is used; with an
    empty one, `127.0.0.1::80` or `:80`, or 0, one that is free when the machine starts.

    Raises UsageError. Ranges must be of equal length.
    """
    match = re.fullmatch(_PORT, text)
    if match is None:
        raise UsageError(
            f"`{text}` is not a port mapping",
            hint="write `[[address:]host:]guest[/tcp|udp]`, for example `127.0.0.1:8080:80`",
        )
    guests = _port_range(text, match["guest"])
    hosts: Sequence[int] = guests
    if match["colon"]:
        hosts = [0] * len(guests) if match["host"] in (None, "0") else _port_range(text, match["host"])
    if len(hosts) != len(guests):
        raise UsageError(f"`{text}`: the host's range and the guest's range differ in length")
    address = (match["address"] or "").strip("[]")
    if address:
        import ipaddress

        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise UsageError(f"`{text}`: `{address}` is not an IP address") from None
    protocol = match["protocol"] or "tcp"
    return [
        PortMapping(host_address=address, host_port=host, guest_port=guest, protocol=protocol)
        for host, guest in zip(hosts, guests, strict=True)
    ]


def _port_range(text: str, part: str) -> range:
    first, _, last = part.partition("-")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= 65535:
        raise UsageError(f"`{text}`: ports are 1 to 65535, and ranges ascend")
    return range(low, high + 1)


def oci_layer_type(media_type: str) -> str:
    """OCI's media type for what Docker's type of a layer says (image-spec, media-types.md, "Compatibility Matrix"); any
    other stays."""
    kind, found, suffix = media_type.removeprefix("application/vnd.docker.image.rootfs.").partition("diff.tar")
    if not found or not media_type.startswith("application/vnd.docker."):
        return media_type
    nondistributable = "nondistributable." if kind == "foreign." else ""
    return f"application/vnd.oci.image.layer.{nondistributable}v1.tar{suffix.replace('.', '+')}"
