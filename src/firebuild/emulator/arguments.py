"""The command line: Firecracker's own arguments, and a few of the emulator's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firebuild.emulator.log import LEVELS

DEFAULT_SOCKET = "/run/firecracker.socket"
DEFAULT_ID = "anonymous-instance"
PAYLOAD_MAX = 51200
# Exit codes: Firecracker's FcExitCode.
EXIT_OK = 0
EXIT_GENERIC = 1
EXIT_BAD_CONFIGURATION = 152
EXIT_ARGUMENTS = 153

_VALUES = {
    "api-sock": "Path to unix domain socket used by the API.",
    "id": "MicroVM unique identifier.",
    "config-file": "Path to a file that contains the microVM configuration in JSON format.",
    "metadata": "Path to a file that contains metadata in JSON format to add to the mmds.",
    "log-path": "Path to a fifo or a file for the log; without it the log goes to standard error.",
    "level": "Set the logger level.",
    "module": "Set the logger module filter.",
    "metrics-path": "Path to a fifo or a file used for configuring the metrics on startup.",
    "http-api-max-payload-size": "Http API request payload max size, in bytes.",
    "mmds-size-limit": "Mmds data store limit, in bytes.",
    "start-time-us": "Process start time (wall clock, microseconds); taken for compatibility, not used.",
    "start-time-cpu-us": "Process start CPU time (microseconds); taken for compatibility, not used.",
    "parent-cpu-time-us": "Parent process CPU time (microseconds); taken for compatibility, not used.",
    "qemu-uid": "Emulator only: the user that QEMU runs as, where the emulator is root.",
    "qemu-gid": "Emulator only: the group that QEMU runs as, where the emulator is root.",
}
_FLAGS = {
    "no-api": "Start without an active API socket; needs --config-file.",
    "no-seccomp": "Run QEMU without its seccomp sandbox. Not recommended.",
    "show-level": "Whether or not to output the level in the logs.",
    "show-log-origin": "Whether or not to include the origin of a line in the logs.",
    "version": "Print the binary version number.",
    "help": "Show the help message.",
}
# Firecracker's, with no meaning on QEMU.
_REFUSED = ("boot-timer", "seccomp-filter", "enable-pci", "snapshot-version", "describe-snapshot")
_NUMBERS = (
    "http-api-max-payload-size", "mmds-size-limit", "start-time-us", "start-time-cpu-us", "parent-cpu-time-us",
    "qemu-uid", "qemu-gid",
)  # fmt: skip


class ArgumentError(Exception):
    """A command line that is refused; the text is Firecracker's. `exit_code` as Firecracker's."""

    def __init__(self, message: str, exit_code: int = EXIT_ARGUMENTS) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Arguments:
    """The values and flags that were given."""

    values: dict[str, str]
    flags: frozenset[str]

    def number(self, name: str, default: int) -> int:
        """A number that was given, or the default."""
        return int(self.values[name]) if name in self.values else default


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parse what stands behind the program's name. Raises ArgumentError."""
    words = list(argv[: argv.index("--")] if "--" in argv else argv)
    for name, spellings in (("help", ("--help", "-h")), ("version", ("--version",))):
        if any(word in spellings for word in words):
            return Arguments({}, frozenset({name}))
    values: dict[str, str] = {}
    flags: set[str] = set()
    rest = iter(words)
    for word in rest:
        name = word.removeprefix("--")
        if name in _REFUSED and word != name:
            raise ArgumentError(f"The argument '{name}' is not served by the emulator.")
        if word == name or (name not in _VALUES and name not in _FLAGS):
            raise ArgumentError(f"Found argument '{name}' which wasn't expected, or isn't valid in this context.")
        if name in values or name in flags:
            raise ArgumentError(f"The argument '{name}' was provided more than once.")
        if name in _FLAGS:
            flags.add(name)
            continue
        value = next(rest, "--")
        if value.startswith("--"):
            raise ArgumentError(f"The argument '{name}' requires a value, but none was supplied.")
        values[name] = value
    if "no-api" in flags and "config-file" not in values:
        raise ArgumentError("Argument 'config-file' required, but not found.")
    _check_values(values)
    return Arguments(values, frozenset(flags))


def _check_values(values: dict[str, str]) -> None:
    for name in _NUMBERS:
        text = values.get(name, "0")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise ArgumentError(f"'{name}' parameter expected to be a number.")
    level = values.get("level", "info")
    if level.lower() not in LEVELS:
        raise ArgumentError(
            f"Invalid value for logger level: {level}.Possible values: [Error, Warning, Info, Debug]",
            EXIT_BAD_CONFIGURATION,
        )
    instance_id = values.get("id", DEFAULT_ID)
    if not 1 <= len(instance_id) <= 64:
        raise ArgumentError(
            f"Invalid instance ID: Invalid len ({len(instance_id)});  the length must be between 1 and 64", EXIT_GENERIC
        )
    for position, char in enumerate(instance_id):
        # Firecracker takes any alphanumeric character; the emulator names QEMU so, and keeps to ASCII.
        if not (char == "-" or (char.isascii() and char.isalnum())):
            raise ArgumentError(f"Invalid instance ID: Invalid char ({char}) at position {position}", EXIT_GENERIC)


def help_text() -> str:
    """What --help prints behind the version."""
    lines = [f"  --{name} <{name}>   {text}" for name, text in sorted(_VALUES.items())]
    return "\n".join(
        ["optional arguments:", *lines, *(f"  --{name}   {text}" for name, text in sorted(_FLAGS.items()))]
    )
