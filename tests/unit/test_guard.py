"""The guard of the unit tests refuses what it is there to refuse."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from tests.support.guard import GuardError


def test_a_program_is_refused() -> None:
    with pytest.raises(GuardError, match="starting a program"):
        subprocess.run(["true"])


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_network_is_refused(family: socket.AddressFamily) -> None:
    with socket.socket(family) as client, pytest.raises(GuardError, match="network"):
        client.connect(("::1" if family == socket.AF_INET6 else "127.0.0.1", 9))


def test_a_unix_socket_pair_is_not_refused() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"x")
        assert right.recv(1) == b"x"


@pytest.mark.parametrize("call", [lambda: os.chroot("/"), lambda: os.setuid(0), lambda: os.fork()])
def test_privileges_and_children_are_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(GuardError, match="tests/functional"):
        call()
