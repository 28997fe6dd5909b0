"""The small values inside instructions, each with the grammar that BuildKit takes: times, sizes, ports, signals."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from firebuild.dockerfile.errors import shown
from firebuild.errors import DockerfileError

_UNIT_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"([+-]?)((?:[0-9]*\.?[0-9]*(?:ns|us|µs|μs|ms|s|m|h))+|0)")
_DURATION_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_MAX_DURATION_NS = 2**63 - 1

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kmgtp]?)(i?b)?", re.IGNORECASE)
_SIZE_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

# signal(7), Linux on x86 and arm.
SIGNALS: Mapping[str, int] = MappingProxyType(
    {
        "ABRT": 6,
        "ALRM": 14,
        "BUS": 7,
        "CHLD": 17,
        "CLD": 17,
        "CONT": 18,
        "FPE": 8,
        "HUP": 1,
        "ILL": 4,
        "INT": 2,
        "IO": 29,
        "IOT": 6,
        "KILL": 9,
        "PIPE": 13,
        "POLL": 29,
        "PROF": 27,
        "PWR": 30,
        "QUIT": 3,
        "SEGV": 11,
        "STKFLT": 16,
        "STOP": 19,
        "SYS": 31,
        "TERM": 15,
        "TRAP": 5,
        "TSTP": 20,
        "TTIN": 21,
        "TTOU": 22,
        "URG": 23,
        "USR1": 10,
        "USR2": 12,
        "VTALRM": 26,
        "WINCH": 28,
        "XCPU": 24,
        "XFSZ": 25,
    }
)
_REALTIME_MIN = 34
_REALTIME_MAX = 64


def parse_duration_ns(text: str) -> int:
    """Nanoseconds of a duration such as `1m30s` or `1.5h` (the grammar of Go's time.ParseDuration)."""
    match = _DURATION.fullmatch(text) if len(text) <= 64 else None
    if match is None:
        raise DockerfileError(f"{shown(text)} is not a duration", hint="write `30s`, `1m30s`, `500ms`")
    if match.group(2) == "0":
        return 0
    total = 0
    for whole, fraction, unit in _DURATION_PART.findall(match.group(2)):
        if not whole and not fraction:
            raise DockerfileError(f"{shown(text)} is not a duration", hint="write `30s`, `1m30s`, `500ms`")
        scale = _UNIT_NS[unit]
        total += int(whole or "0") * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
    if total > _MAX_DURATION_NS:
        raise DockerfileError(f"the duration {shown(text)} is too long")
    return -total if match.group(1) == "-" else total


def parse_size_bytes(text: str) -> int:
    """Bytes of a size such as `64m` or `1.5GiB`; all units count in 1024 (the grammar of Docker's RAMInBytes)."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise DockerfileError(f"{shown(text)} is not a size", hint="write `64m` or `1g`")
    number = float(match.group(1)) * (1 << _SIZE_UNITS[match.group(2).lower()])
    if number >= 2**63:
        raise DockerfileError(f"the size {shown(text)} is too large")
    return int(number)


def parse_boolean(text: str) -> bool:
    """A boolean as Go's strconv.ParseBool takes it."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise DockerfileError(f"{shown(text)} is not true or false")


def parse_signal(text: str) -> int:
    """The number of a signal: a number, or a name with or without `SIG`, `RTMIN+n` and `RTMAX-n` included."""
    name = text.upper().removeprefix("SIG")
    if text.isascii() and text.isdecimal() and len(text) <= 3:
        number = int(text)
    elif name in SIGNALS:
        number = SIGNALS[name]
    else:
        realtime = re.fullmatch(r"RTMIN(?:\+([0-9]{1,2}))?|RTMAX(?:-([0-9]{1,2}))?", name)
        if realtime is None:
            raise DockerfileError(f"{shown(text)} is not a signal", hint="write `SIGTERM`, `TERM` or `15`")
        if name.startswith("RTMIN"):
            number = _REALTIME_MIN + int(realtime.group(1) or "0")
        else:
            number = _REALTIME_MAX - int(realtime.group(2) or "0")
        if not _REALTIME_MIN <= number <= _REALTIME_MAX:
            number = 0
    if not 1 <= number <= _REALTIME_MAX:
        raise DockerfileError(f"{shown(text)} is not a signal", hint="write `SIGTERM`, `TERM` or `15`")
    return number


def parse_ports(specs: Iterable[str]) -> tuple[str, ...]:
    """The ports of EXPOSE as `port/protocol`, ranges unrolled. An address and a host port are checked, then dropped."""
    ports: list[str] = []
    for spec in specs:
        ports.extend(_parse_port(spec))
    return tuple(dict.fromkeys(ports))


def _parse_port(spec: str) -> list[str]:
    address, host, container = _split_port(spec)
    container, _, protocol = container.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise DockerfileError(
            f"the port {shown(spec)} has the unknown protocol {shown(protocol)}", hint="tcp, udp or sctp"
        )
    if address:
        try:
            ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise DockerfileError(f"the port {shown(spec)} has the invalid address {shown(address)}") from None
    start, end = _parse_port_range(spec, container)
    if host:
        host_start, host_end = _parse_port_range(spec, host)
        if host_end - host_start != end - start and end != start:
            raise DockerfileError(f"the port {shown(spec)} has ranges of different lengths")
    return [f"{port}/{protocol}" for port in range(start, end + 1)]


def _split_port(spec: str) -> tuple[str, str, str]:
    parts = spec.split(":")
    if len(parts) == 1:
        return "", "", parts[0]
    return ":".join(parts[:-2]), parts[-2], parts[-1]


def _parse_port_range(spec: str, text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers: list[int] = []
    for part in (first, last) if dash else (first,):
        if not (part.isascii() and part.isdecimal() and len(part) <= 5 and int(part) <= 65535):
            raise DockerfileError(f"{shown(spec)} is not a port", hint="write `80`, `80/udp` or `8000-8010`")
        numbers.append(int(part))
    if numbers[-1] < numbers[0]:
        raise DockerfileError(f"the port range {shown(spec)} ends before it starts")
    return numbers[0], numbers[-1]
