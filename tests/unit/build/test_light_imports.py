"""A build whose steps all hit imports what it needs and no more: at most a few hundredths of a second go into imports.

Read from the files: what is imported when a module is, not what its functions import when they are called.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import firebuild

PACKAGE = Path(firebuild.__file__).parent

# What a cached build imports by itself, with what its functions import on the way.
ROOTS = (
    "firebuild.cli.entry", "firebuild.cli.main", "firebuild.cli.commands.rootfs", "firebuild.cli.lending",
    "firebuild.cli.options", "firebuild.cli.renderers.rawjson", "firebuild.engine.builds", "firebuild.engine.report",
    "firebuild.engine.proxies", "firebuild.engine.views", "firebuild.machine.reconcile", "firebuild.machine.services",
    "firebuild.machine.state", "firebuild.network.conflist", "firebuild.build.sources.scratch",
    "firebuild.build.sources.httpcache", "firebuild.store.blobs", "firebuild.store.caches", "firebuild.store.database",
    "firebuild.store.disks", "firebuild.store.images", "firebuild.store.leases", "firebuild.store.provider",
)  # fmt: skip
# What machines, registries, fetches and people at a terminal need.
OURS = (
    "firebuild.build.agents", "firebuild.build.copytar", "firebuild.build.debug.debugger",
    "firebuild.build.debug.shells", "firebuild.build.sources.archive", "firebuild.build.sources.git",
    "firebuild.build.sources.http", "firebuild.build.sources.streams", "firebuild.build.sources.tartree",
    "firebuild.cli.terminal", "firebuild.engine.disks", "firebuild.engine.docker_image", "firebuild.engine.images",
    "firebuild.guest.build", "firebuild.guest.stream", "firebuild.host.process", "firebuild.images", "firebuild.kernels",
    "firebuild.machine.lifecycle", "firebuild.network.attach", "firebuild.store.disk_check", "firebuild.vmm",
)  # fmt: skip
THEIRS = (
    "dataclasses", "difflib", "email", "http", "json", "logging", "pyroute2", "rich", "shutil", "socket", "ssl",
    "subprocess", "tarfile", "tempfile",
)  # fmt: skip


def find_file(name: str) -> Path | None:
    """The file of a module of the package."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def list_imports(body: list[ast.stmt]) -> Iterator[str]:
    """The modules that these statements import when the module is imported."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef) and not is_for_types_only(node):
            yield from list_imports(node.body)


def is_for_types_only(node: ast.stmt) -> bool:
    """Whether it is an `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def find_all(roots: tuple[str, ...]) -> dict[str, str]:
    """Every module that comes with `roots`, with what imports it; of others than firebuild's only those named."""
    found = dict.fromkeys(roots, "itself")
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        file = find_file(name)
        if file is None:
            continue
        parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        for imported in (*parents, *list_imports(ast.parse(file.read_text()).body)):
            is_ours = imported.startswith("firebuild.") and find_file(imported) is not None
            if imported not in found and (is_ours or not imported.startswith("firebuild")):
                found[imported] = name
                waiting.append(imported)
    return found


def test_a_cached_build_imports_no_more_than_it_needs() -> None:
    found = find_all(ROOTS)
    assert all(find_file(name) for name in (*ROOTS, *OURS)), "a module has gone: name its successor"
    assert "firebuild.build.executor" in found and "msgspec" in found
    heavy = {name: by for name, by in found.items() if name in OURS or name.partition(".")[0] in THEIRS}
    assert not heavy


def test_what_a_boot_needs_is_found_where_it_is_imported() -> None:
    found = find_all(("firebuild.engine.disks",))
    assert found["firebuild.machine.lifecycle"] == "firebuild.machine.build_machine"
    assert "subprocess" in found
