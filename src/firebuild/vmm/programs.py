"""Which program is the VMM, and whether it is what it should be: asked before anything of a machine exists."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable

import msgspec

from firebuild.errors import ConfigError, FirebuildError, VmmError
from firebuild.host.process import run
from firebuild.vmm.jailer import Jailed
from firebuild.vmm.versions import Version, check_supported, parse_answer

_ELF = b"\x7fELF"
_ANSWER_TIMEOUT_S = 60.0
# What the emulator says of itself behind the version that it plays.
_EMULATOR = "firecracker-emulator"


class VmmChoice(msgspec.Struct, frozen=True):
    """`program`: one that takes Firecracker's arguments; None: the emulator. `jailed`: where it is started by the jailer."""

    program: str | None = None
    jailed: Jailed | None = None


def choose_vmm(
    binary: str,
    jailer: str,
    *,
    without_jailer: bool,
    ids: tuple[int, int],
    find_installed: Callable[[], tuple[str, str] | None],
) -> VmmChoice:
    """The VMM that settings ask for; without any the installed Firecracker that this host can use, else the emulator.

    `ids`: the first and last user of jailed VMMs. Firecracker is jailed, unless `without_jailer`. Raises ConfigError,
    VmmError for programs that are missing or are not what they should be.
    """
    if not binary:
        if jailer:
            raise ConfigError(
                "--binary-jailer is given, and no --binary-firecracker for it to start",
                hint="give both, or neither for the emulator",
            )
        installed = find_installed()
        if installed is None:
            return VmmChoice()
        binary, jailer = installed
    head = _read_head(binary, "binary-firecracker")
    if jailer and not without_jailer:
        _read_head(jailer, "binary-jailer")
        if head.startswith(b"#!") and _EMULATOR in _ask_text(binary):
            raise ConfigError(
                f"`{binary}` is the emulator, which a jailer cannot start: it needs programs and libraries of the host",
                hint="--without-jailer=true runs it as it is; leave --binary-jailer out, or give Firecracker itself",
            )
        _check_pair(binary, jailer)
        return VmmChoice(binary, Jailed(binary, jailer, ids))
    if head.startswith(_ELF) and not without_jailer and _is_firecracker(binary):
        raise ConfigError(
            f"`{binary}` is Firecracker, and no jailer is given to start it in",
            hint="give one with --binary-jailer; --without-jailer=true starts it as root, for trying things out",
        )
    return VmmChoice(binary)


def find_version(choice: VmmChoice) -> Version | None:
    """The version of the Firecracker that was chosen; None for the emulator. Raises VmmError."""
    return None if choice.program is None else _ask("Firecracker", choice.program)


def _read_head(path: str, key: str) -> bytes:
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError as error:
        raise ConfigError(f"--{key}: `{path}` cannot be read: {error.strerror}") from error
    if not os.access(path, os.X_OK):
        raise ConfigError(f"--{key}: `{path}` cannot be executed", hint=f"chmod +x {path}")
    if head.startswith(_ELF):
        from firebuild.vmm.release import check_program

        check_program(head, path, platform.machine())
    return head


def _check_pair(firecracker: str, jailer: str) -> None:
    version, other = _ask("Firecracker", firecracker), _ask("Jailer", jailer)
    check_supported(version)
    if version != other:
        raise VmmError(
            f"`{jailer}` is the jailer of Firecracker {other}, and `{firecracker}` is Firecracker {version}",
            hint="take both from one release: firebuild firecracker install",
        )
    name = os.path.basename(os.path.realpath(firecracker))
    if "firecracker" not in name:
        # Older jailers refuse it; and it is the name of the jail's folder.
        raise VmmError(f"the program `{firecracker}` is the file `{name}`: the jailer wants `firecracker` in that name")


def _ask(program: str, path: str) -> Version:
    try:
        return parse_answer(
            program, run([path, "--version"], timeout_s=_ANSWER_TIMEOUT_S).stdout.decode("utf-8", "replace")
        )
    except (FirebuildError, OSError) as error:
        raise VmmError(
            f"`{path}` is not {'the' if program == 'Jailer' else 'a'} {program} that works: {error}",
            hint="firebuild firecracker install fetches both",
        ) from error


def _is_firecracker(path: str) -> bool:
    answer = _ask_text(path)
    return answer.startswith("Firecracker v") and _EMULATOR not in answer


def _ask_text(path: str) -> str:
    return run([path, "--version"], timeout_s=_ANSWER_TIMEOUT_S, check=False).stdout.decode("utf-8", "replace")
