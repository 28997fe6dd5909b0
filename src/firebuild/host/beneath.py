"""Opening files below a folder that strangers filled, without ever leaving it: openat2(2)."""

from __future__ import annotations

import ctypes
import errno
import os

from firebuild.errors import HostError

_SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(
    folder_fd: int, path: bytes, flags: int, *, resolve: int = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
) -> int:
    """Open `path` relative to `folder_fd`; the result is below it or an OSError (ELOOP for a link, EXDEV for a way out)."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS)
    descriptor = _libc.syscall(_SYS_OPENAT2, folder_fd, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how))
    if descriptor < 0:
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            raise HostError("this kernel has no openat2(2): Linux 5.6 or newer is needed")
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return int(descriptor)
