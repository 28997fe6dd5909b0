"""Connecting to sockets in folders that a hostile VMM may write to."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from firebuild.errors import HostError
from firebuild.host.sockets import connect_unix


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_our_own_link_is_followed_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    jail = tmp_path / ("deep" * 20) / ("er" * 20)
    jail.mkdir(parents=True)
    (tmp_path / "api.sock").symlink_to(Path("deep" * 20, "er" * 20, "api.sock"))
    with _listen(tmp_path / "real.sock"):
        (tmp_path / "real.sock").rename(jail / "api.sock")
        assert len(str(jail / "api.sock")) > 107
        with socket.socket(socket.AF_UNIX) as connection:
            connect_unix(connection, tmp_path / "api.sock")
    (jail / "api.sock").unlink()
    with _listen(tmp_path / "somebody-elses.sock"), socket.socket(socket.AF_UNIX) as connection:
        (jail / "api.sock").symlink_to(tmp_path / "somebody-elses.sock")
        with pytest.raises(HostError, match="is not a socket"):
            connect_unix(connection, tmp_path / "api.sock")


def test_no_socket_is_an_os_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection, pytest.raises(FileNotFoundError):
        connect_unix(connection, tmp_path / "none.sock")
