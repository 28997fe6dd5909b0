"""A build machine in memory, and a store around it: what the build's unit tests run against."""

from __future__ import annotations

import io
import itertools
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firebuild.build.build import build_image
from firebuild.build.services import BuildRequest, BuildResult, BuildServices
from firebuild.errors import FirebuildError, GuestError, NotFoundError
from firebuild.events.model import Event, StepCached, StepNote, StepStarted
from firebuild.guest.build import LayerCounts, RunSpec, TreeEntry
from firebuild.guest.items import CopyItem
from firebuild.images.archive import open_layer, open_layer_writer
from firebuild.names import Reference, parse_reference
from firebuild.store.blobs import BlobStore, Descriptor
from firebuild.store.caches import CacheStore, CacheWish
from firebuild.store.database import Database
from firebuild.store.disks import Disk, DiskStore
from firebuild.store.images import Image, ImageConfig, ImageStore, RootFs, RunConfig

Tree = dict[str, bytes | None]  # path without a leading slash → content, None for a folder
Command = Callable[["FakeGuest", Tree, RunSpec, Callable[[str, bytes], None]], int]


def make_tar(tree: Tree) -> bytes:
    """A tar of a tree, deterministic."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(tree):
            content = tree[path]
            info = tarfile.TarInfo(path)
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def read_tar(data: bytes) -> Tree:
    """The tree of a tar; a link's content is its target behind `-> `."""
    tree: Tree = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            if info.isdir():
                tree[info.name] = None
            elif info.issym():
                tree[info.name] = f"-> {info.linkname}".encode()
            else:
                file = archive.extractfile(info)
                tree[info.name] = file.read() if file else f"a node of type {info.type!r}".encode()
    return tree


@dataclass
class FakeShell:
    """A program on a terminal: what was asked for, what it sees, and what it writes into its own layer."""

    spec: RunSpec
    files: Tree
    secrets: list[bytes]
    written: Tree = field(default_factory=dict)


class FakeGuest:
    """Layers are trees. A RUN looks its shell text up in `commands`; others write a file that tells what ran."""

    def __init__(self, commands: dict[str, Command], disks: dict[str, Tree]) -> None:
        self.commands = commands
        self.disks = disks
        self.layers: dict[str, Tree] = {}
        self.ran: list[RunSpec] = []
        self.secrets: list[list[bytes]] = []
        self.copies: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self.applied: list[str] = []
        self.written: list[list[str]] = []
        self.limits: list[int] = []
        self.dead = threading.Event()
        self._lock = threading.Lock()

    def _check(self) -> None:
        if self.dead.is_set():
            raise GuestError("the connection to the guest was lost", guest_code="lost")

    def merged(self, stack: Sequence[str]) -> Tree:
        tree: Tree = {}
        for name in reversed(stack):
            tree.update(self.layers[name])
        return tree

    def mount_layer(self, layer: str, drive: str) -> None:
        self.layers[layer] = self.disks[drive]

    def apply_layer(self, layer: str, stack: Sequence[str], chunks: Iterable[bytes]) -> LayerCounts:
        self._check()
        tree = read_tar(b"".join(chunks))
        with self._lock:
            self.layers[layer] = tree
            self.applied.append(layer)
        return LayerCounts(len(tree), 0)

    def run_layer(
        self,
        layer: str,
        stack: Sequence[str],
        spec: RunSpec,
        output: Callable[[str, bytes], None],
        *,
        secrets: Sequence[bytes] = (),
        started: Callable[[], None] = lambda: None,
    ) -> int:
        self._check()
        with self._lock:
            self.ran.append(spec)
            self.secrets.append(list(secrets))
            number = len(self.ran)
        started()
        tree: Tree = {}
        self.layers[layer] = tree
        command = self.commands.get(spec.argv[-1])
        if command is not None:
            view = self.merged(stack)
            code = command(self, view, spec, output)
            tree.update({path: data for path, data in view.items() if self.merged(stack).get(path, b"?") != data})
        else:
            output("stdout", f"ran {spec.argv[-1]}\n".encode())
            tree[f"ran/{number}"] = " ".join([*spec.argv, *spec.env]).encode()
            code = 0
        self._check()
        return code

    @contextmanager
    def open_run(
        self,
        layer: str,
        stack: Sequence[str],
        spec: RunSpec,
        *,
        secrets: Sequence[bytes] = (),
        started: Callable[[], None] = lambda: None,
    ) -> Iterator[Any]:
        """A program that somebody holds: what it is told and what it sees. The layer stays if the block ends well."""
        self._check()
        started()
        shell = FakeShell(spec, self.merged(stack), list(secrets))
        yield shell
        self._check()
        self.layers[layer] = shell.written

    def copy_into_layer(
        self, layer: str, stack: Sequence[str], items: Sequence[CopyItem], chunks: Iterable[bytes], **options: Any
    ) -> LayerCounts:
        self._check()
        archive = read_tar(b"".join(chunks))
        self.copies.append({"items": list(items), "tar": archive, **options})
        dest = options["dest"].strip("/")
        tree: Tree = {}
        for number, item in enumerate(items):
            for name, content in archive.items():
                first, _, rest = name.partition("/")
                if first != str(number):
                    continue
                if item.kind in ("directory", "archive"):
                    path = f"{dest}/{rest}".strip("/")
                else:
                    path = f"{dest}/{item.name}".strip("/") if options["dest_is_directory"] else dest
                if path:
                    tree[path] = content
        self.layers[layer] = tree
        return LayerCounts(len(tree), 0)

    def copy_from_stack(
        self, layer: str, stack: Sequence[str], source_stack: Sequence[str], paths: Sequence[str], **options: Any
    ) -> LayerCounts:
        self._check()
        source = self.merged(source_stack)
        tree: Tree = {}
        for path in paths:
            wanted = path.strip("/")
            if wanted not in source:
                raise GuestError(f"`{path}` does not exist", guest_code="not-found")
            name = options["dest"].strip("/")
            tree[f"{name}/{Path(wanted).name}" if options["dest_is_directory"] else name] = source[wanted]
        self.layers[layer] = tree
        return LayerCounts(len(tree), 0)

    def capture_layer(
        self, layer: str, write: Callable[[bytes], object], *, mtime_max_s: int | None = None
    ) -> LayerCounts:
        self._check()
        self.limits += [] if mtime_max_s is None else [mtime_max_s]
        data = make_tar(self.layers[layer])
        for start in range(0, len(data), 1000):
            write(data[start : start + 1000])
        return LayerCounts(len(self.layers[layer]), len(data))

    def drop_layer(self, layer: str) -> None:
        self._check()
        self.dropped.append(layer)
        self.layers.pop(layer, None)

    def merge_disk(self, stack: Sequence[str], drive: str) -> LayerCounts:
        self._check()
        self.written.append(list(stack))
        self.disks[drive].update(self.merged(stack))
        return LayerCounts(0, 0)

    def stat(self, stack: Sequence[str], path: str, read_bytes: int = 0, list_entries: int = 0) -> TreeEntry:
        self._check()
        tree = self.merged(stack)
        wanted = path.strip("/")
        if wanted in tree:
            return TreeEntry("directory" if tree[wanted] is None else "file", mode=0o755)
        return TreeEntry("directory" if any(each.startswith(wanted + "/") for each in tree) else "missing")


