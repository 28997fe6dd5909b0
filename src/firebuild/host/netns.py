"""Named network namespaces, as ip-netns(8) keeps them: made, entered by a thread, removed."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from firebuild.errors import HostError

NETNS_FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MS_REC = 16384
_MS_SHARED = 1 << 20
_MNT_DETACH = 2
# How long an interrupted caller waits for what it started: a few system calls, or a command's own deadline.
_THREAD_S = 30.0
T = TypeVar("T")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _fail(call: str, subject: str) -> HostError:
    number = ctypes.get_errno()
    return HostError(
        f"{call} for the network namespace `{subject}` failed: {os.strerror(number)}", hint="run firebuild as root"
    )


def netns_path(name: str) -> Path:
    """Where a namespace of that name is mounted."""
    return NETNS_FOLDER / name


def create_netns(name: str) -> Path:
    """Make a new named network namespace with its loopback down. Raises HostError; an existing name is an error."""
    libc = _libc()
    path = netns_path(name)
    _prepare_folder(libc)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400))
    except FileExistsError:
        raise HostError(f"the network namespace `{name}` exists already") from None
    except OSError as error:
        raise HostError(f"cannot make `{path}`: {error.strerror}", hint="run firebuild as root") from error

    def make() -> None:
        # unshare(2) moves only this thread; the bind mount keeps the namespace when the thread ends.
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise _fail("unshare", name)
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
        if libc.mount(source, os.fsencode(path), b"none", _MS_BIND, None) != 0:
            raise _fail("mount", name)

    try:
        _in_thread(make)
    except BaseException:
        # An interrupt may come when the mount is made already.
        delete_netns(name)
        raise
    return path


def _prepare_folder(libc: ctypes.CDLL) -> None:
    NETNS_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    target = os.fsencode(NETNS_FOLDER)
    # As `ip netns add` does: the folder is a shared mount, so that other mount namespaces see removals.
    if libc.mount(b"", target, b"none", _MS_SHARED | _MS_REC, None) != 0:
        if ctypes.get_errno() != errno.EINVAL:
            raise _fail("mount", str(NETNS_FOLDER))
        if libc.mount(target, target, b"none", _MS_BIND | _MS_REC, None) != 0:
            raise _fail("mount", str(NETNS_FOLDER))
        if libc.mount(b"", target, b"none", _MS_SHARED | _MS_REC, None) != 0:
            raise _fail("mount", str(NETNS_FOLDER))


def delete_netns(name: str) -> None:
    """Remove a named network namespace; absent is fine. Raises HostError."""
    path = netns_path(name)
    libc = _libc()
    if not path.exists():
        return
    if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise _fail("umount", name)
    path.unlink(missing_ok=True)


def run_in_netns(name: str, function: Callable[[], T]) -> T:
    """Call `function` in a thread that has entered the namespace, and return its result. Raises HostError and what it raises."""
    libc = _libc()
    path = netns_path(name)

    def enter() -> T:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"the network namespace `{name}` cannot be entered: {error.strerror}") from error
        try:
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                raise _fail("setns", name)
        finally:
            os.close(descriptor)
        return function()

    return _in_thread(enter)


def _in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a fresh thread: the namespace that it enters ends with the thread."""
    results: list[T] = []
    failures: list[BaseException] = []

    ended = threading.Event()

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=body, name="netns")
    try:
        thread.start()
        thread.join()
    except BaseException:
        # An interrupt ends our waiting, not the thread: whoever undoes its work must not do so while it goes on.
        if thread.ident is not None:
            ended.wait(_THREAD_S)
        raise
    if failures:
        raise failures[0]
    return results[0]
