"""The kernels that firebuild keeps: a folder each, published whole.

<kernels>/<name>/vmlinux        what the VMM boots, 0444
<kernels>/<name>/modules.tar    the modules a guest needs, in load order; absent if there are none
<kernels>/<name>/config         the kernel's configuration, where it is known
<kernels>/<name>/kernel.json    the record
<kernels>/default               the name of the default kernel
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from firebuild.errors import ConflictError, KernelError, NotFoundError
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, remove_tree, sync_folder, write_atomic
from firebuild.host.locks import hold_lock
from firebuild.kernels.modules import Module, pack_modules
from firebuild.kernels.vmlinux import KernelFile
from firebuild.names import Digest, parse_object_name

_STAGE = ".stage-"
_DEFAULT = "default"


class _Record(msgspec.Struct, omit_defaults=True):
    """kernel.json."""

    name: str
    version: str
    format: str
    architecture: str
    source: str
    digest: Digest
    size_bytes: int
    modules_digest: Digest | None = None
    module_names: list[str] = []
    has_config: bool = False
    warnings: list[str] = []
    created_at_ns: int = 0
    record_version: int = 1


class Kernel(msgspec.Struct, frozen=True):
    """A kernel of the store. `path`: the file to boot; `modules`: the tar of its modules, or None; `version`: as `uname -r`.

    `format`: elf, bzImage or Image; `source`: where it came from; `digest`: of `path`; `warnings`: what it lacks.
    """

    name: str
    path: Path
    modules: Path | None
    config: Path | None
    version: str
    format: str
    architecture: str
    source: str
    digest: Digest
    size_bytes: int
    modules_digest: Digest | None
    module_names: list[str]
    warnings: list[str]
    created_at_ns: int


class KernelStore:
    """The kernels below one folder. Creating the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> Sequence[Kernel]:
        """All kernels, by name. Raises KernelError if one's record is damaged."""
        return [kernel for name in self._names() if (kernel := self.find(name)) is not None]

    def find(self, name: str) -> Kernel | None:
        """The kernel of that name, or None. Raises UsageError for what cannot be a name, KernelError if its record is damaged."""
        folder = self.root / parse_object_name("kernel", name)
        try:
            record = msgspec.json.decode((folder / "kernel.json").read_bytes(), type=_Record)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise _damaged(name, str(error)) from error
        try:
            size = (folder / "vmlinux").stat().st_size
        except OSError as error:
            raise _damaged(name, f"its file cannot be read: {error.strerror}") from error
        if record.name != name or size != record.size_bytes:
            raise _damaged(name, f"its file has {size} bytes, not {record.size_bytes}")
        return Kernel(
            name=name,
            path=folder / "vmlinux",
            modules=folder / "modules.tar" if record.modules_digest else None,
            config=folder / "config" if record.has_config else None,
            version=record.version,
            format=record.format,
            architecture=record.architecture,
            source=record.source,
            digest=record.digest,
            size_bytes=size,
            modules_digest=record.modules_digest,
            module_names=record.module_names,
            warnings=record.warnings,
            created_at_ns=record.created_at_ns,
        )

    def get(self, name: str) -> Kernel:
        """As find; raises NotFoundError with the names that there are."""
        kernel = self.find(name)
        if kernel is None:
            names = self._names()
            hint = f"there are: {', '.join(names[:10])}" if names else "get one with `firebuild kernel pull`"
            raise NotFoundError(f"there is no kernel `{name}`", hint=hint)
        return kernel

    def find_default(self) -> Kernel | None:
        """The kernel that was made the default; else the newest one; None if there is none."""
        try:
            name = (self.root / _DEFAULT).read_text("utf-8").strip()
        except FileNotFoundError:
            name = ""
        except OSError as error:
            raise map_os_error(error, f"reading `{self.root / _DEFAULT}`") from error
        chosen = self.find(name) if name else None
        return chosen or max(self.list(), key=lambda kernel: (kernel.created_at_ns, kernel.name), default=None)

    def default(self) -> Kernel:
        """As find_default; raises NotFoundError."""
        kernel = self.find_default()
        if kernel is None:
            raise NotFoundError("there is no kernel yet", hint="get one with `firebuild kernel pull`")
        return kernel

    def set_default(self, name: str) -> None:
        """Make a kernel the default. Raises NotFoundError."""
        self.get(name)
        write_atomic(self.root / _DEFAULT, name.encode() + b"\n")

    def publish(
        self,
        name: str,
        kernel: KernelFile,
        *,
        source: str,
        modules: Sequence[Module] = (),
        config: str | None = None,
        warnings: Sequence[str] = (),
    ) -> Kernel:
        """Keep a kernel under a name, durable when this returns. The same content under the same name is no conflict.

        Raises ConflictError if the name is taken by another one; DiskFullError, HostError.
        """
        import hashlib

        parse_object_name("kernel", name)
        if name == _DEFAULT:
            raise ConflictError(f"a kernel cannot be named `{_DEFAULT}`")
        packed = pack_modules(modules) if modules else None
        record = _Record(
            name=name,
            version=kernel.version,
            format=kernel.format,
            architecture=kernel.architecture,
            source=source,
            digest=Digest("sha256:" + hashlib.sha256(kernel.content).hexdigest()),
            size_bytes=len(kernel.content),
            modules_digest=Digest("sha256:" + hashlib.sha256(packed).hexdigest()) if packed else None,
            module_names=[module.name for module in modules],
            has_config=config is not None,
            warnings=list(warnings),
            created_at_ns=time.time_ns(),
        )
        with self._lock():
            self._sweep()
            existing = self.find(name)
            if existing is not None:
                if (existing.digest, existing.modules_digest) == (record.digest, record.modules_digest):
                    return existing
                raise ConflictError(
                    f"there is another kernel `{name}` already", hint="choose another name, or remove it first"
                )
            stage = self.root / (_STAGE + secrets.token_hex(8))
            try:
                stage.mkdir(mode=0o711)
                write_atomic(stage / "vmlinux", kernel.content, mode=0o444)
                if packed is not None:
                    write_atomic(stage / "modules.tar", packed, mode=0o444)
                if config is not None:
                    write_atomic(stage / "config", config.encode(), mode=0o444)
                write_atomic(stage / "kernel.json", msgspec.json.encode(record), mode=0o444)
                os.rename(stage, self.root / name)
                sync_folder(self.root)
            except OSError as error:
                raise map_os_error(error, f"storing the kernel `{name}`") from error
            finally:
                remove_tree(stage)
        return self.get(name)

    def remove(self, name: str) -> None:
        """Remove a kernel. Raises NotFoundError."""
        folder = self.root / parse_object_name("kernel", name)
        with self._lock():
            if not folder.is_dir():
                self.get(name)
            doomed = self.root / (_STAGE + secrets.token_hex(8))
            try:
                os.rename(folder, doomed)
                sync_folder(self.root)
            except OSError as error:
                raise map_os_error(error, f"removing the kernel `{name}`") from error
            remove_tree(doomed)

    def verify(self, kernel: Kernel) -> None:
        """Recompute a kernel's digests. Raises KernelError if one differs."""
        import hashlib

        for path, expected in ((kernel.path, kernel.digest), (kernel.modules, kernel.modules_digest)):
            if path is not None and expected is not None:
                with open(path, "rb") as file:
                    found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
                if found != expected:
                    raise _damaged(kernel.name, f"`{path.name}` should be {expected} and is {found}")

    def _names(self) -> Sequence[str]:
        try:
            return sorted(
                entry.name for entry in os.scandir(self.root) if entry.is_dir() and not entry.name.startswith(".")
            )
        except FileNotFoundError:
            return []

    def _lock(self) -> AbstractContextManager[None]:
        deadline = Deadline(60, "waiting for the kernels' lock")
        return hold_lock(self.root / ".lock", f"the kernel folder `{self.root}`", deadline=deadline)

    def _sweep(self) -> None:
        """Remove what killed processes left; only under the lock, so nobody is at work there."""
        for entry in os.scandir(self.root):
            if entry.name.startswith(_STAGE):
                remove_tree(Path(entry.path))


def _damaged(name: str, why: str) -> KernelError:
    return KernelError(
        f"the kernel `{name}` is damaged: {why}", hint=f"`firebuild kernel rm {name}`, then pull or import it again"
    )