@dataclass
class FakeMachine:
    guest: Any
    base_drives: list[str]
    result_drives: list[str]
    cache_drives: list[str]


class FakeCaches(CacheStore):
    """Caches without disks: `attached` holds the names of each machine's."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, root, 1 << 20)
        self.attached: list[list[str]] = []
        self.open = 0

    @contextmanager
    def attach(
        self,
        wishes: Sequence[CacheWish],
        *,
        waiting: Callable[[str], None] = lambda _: None,
        renewed: Callable[[str], None] = lambda _: None,
    ) -> Iterator[list[Path]]:
        self.attached.append([wish.name for wish in wishes])
        self.open += 1
        try:
            yield [self.root / wish.key for wish in wishes]
        finally:
            self.open -= 1


@dataclass
class FakeStaged:
    store: FakeDisks
    path: Path

    def publish(self, key: str, metadata: dict[str, Any]) -> Disk:
        disk = Disk(key, self.path, 0, metadata["chain_id"], None, metadata["parameters"])
        self.store.disks[key] = disk
        return disk


class FakeDisks(DiskStore):
    """Disks without files: `trees` holds what was written to each path."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.disks: dict[str, Disk] = {}
        self.trees: dict[Path, Tree] = {}
        self.staged = 0
        self._numbers = itertools.count()

    def find_disk(self, key: str) -> Disk | None:
        return self.disks.get(key)

    @contextmanager
    def stage(
        self, size_bytes: int, *, label: str = "root", source: Disk | None = None, blank: bool = True
    ) -> Iterator[Any]:
        path = self.root / f"disk{next(self._numbers)}"
        self.trees[path] = dict(self.trees[source.path]) if source is not None else {}
        self.staged += 1
        try:
            yield FakeStaged(self, path)
        finally:
            self.staged -= 1


class Recorder:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def titles(self) -> dict[int, str]:
        return {event.step: event.name for event in self.events if isinstance(event, StepStarted)}

    def cached(self) -> list[str]:
        names = self.titles()
        return [names[event.step] for event in self.events if isinstance(event, StepCached)]

    def notes(self) -> dict[str, str]:
        names = self.titles()
        return {names[event.step]: event.text for event in self.events if isinstance(event, StepNote)}

    def reason(self, part: str) -> str:
        """Why the step whose title contains `part` was rebuilt."""
        return next(text for name, text in self.notes().items() if part in name)


