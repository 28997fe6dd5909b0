"""What a unit test may not do, refused in the process itself: start programs, reach a network, use root's privileges."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import Any, NoReturn

import pytest

_PRIVILEGED = ("chroot", "mknod", "setuid", "setgid", "setgroups", "setresuid", "setresgid", "setns", "unshare")
_STARTING = ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen", "execv", "execve")
_REFUSED_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET)


class GuardError(BaseException):
    """A unit test left its room. Not an Exception, so that no handler in the code under test can swallow it."""


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse all of it until the monkeypatch is undone."""
    monkeypatch.setattr(subprocess.Popen, "__init__", _refuse("starting a program"))
    for name in _STARTING:
        monkeypatch.setattr(os, name, _refuse(f"os.{name}"))
    for name in _PRIVILEGED:
        if hasattr(os, name):  # setns and unshare came with Python 3.12
            monkeypatch.setattr(os, name, _refuse(f"os.{name}"))
    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, _refuse_network(name))


def _refuse(what: str) -> Any:
    def refused(*arguments: object, **options: object) -> NoReturn:
        raise GuardError(f"a unit test may not use {what}: move the test to tests/functional")

    return refused


def _refuse_network(name: str) -> Any:
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in _REFUSED_FAMILIES:
            raise GuardError(
                f"a unit test may not use a network ({name} {address!r}): move the test to tests/functional"
            )
        return original(self, address)

    return guarded
