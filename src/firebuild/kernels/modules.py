"""Which modules a guest of a modular kernel needs to reach its root, in load order.

Dependencies are read from the modules themselves (`.modinfo`: `depends`, `softdep`, `alias`): packages are unpacked here, not
installed, so there is no `modules.dep`. What is built in is read from `modules.builtin` and `modules.builtin.modinfo`
(Linux Documentation/kbuild/kbuild.rst).
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from firebuild.errors import KernelError
from firebuild.kernels.compression import uncompress

# In this order, each after what it depends on.
REQUIRED = ("virtio_mmio", "virtio_blk", "virtio_net", "overlay", "ext4")
WANTED = (
    "virtio_console",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "virtio_pci",
    "virtio_balloon",
    "crc32c_generic",
    "crc32c_intel",
    "button",
    "evdev",
)
_ORDER = ("virtio_ring", "virtio", *REQUIRED, *WANTED)
_MODULE_MAX = 64 << 20
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


class Module(msgspec.Struct, frozen=True):
    """A module, uncompressed. `name`: with underscores, as the kernel says it."""

    name: str
    data: bytes


class ModuleSet(msgspec.Struct, frozen=True):
    """`modules` in load order; `missing`: what was asked for and is neither a module nor built in."""

    modules: list[Module]
    missing: list[str]


class ModuleTree:
    """A folder `/lib/modules/<version>`, of our own unpacking or named by the user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, Path] = {}
        self._infos: dict[str, dict[str, list[str]]] = {}
        self._data: dict[str, bytes] = {}
        self._aliases: dict[str, list[str]] | None = None
        for folder, _, names in os.walk(root):
            for file_name in names:
                base, dot, suffix = file_name.partition(".")
                if dot and dot + suffix in _SUFFIXES:
                    self._files.setdefault(_normal(base), Path(folder, file_name))
        self._builtin = self._load_builtin()

    def __len__(self) -> int:
        return len(self._files)

    def has(self, name: str) -> bool:
        """Whether there is such a module."""
        return _normal(name) in self._files

    def is_builtin(self, name: str) -> bool:
        """Whether the kernel has it built in."""
        return _normal(name) in self._builtin

    def read(self, name: str) -> bytes:
        """A module's content, uncompressed. Raises KernelError if it is damaged."""
        name = _normal(name)
        if name not in self._data:
            path = self._files[name]
            try:
                if path.is_symlink() or path.stat().st_size > _MODULE_MAX:
                    raise KernelError(f"the module `{path}` is a link, or too large")
                data = uncompress(path.read_bytes(), f"the module `{path}`", size_max=_MODULE_MAX)
            except OSError as error:
                raise KernelError(f"the module `{path}` cannot be read: {error.strerror}") from error
            self._data[name] = data
        return self._data[name]

    def info(self, name: str) -> dict[str, list[str]]:
        """A module's `.modinfo`: each key with its values."""
        name = _normal(name)
        if name not in self._infos:
            self._infos[name] = parse_modinfo(self.read(name), f"the module `{self._files[name]}`")
        return self._infos[name]

    def resolve(self, name: str) -> list[str]:
        """The modules that a name or an alias means; none if it is built in or unknown."""
        if self.has(name):
            return [_normal(name)]
        if self.is_builtin(name):
            return []
        if self._aliases is None:
            self._aliases = {}
            for module in sorted(self._files):
                for alias in self.info(module).get("alias", []):
                    self._aliases.setdefault(_normal(alias), []).append(module)
        return self._aliases.get(_normal(name), [])

    def _load_builtin(self) -> set[str]:
        names = set()
        listed = self.root / "modules.builtin"
        if listed.is_file():
            for line in listed.read_text("utf-8", "replace").splitlines():
                names.add(_normal(line.rpartition("/")[2].partition(".")[0]))
        described = self.root / "modules.builtin.modinfo"
        if described.is_file():
            for item in described.read_bytes().split(b"\0"):
                _, dot, rest = item.decode("utf-8", "replace").partition(".")
                key, equals, value = rest.partition("=")
                if dot and equals and key in ("alias", "name"):
                    names.add(_normal(value))
        return names


