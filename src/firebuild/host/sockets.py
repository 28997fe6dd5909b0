"""Connecting to a Unix socket in a folder that others may write to, whatever the length of its path."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from firebuild.errors import HostError


def connect_unix(connection: socket.socket, path: Path) -> None:
    """Connect to the socket at `path`, or at what that is a link to: one link, in a folder that only root writes to.

    A jailed VMM may write to the folder that its sockets are in: what it put there in place of a socket, a link to somebody
    else's socket, is not followed. Raises OSError as connect(2), HostError for what is no socket.
    """
    if path.is_symlink():
        path = path.parent / os.readlink(path)
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise HostError(
                f"`{path}` is not a socket", hint="the machine's VMM put it there: do not trust that machine"
            )
        # A descriptor's path is short; a socket's may have 107 bytes (unix(7)).
        connection.connect(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