@dataclass
class Workshop:
    """A store below a folder, a fake machine, and `build`."""

    folder: Path
    commands: dict[str, Command] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blobs = BlobStore(self.folder / "store")
        self.blobs.ensure()
        self.images = ImageStore(self.blobs)
        self.disks = FakeDisks(self.folder / "disks")
        self.caches = FakeCaches(self.folder / "caches")
        self.database = Database.open(self.folder / "facts.db")
        self.context = self.folder / "context"
        self.context.mkdir()
        self.boots = 0
        self.open_machines = 0
        self.guests: list[FakeGuest] = []
        self.ensured: list[Image] = []
        self.resolved: list[str] = []
        self.boot_error: BaseException | None = None
        self._time = itertools.count(1_700_000_000_000_000_000, 1_000_000_000)
        self._time_lock = threading.Lock()

    def clock(self) -> int:
        with self._time_lock:
            return next(self._time)

    @property
    def guest(self) -> FakeGuest:
        return self.guests[-1]

    def add_image(self, name: str, tree: Tree, run: RunConfig | None = None, architecture: str = "amd64") -> Image:
        with open_layer_writer(self.blobs, "a test's layer") as writer:
            writer.write(make_tar(tree))
            layer = writer.commit()
        descriptor: Descriptor = layer.descriptor
        config = ImageConfig(
            architecture=architecture, os="linux", created="2026-01-02T03:04:05Z", config=run or RunConfig(),
            rootfs=RootFs(diff_ids=[layer.diff_id]),
        )  # fmt: skip
        return self.images.commit_image(config, [descriptor], [parse_reference(name)])

    def resolve(self, reference: Reference) -> Image:
        self.resolved.append(reference.familiar)
        image = self.images.find_image(reference)
        if image is None:
            raise NotFoundError(f"there is no image `{reference}`")
        return image

    @contextmanager
    def open_machine(
        self, *, bases: Sequence[Path], results: Sequence[Path], purpose: str, caches: Sequence[Path] = ()
    ) -> Iterator[FakeMachine]:
        self.boots += 1
        if self.boot_error is not None:
            raise self.boot_error
        drives = {f"base{n}": self.disks.trees[path] for n, path in enumerate(bases)}
        drives |= {f"result{n}": self.disks.trees[path] for n, path in enumerate(results)}
        guest = FakeGuest(self.commands, drives)
        self.guests.append(guest)
        self.open_machines += 1
        try:
            yield FakeMachine(
                guest,
                [f"base{n}" for n in range(len(bases))],
                [f"result{n}" for n in range(len(results))],
                [f"cache{n}" for n in range(len(caches))],
            )
        finally:
            guest.dead.set()
            self.open_machines -= 1

    def disk_key(self, chain_id: str) -> tuple[str, dict[str, str]]:
        return DiskStore.disk_key(chain_id, {"format": "fake"}), {"format": "fake"}

    def ensure_disk(self, image: Image) -> Disk:
        self.ensured.append(image)
        key, parameters = self.disk_key(image.chain_id)
        path = self.folder / f"made-{len(self.ensured)}"
        tree: Tree = {}
        for descriptor in image.layers:
            with open_layer(self.blobs.path(descriptor.digest), descriptor.media_type) as layer:
                tree.update(read_tar(layer.read()))
        self.disks.trees[path] = tree
        disk = Disk(key, path, 0, image.chain_id, None, parameters)
        self.disks.disks[key] = disk
        return disk

    def services(self) -> BuildServices:
        return BuildServices(
            blobs=self.blobs, images=self.images, disks=self.disks, database=self.database,
            open_build_machine=self.open_machine, resolve_base=self.resolve, ensure_disk=self.ensure_disk,
            disk_key=self.disk_key, disk_size_bytes=1 << 30, check_disk=lambda path: None, clock=self.clock,
            caches=self.caches,
        )  # fmt: skip

    def build(
        self, dockerfile: str, *, tag: str | None = "test/result:1", **options: Any
    ) -> tuple[BuildResult, Recorder]:
        recorder = Recorder()
        request = BuildRequest(
            dockerfile=dockerfile.encode(), context=options.pop("context", self.context),
            tags=[parse_reference(tag)] if tag else [], progress=recorder, **options,
        )  # fmt: skip
        return build_image(request, self.services()), recorder

    def fail(self, dockerfile: str, **options: Any) -> FirebuildError:
        """The error of a build that must fail; nothing may be left of it."""
        try:
            self.build(dockerfile, tag="test/failed:1", **options)
        except FirebuildError as error:
            self.check_nothing_left()
            assert self.images.find_image(parse_reference("test/failed:1")) is None
            return error
        raise AssertionError("the build did not fail")

    def check_nothing_left(self) -> None:
        assert self.open_machines == 0
        assert self.caches.open == 0
        assert self.disks.staged == 0
        assert not list((self.folder / "store" / "ingest").iterdir())
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("stage ")]