def parse_modinfo(data: bytes, subject: str) -> dict[str, list[str]]:
    """The `.modinfo` section of an ELF64 module: `key=value` texts, each ended by a zero byte. Raises KernelError."""
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            raise KernelError(f"{subject} is not a 64-bit ELF file")
        (table,) = struct.unpack_from("<Q", data, 40)
        entry_size, count, names_index = struct.unpack_from("<HHH", data, 58)
        sections = [struct.unpack_from("<IIQQQQ", data, table + number * entry_size) for number in range(count)]
        names = sections[names_index][4]
        for name_offset, _, _, _, offset, size in sections:
            if data[names + name_offset : names + name_offset + 9] == b".modinfo\0":
                found: dict[str, list[str]] = {}
                for item in data[offset : offset + size].split(b"\0"):
                    key, equals, value = item.decode("utf-8", "replace").partition("=")
                    if equals:
                        found.setdefault(key, []).append(value)
                return found
    except (struct.error, IndexError, OverflowError) as error:
        raise KernelError(f"{subject} is damaged: {error}") from error
    raise KernelError(f"{subject} has no .modinfo section")


def plan_modules(
    tree: ModuleTree, required: Sequence[str] = REQUIRED, wanted: Sequence[str] = WANTED
) -> tuple[list[str], list[str]]:
    """The names of the modules to load, dependencies first, and the required names that are neither there nor built in."""
    order: list[str] = []
    missing: list[str] = []
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in order or name in visiting:
            return
        visiting.add(name)
        info = tree.info(name)
        for dependency in _split(info.get("depends", [])):
            for found in tree.resolve(dependency):
                visit(found)
        before, after = _softdeps(info.get("softdep", []))
        for dependency in before:
            for found in tree.resolve(dependency):
                visit(found)
        order.append(name)
        for dependency in after:
            for found in tree.resolve(dependency):
                visit(found)

    for name in _ORDER if (tuple(required), tuple(wanted)) == (REQUIRED, WANTED) else (*required, *wanted):
        if tree.has(name):
            visit(_normal(name))
        elif name in required and not tree.is_builtin(name):
            missing.append(name)
    return order, missing


def load_modules(tree: ModuleTree, required: Sequence[str] = REQUIRED, wanted: Sequence[str] = WANTED) -> ModuleSet:
    """The closure of the modules that a guest needs, uncompressed, in load order. Raises KernelError for a damaged module."""
    order, missing = plan_modules(tree, required, wanted)
    return ModuleSet([Module(name, tree.read(name)) for name in order], missing)


def pack_modules(modules: Iterable[Module]) -> bytes:
    """A tar of the modules in load order; the same modules give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for module in modules:
            member = tarfile.TarInfo(f"{module.name}.ko")
            member.size = len(module.data)
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(module.data))
    return buffer.getvalue()


def unpack_modules(path: Path) -> list[Module]:
    """Read what pack_modules wrote, into memory. Raises KernelError."""
    modules = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                reader = archive.extractfile(member) if member.isreg() else None
                if reader is None or not member.name.endswith(".ko") or "/" in member.name:
                    raise KernelError(
                        f"the modules `{path}` are damaged: there is a strange entry `{member.name[:80]}`"
                    )
                modules.append(Module(member.name.removesuffix(".ko"), reader.read()))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise KernelError(
            f"the modules `{path}` cannot be read: {error}", hint="pull or import the kernel again"
        ) from error
    return modules


def _normal(name: str) -> str:
    """The kernel takes `-` and `_` in a module's name as the same."""
    return name.replace("-", "_")


def _split(values: Iterable[str]) -> list[str]:
    return [name for value in values for name in value.split(",") if name]


def _softdeps(values: Iterable[str]) -> tuple[list[str], list[str]]:
    before: list[str] = []
    after: list[str] = []
    for value in values:
        target = before
        for word in value.split():
            if word in ("pre:", "post:"):
                target = before if word == "pre:" else after
            else:
                target.append(word)
    return before, after
