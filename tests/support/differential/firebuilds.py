"""firebuild's side of the differential suite: many builds in one build machine, so that a case costs no boot.

Everything else is the product's own path: inputs, parser, planner, cache, the steps in the guest, and the image that is committed.
"""

from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from firebuild.build.build import build_image
from firebuild.build.services import BuildServices
from firebuild.config.settings import load_settings
from firebuild.engine.builds import RootfsRequest, make_build_services, open_build_request
from firebuild.engine.core import Engine
from firebuild.engine.disks import ensure_root_disk, open_machine
from firebuild.engine.images import import_image
from firebuild.events.progress import NullSink, Reporter
from firebuild.guest.build import BuildGuest, LayerCounts, RunSpec, TreeEntry
from firebuild.guest.exec import Output
from firebuild.guest.items import CopyItem
from firebuild.guest.mounts import BindMount
from firebuild.images.compression import load_zstd
from firebuild.names import parse_reference
from firebuild.store.images import Image
from tests.support.differential.case import BASE, Case
from tests.support.differential.tree import Layer, Tree, read_layer


class _LentGuest(BuildGuest):
    """One guest for many builds: each build's layers get a prefix of its own. A disk that is mounted stays mounted."""

    def __init__(self, guest: BuildGuest, prefix: str, mounted: Mapping[str, str]) -> None:
        super().__init__(guest._vsock)
        self._prefix = prefix
        self._mounted = mounted
        self._aliases: dict[str, str] = {}

    def _name(self, layer: str) -> str:
        return self._aliases.get(layer, self._prefix + layer)

    def _stack(self, stack: Sequence[str]) -> list[str]:
        return [self._name(layer) for layer in stack]

    def mount_layer(self, layer: str, drive: str) -> None:
        self._aliases[layer] = self._mounted[drive]

    def apply_layer(self, layer: str, stack: Sequence[str], chunks: Iterable[bytes]) -> LayerCounts:
        return super().apply_layer(self._name(layer), self._stack(stack), chunks)

    def run_layer(
        self, layer: str, stack: Sequence[str], spec: RunSpec, output: Output, *,
        secrets: Sequence[bytes] = (), started: Callable[[], None] = lambda: None,
    ) -> int:  # fmt: skip
        mounts = [
            msgspec.structs.replace(mount, stack=self._stack(mount.stack)) if isinstance(mount, BindMount) else mount
            for mount in spec.mounts
        ]
        spec = msgspec.structs.replace(spec, mounts=mounts)
        return super().run_layer(self._name(layer), self._stack(stack), spec, output, secrets=secrets, started=started)

    def copy_into_layer(
        self, layer: str, stack: Sequence[str], items: Sequence[CopyItem], chunks: Iterable[bytes], **how: Any
    ) -> LayerCounts:
        return super().copy_into_layer(self._name(layer), self._stack(stack), items, chunks, **how)

    def copy_from_stack(
        self, layer: str, stack: Sequence[str], source_stack: Sequence[str], paths: Sequence[str], **how: Any
    ) -> LayerCounts:
        return super().copy_from_stack(self._name(layer), self._stack(stack), self._stack(source_stack), paths, **how)

    def capture_layer(
        self, layer: str, write: Callable[[bytes], object], *, mtime_max_s: int | None = None
    ) -> LayerCounts:
        return super().capture_layer(self._name(layer), write, mtime_max_s=mtime_max_s)

    def drop_layer(self, layer: str) -> None:
        super().drop_layer(self._name(layer))

    def stat(self, stack: Sequence[str], path: str, read_bytes: int = 0, list_entries: int = 0) -> TreeEntry:
        return super().stat(self._stack(stack), path, read_bytes, list_entries)


@dataclass(frozen=True)
class _LentMachine:
    """A build machine as one build sees it."""

    guest: BuildGuest
    base_drives: list[str]
    result_drives: list[str]
    cache_drives: list[str]


class Builder:
    """Builds cases in the one machine that is open. Thread-safe."""

    def __init__(self, engine: Engine, services: BuildServices) -> None:
        self._engine = engine
        self._services = services
        self._layers: dict[str, Layer] = {}

    def build(self, case: Case, context: Path) -> tuple[dict[str, Any], Tree]:
        """The configuration and the tree. Raises FirebuildError."""
        request = RootfsRequest(
            dockerfile=None, context=str(context), tags=[parse_reference(case.tag)], build_args=case.args, target=case.target,
            network="none", no_cache=True,
        )  # fmt: skip
        services = make_build_services(self._engine, request) if case.own_machine else self._services
        reporter = Reporter(NullSink())
        with open_build_request(self._engine, request, reporter) as wanted:
            result = build_image(msgspec.structs.replace(wanted, make_disk=False), services, reporter)
        config: dict[str, Any] = msgspec.to_builtins(result.image.config)
        return config, self._read_tree(result.image)

    def _read_tree(self, image: Image) -> Tree:
        layers = []
        for descriptor, diff_id in zip(image.layers, image.config.rootfs.diff_ids, strict=True):
            if diff_id not in self._layers:
                data = self._engine.blobs.path(descriptor.digest).read_bytes()
                self._layers[diff_id] = read_layer(io.BytesIO(_expand(descriptor.media_type, data)))
            layers.append(self._layers[diff_id])
        return Tree(layers)


def _expand(media_type: str, data: bytes) -> bytes:
    if media_type.endswith("+zstd"):
        expanded: bytes = load_zstd().decompress(data)
        return expanded
    return gzip.decompress(data) if media_type.endswith("gzip") else data


@contextmanager
def open_builder(state: Path, run: Path, base: Path) -> Iterator[Builder]:
    """Import the tarball `base`, boot a build machine with its disk, and build there until the block ends."""
    settings = load_settings({"FIREBUILD_STATE": str(state), "FIREBUILD_RUN": str(run)})[0]
    with ExitStack() as resources:
        engine = resources.enter_context(Engine(settings))
        image = import_image(engine, base, parse_reference(BASE))
        resources.enter_context(engine.use_store())
        disk = ensure_root_disk(engine, image)
        machine = resources.enter_context(
            open_machine(engine, bases=[disk.path], results=[], purpose="comparing with Docker")
        )
        drive = machine.base_drives[0]
        machine.guest.mount_layer("base", drive)
        numbers = itertools.count(1)

        @contextmanager
        def lend(**what: Any) -> Iterator[_LentMachine]:
            assert not what.get("caches") and not what["results"], "such a case needs a machine of its own"
            guest = _LentGuest(machine.guest, f"c{next(numbers)}x", {drive: "base"})
            yield _LentMachine(guest, [drive for _ in what["bases"]], [], [])

        # Images that cases build upon get no disk of their own, which would cost a boot: their layers lie on the base's disk.
        services = msgspec.structs.replace(
            make_build_services(engine, RootfsRequest(None, None, [])), open_build_machine=lend, ensure_disk=lambda _: disk,
            disk_key=lambda _: (disk.key, {}),
        )  # fmt: skip
        yield Builder(engine, services)
