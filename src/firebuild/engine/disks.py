"""From an image to the bootable disk derived from it, and to its whole tree, in a build machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from firebuild.config.settings import split_words
from firebuild.engine.disk_keys import NO_WISH, MachineWish, root_disk_key
from firebuild.engine.kernels import get_boot
from firebuild.engine.layers import load_layer_sizes
from firebuild.errors import BusyError, GuestError
from firebuild.host.deadline import Deadline
from firebuild.host.files import require_free
from firebuild.host.locks import hold_lock
from firebuild.images.archive import open_layer
from firebuild.machine.build_machine import BuildMachine, BuildMachineSize, open_build_machine
from firebuild.machine.spec import BUILD_KERNEL_ARGS
from firebuild.store.disk_check import check_disk

if TYPE_CHECKING:
    from firebuild.engine.core import Engine
    from firebuild.images.transfer import Progress
    from firebuild.names import Digest
    from firebuild.store.disks import Disk
    from firebuild.store.images import Image

_SPARE_BYTES = 512 << 20
# How long a disk may take that somebody else makes: large images, on slow machines.
_WAIT_S = 3600.0


@contextmanager
def open_machine(
    engine: Engine, *, bases: Sequence[Path], results: Sequence[Path], purpose: str, caches: Sequence[Path] = (),
    network: bool = False, wish: MachineWish = NO_WISH,
) -> Iterator[BuildMachine]:  # fmt: skip
    """A build machine with the sizes that the settings or `wish` give. `network`: whether it gets the build network."""
    settings = engine.settings
    require_free(engine.layout.state, _SPARE_BYTES, purpose)
    kernel, boot = get_boot(engine, wish.kernel)
    size = BuildMachineSize(
        cpus=wish.cpus or settings.build_cpus,
        memory_mib=wish.memory_mib or settings.build_memory_mib,
        network=(wish.network or settings.build_network) if network else None,
        boot_timeout_s=settings.boot_timeout_s,
        work_bytes=wish.disk_bytes or settings.build_disk_bytes,
        allow=split_words(settings.build_allow),
    )
    with open_build_machine(
        engine.machines, boot, size, kernel_name=kernel.name, kernel_args=BUILD_KERNEL_ARGS,
        bases=bases, results=results, caches=caches, purpose=purpose,
    ) as machine:  # fmt: skip
        yield machine


def ensure_root_disk(
    engine: Engine,
    image: Image,
    report: Callable[[str], None] = lambda _: None,
    *,
    progress: Progress | None = None,
    wish: MachineWish = NO_WISH,
) -> Disk:
    """The image's root disk, made in a build machine if it does not exist yet. `report`: told before that starts; `progress`: of
    the plain bytes of layers that the machine has taken, and of all."""
    from firebuild.engine.views import sync_views

    key, parameters = root_disk_key(engine, image.chain_id)
    disk = engine.disks.find_disk(key)
    if disk is not None:
        return disk
    name = image.reference or image.manifest_digest[:19]
    with _hold_disk(engine, key, name, report):
        # Whoever held it before us has made it, or has failed, or was killed.
        disk = engine.disks.find_disk(key)
        if disk is not None:
            return disk
        report(f"making the disk of {name}")
        with engine.disks.stage(engine.settings.root_disk_bytes) as staged:
            with open_machine(
                engine, bases=[], results=[staged.path], purpose="making a root disk", wish=wish
            ) as machine:
                _write_layers(engine, image, machine, progress)
            check_disk(staged.path)
            disk = staged.publish(key, {"chain_id": image.chain_id, "parameters": parameters})
    references = engine.images.list_references()
    sync_views(engine, [name for name, digest in references.items() if digest == image.manifest_digest])
    return disk


@contextmanager
def _hold_disk(engine: Engine, key: str, name: str, report: Callable[[str], None]) -> Iterator[None]:
    """Of many machines that start from a new image at once, one makes its disk; the others wait for it."""
    path = engine.layout.disk_lock(key)
    what = f"the disk of {name}"
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(path, what))
        except BusyError:
            report(f"waiting for the disk of {name}, which another firebuild process is making")
            stack.enter_context(hold_lock(path, what, deadline=Deadline(_WAIT_S, f"waiting for {what}")))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _write_layers(engine: Engine, image: Image, machine: BuildMachine, progress: Progress | None) -> None:
    """Unpack the lowest layer onto the blank disk, the others beside it, and carry those out on it."""
    sizes = load_layer_sizes(engine)
    known = [sizes.get(diff_id) for diff_id in image.config.rootfs.diff_ids]
    total = sum(size for size in known if size is not None) if None not in known else None
    done = 0

    def told(pieces: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal done
        for piece in pieces:
            yield piece
            # Asked for the next one: the guest has room for it, so that most of this one is written.
            done += len(piece)
            if progress:
                progress(done, total)

    guest, drive = machine.guest, machine.result_drives[0]
    stack: list[str] = []
    for number, (descriptor, diff_id) in enumerate(zip(image.layers, image.config.rootfs.diff_ids, strict=True)):
        path = engine.blobs.path(descriptor.digest)
        with (
            _naming(image, descriptor.digest),
            open_layer(path, descriptor.media_type, expected_diff_id=diff_id) as layer,
        ):
            if number == 0:
                guest.apply_disk(drive, told(layer))
                continue
            if not stack:
                # The layers above take what they do not say of a folder from what lies below.
                guest.mount_layer("b0", drive)
                stack.append("b0")
            guest.apply_layer(f"l{number}", stack, told(layer))
            stack.insert(0, f"l{number}")
    if stack:
        guest.drop_layer("b0")
        guest.merge_disk(stack[:-1], drive)


@contextmanager
def _naming(image: Image, layer: Digest) -> Iterator[None]:
    """What the guest refuses of a layer it knows by its entries only; whose they are is known here."""
    try:
        yield
    except GuestError as error:
        if error.guest_code is not None:
            name = image.reference or image.manifest_digest
            error.message = f"the image `{name}` cannot be unpacked: its layer {layer}: {error.message}"
            if error.guest_code == "no-space":
                error.hint = "its disk is too small for it: give FIREBUILD_ROOT_DISK or FIREBUILD_BUILD_DISK more"
        raise


def export_tree(
    engine: Engine,
    image: Image,
    write: Callable[[bytes], object],
    report: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> int:
    """Hand the image's whole tree as a tar to `write`; returns the number of entries. `report`, `progress`: told of a disk that
    is made first."""
    disk = ensure_root_disk(engine, image, report, progress=progress)
    with open_machine(engine, bases=[disk.path], results=[], purpose="exporting an image") as machine:
        machine.guest.mount_layer("b0", machine.base_drives[0])
        return machine.guest.export_tree(["b0"], write).entries
