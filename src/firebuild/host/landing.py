"""Writing a tree that a stranger describes below one folder, and nowhere else: no link is followed, no device is made.

Each name is opened relative to the folder above it, never as a path, so that neither a link of the stranger's own nor
one that stood there before leads out. A file appears whole, under its name, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from firebuild.errors import ConflictError, HostError
from firebuild.host.files import map_os_error, require_free

# What is left free for the host's own needs, and after how many bytes and entries it is looked at again.
SPARE_BYTES = 256 << 20
_CHECK_BYTES = 32 << 20
_CHECK_ENTRIES = 2000
_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKED = (errno.ELOOP, errno.ENOTDIR)


class Attributes(msgspec.Struct, frozen=True):
    """Of an entry. `mode`: permission bits, of which those that lend rights (set-user-ID, set-group-ID) are dropped.

    `mtime_s`: Unix time. `owner`: uid and gid to set; None: whoever runs this program."""

    mode: int
    mtime_s: int
    owner: tuple[int, int] | None = None


class _Level(msgspec.Struct):
    name: str
    descriptor: int
    # To be set when everything in it is written; None for a folder that was there before.
    attributes: Attributes | None


class Landing:
    """A folder to write below; a context manager. Paths are relative, clean and without `..`, text with surrogate escapes.

    Methods raise ConflictError where a link or something of another kind stands in the way, DiskFullError, HostError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._levels: list[_Level] = []
        self._bytes = 0
        self._entries = 0
        try:
            self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise map_os_error(error, f"opening `{folder}`") from error

    def __enter__(self) -> Landing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._leave(0)
        finally:
            for level in self._levels:
                os.close(level.descriptor)
            self._levels.clear()
            os.close(self._root)

    def make_folder(self, path: str, attributes: Attributes) -> None:
        """A folder; one that is there stays as it is. The empty path is the folder itself."""
        if not path:
            return
        parent, name = self._enter(path)
        with self._mapped(path):
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                self._push(name, parent, None)
            else:
                self._push(name, parent, attributes)

    def write_file(self, path: str, attributes: Attributes, chunks: Iterable[bytes]) -> None:
        """A file, in place of a file or link of that name. Zeros are left out where they can be: it may be sparse."""
        parent, name = self._enter(path)
        # Independent of `name`, which may have all the bytes that a name can have.
        temporary = f".firebuild-{secrets.token_hex(8)}.part"
        with self._mapped(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
            try:
                try:
                    size = self._write(descriptor, chunks)
                    os.ftruncate(descriptor, size)
                    _finish(descriptor, attributes, attributes.mode & 0o777)
                finally:
                    os.close(descriptor)
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=parent)
                raise

    def make_link(self, path: str, target: str, attributes: Attributes) -> None:
        """A symbolic link, in place of a file or link of that name. It is not followed by anything that is written here."""
        parent, name = self._enter(path)
        temporary = f".firebuild-{secrets.token_hex(8)}.part"
        with self._mapped(path):
            os.symlink(target, temporary, dir_fd=parent)
            try:
                if attributes.owner is not None:
                    os.chown(temporary, *attributes.owner, dir_fd=parent, follow_symlinks=False)
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=parent)
                raise

    def _write(self, descriptor: int, chunks: Iterable[bytes]) -> int:
        offset = 0
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), _BLOCK):
                block = view[start : start + _BLOCK]
                if block != _ZEROS[: len(block)]:
                    self._account(len(block))
                    written = 0
                    while written < len(block):
                        written += os.pwrite(descriptor, block[written:], offset + written)
                offset += len(block)
        return offset

    def _account(self, count: int) -> None:
        before = self._bytes // _CHECK_BYTES
        self._bytes += count
        if self._bytes // _CHECK_BYTES != before:
            self._check_room()

    def _check_room(self) -> None:
        require_free(self._folder, SPARE_BYTES, "what the guest sends")

    def _enter(self, path: str) -> tuple[int, str]:
        """The folder that holds `path`, open, and its name there. Folders that nobody has named are made, 0755."""
        if self._entries % _CHECK_ENTRIES == 0:
            self._check_room()
        self._entries += 1
        *parents, name = path.split("/")
        if name in ("", ".", "..") or any(part in ("", ".", "..") for part in parents):
            raise HostError(f"`{path[:200]}` is not a name below `{self._folder}`")
        same = 0
        while same < min(len(parents), len(self._levels)) and self._levels[same].name == parents[same]:
            same += 1
        self._leave(same)
        for part in parents[same:]:
            above = self._levels[-1].descriptor if self._levels else self._root
            with self._mapped(path):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=above)
                self._push(part, above, None)
        return (self._levels[-1].descriptor if self._levels else self._root), name

    def _push(self, name: str, parent: int, attributes: Attributes | None) -> None:
        self._levels.append(_Level(name, os.open(name, _FOLDER_FLAGS, dir_fd=parent), attributes))

    def _leave(self, depth: int) -> None:
        """Finish the folders below that depth: nothing more comes into them."""
        while len(self._levels) > depth:
            level = self._levels.pop()
            try:
                if level.attributes is not None:
                    # A sticky bit lends nobody rights.
                    _finish(level.descriptor, level.attributes, level.attributes.mode & 0o1777)
            except OSError as error:
                raise map_os_error(error, f"finishing the folder `{level.name}`") from error
            finally:
                os.close(level.descriptor)

    @contextlib.contextmanager
    def _mapped(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shown = f"`{path}` below `{self._folder}`"
            if error.errno in _LINKED:
                raise ConflictError(
                    f"cannot write {shown}: a link or a file stands where a folder must be",
                    hint="links are not followed there: what comes from a guest must not lead out of the folder",
                ) from error
            if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise ConflictError(f"cannot write {shown}: a folder of that name is there") from error
            raise map_os_error(error, f"writing {shown}") from error


def _finish(descriptor: int, attributes: Attributes, mode: int) -> None:
    if attributes.owner is not None:
        os.fchown(descriptor, *attributes.owner)
    os.fchmod(descriptor, mode)
    os.utime(descriptor, (attributes.mtime_s, attributes.mtime_s))
