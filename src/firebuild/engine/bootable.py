"""Use cases of images with their disk and kernel beside them in a registry: pushed so, and run without a build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from firebuild.engine.core import Engine
from firebuild.engine.disk_keys import find_root_disk, root_disk_key
from firebuild.engine.disks import ensure_root_disk
from firebuild.engine.image_export import push_image
from firebuild.engine.images import pull_image
from firebuild.engine.space import SPARE_BYTES
from firebuild.errors import ConflictError, FirebuildError, ImageError, KernelError, NotFoundError, UsageError
from firebuild.host.files import require_free
from firebuild.images.bootable import (
    BUILD_CONFIG_TYPE,
    DISK_TYPE,
    KERNEL_TYPE,
    KEY_ANNOTATION,
    MODULES_TYPE,
    VMLINUX_TYPE,
    Artifact,
    KernelConfig,
    Subject,
    load_disk_config,
    load_kernel_config,
    load_kernel_parts,
    pack_disk,
    pack_kernel,
    unpack_disk,
)
from firebuild.images.ocilayout import MANIFEST_TYPE, Compression
from firebuild.images.referrers import fetch_artifact, find_artifact, push_artifacts
from firebuild.images.skopeo import Access, find_raw_manifest
from firebuild.images.transfer import Place, Progress
from firebuild.kernels.fetch import adopt_kernel
from firebuild.names import Digest, Reference, parse_object_name, parse_reference
from firebuild.store.disk_check import check_disk
from firebuild.store.disks import Disk
from firebuild.store.images import Image

if TYPE_CHECKING:
    from firebuild.kernels.store import Kernel

T = TypeVar("T")
Report = Callable[[str], None]
PULL_POLICIES = ("missing", "always", "never")
_SPARE_BYTES = 256 << 20


def push_bootable(
    engine: Engine,
    name: str,
    target: Place | None,
    *,
    disk: bool,
    kernel: str | None,
    compression: Compression,
    access: Access,
    progress: Progress | None = None,
    report: Report = lambda _: None,
) -> Digest:
    """Push an image, and with it its disk and a kernel (by name; empty: the default one); the image's digest there.

    The disk is made first if it is missing. Raises UsageError where the target is no registry, and what push_image raises.
    """
    if target is not None and target.transport != "docker" and (disk or kernel is not None):
        raise UsageError(f"`{target}` is no registry: only there can a disk or a kernel stand beside an image")
    # Held to the end: of an image that loses its name meanwhile nothing goes before all of it is there.
    with engine.use_store():
        image = engine.keep_image(lambda: engine.images.get_named(name))
        root = ensure_root_disk(engine, image, report, progress=progress) if disk else None
        chosen = None
        if kernel is not None:
            chosen = engine.kernels.get(parse_object_name("kernel", kernel)) if kernel else engine.kernels.default()
        _, digest = push_image(engine, name, target, compression=compression, access=access, progress=progress)
        if root is not None or chosen is not None:
            reference = target.reference if target and target.reference else parse_reference(image.reference or name)
            _push_parts(engine, image, root, chosen, reference, digest, access, progress)
    return digest


def _push_parts(
    engine: Engine,
    image: Image,
    root: Disk | None,
    kernel: Kernel | None,
    reference: Reference,
    digest: Digest,
    access: Access,
    progress: Progress | None,
) -> None:
    """Put a disk and a kernel beside the image that has this digest in its registry. Raises DiskFullError before it packs them
    where there may not be room: skopeo pushes what is whole, so that all of it stands here once more, compressed."""
    needed = root.path.stat().st_blocks * 512 if root else 0
    needed += sum(path.stat().st_size for path in (kernel.path, kernel.modules) if path) if kernel else 0
    require_free(engine.layout.state, needed + SPARE_BYTES, f"packing what belongs to {reference}")
    with engine.blobs.stage_folder() as stage:
        size = _manifest_size(reference, digest, access)
        subject = Subject(image.manifest.media_type or MANIFEST_TYPE, digest, size)
        layout = stage / "artifacts"
        (layout / "blobs" / "sha256").mkdir(parents=True)
        artifacts: list[Artifact] = []
        if root is not None:
            facts = {"key": root.key, "chain_id": root.chain_id, "parameters": root.parameters}
            artifacts.append(pack_disk(root.path, facts, subject, layout, progress))
        if kernel is not None:
            config = KernelConfig(kernel.name, kernel.version, kernel.architecture, kernel.digest)
            artifacts.append(pack_kernel(config, kernel.path, kernel.modules, kernel.config, subject, layout))
        push_artifacts(layout, artifacts, reference, digest, stage, access=access, progress=progress)


def _manifest_size(reference: Reference, digest: Digest, access: Access) -> int:
    name = Reference(reference.domain, reference.path, None, digest)
    data = find_raw_manifest(name, access, subject=f"the image `{reference}`")
    if data is None:
        raise ImageError(f"the registry took the image `{reference}` and does not have {digest}")
    return len(data)


def ensure_image(
    engine: Engine,
    name: str,
    *,
    policy: str = "missing",
    access: Access = Access(retries=1),  # noqa: B008 - immutable
    progress: Progress | None = None,
    report: Report = lambda _: None,
) -> Image:
    """The stored image of that name or id; else, or with the policy `always`, the registry's, with its disk and, where this
    host has no kernel yet, its kernel. Raises NotFoundError that says why the registry's could not be had."""
    if policy not in PULL_POLICIES:
        raise UsageError(f"`{policy}` is not a policy of pulling", hint=", ".join(PULL_POLICIES))
    missing: NotFoundError | None = None
    try:
        image = engine.images.get_named(name)
        if policy != "always":
            return image
    except NotFoundError as error:
        missing = error
        if policy == "never" or name.startswith("sha256:") or len(name) == 64:
            raise
    reference = parse_reference(name)
    report(f"pulling {reference}")
    try:
        image = pull_image(engine, reference, access=access, progress=progress)
    except ImageError as error:
        raise NotFoundError(
            f"there is no image `{reference}` here, and it cannot be pulled: {error.message}",
            hint=missing.hint if missing and missing.hint else error.hint,
            details=error.details,
        ) from error
    take_bootable(engine, image, reference, access=access, progress=progress, report=report)
    return image


def take_bootable(
    engine: Engine,
    image: Image,
    reference: Reference,
    *,
    access: Access,
    disk: bool | None = None,
    kernel: bool | None = None,
    progress: Progress | None = None,
    report: Report = lambda _: None,
) -> tuple[Disk | None, Kernel | None]:
    """Take the disk and the kernel that stand beside an image in its registry.

    None, the default, takes what is of use: a disk that fits, unless it is here already, and a kernel if this host has none.
    Of an image that was asked for by digest nothing is taken so, since the digest does not vouch for its disk. What does not
    fit is reported and left; with True it raises ImageError.
    """
    pinned = reference.digest is not None
    taken_disk = taken_kernel = None
    if disk or (disk is None and not pinned and find_root_disk(engine, image.chain_id) is None):
        taken_disk = _try(lambda: _fetch_disk(engine, image, reference, access, progress), bool(disk), report)
        if taken_disk is None and disk:
            raise ImageError(
                f"the registry has no disk of `{reference}`", hint="push it with: firebuild image push --disk"
            )
    if kernel or (kernel is None and not pinned and engine.kernels.find_default() is None):
        taken_kernel = _try(lambda: _fetch_kernel(engine, image, reference, access, progress), bool(kernel), report)
        if taken_kernel is None and kernel:
            raise ImageError(
                f"the registry has no kernel of `{reference}`", hint="push it with: firebuild image push --kernel NAME"
            )
    return taken_disk, taken_kernel


def _try(take: Callable[[], T | None], strict: bool, report: Report) -> T | None:
    try:
        return take()
    except (ImageError, KernelError, ConflictError) as error:
        if strict:
            raise
        report(f"warning: not taken from the registry: {error.message}")
        return None


def _fetch_disk(
    engine: Engine, image: Image, reference: Reference, access: Access, progress: Progress | None
) -> Disk | None:
    name = f"the disk of `{reference}`"
    key, parameters = root_disk_key(engine, image.chain_id)
    size = engine.settings.root_disk_bytes
    with engine.use_store(), engine.blobs.stage_folder() as stage:
        found = find_artifact(reference, image.manifest_digest, DISK_TYPE, access)
        if found is None:
            return None
        digest, manifest = found
        stated = (manifest.annotations or {}).get(KEY_ANNOTATION, "")
        if stated != key:
            raise ImageError(f"{name} does not fit: its key is {stated[:12]}, here it is {key[:12]} ({size} bytes)")
        require_free(engine.layout.state, _SPARE_BYTES, "taking a disk from a registry")
        layout = fetch_artifact(reference, digest, stage, access=access, progress=progress)
        config = load_disk_config(layout, manifest, name)
        if (config.key, config.chain_id, config.parameters) != (key, image.chain_id, parameters):
            raise ImageError(f"{name} does not fit: it says that it was made from {config.chain_id[:19]}")
        if config.size_bytes != size:
            raise ImageError(f"{name} has {config.size_bytes} bytes, not {size}")
        with engine.disks.stage(size, blank=False) as staged:
            unpack_disk(layout, manifest, config, staged.path, name, progress)
            _check(staged.path, name)
            return staged.publish(key, {"chain_id": image.chain_id, "parameters": parameters})


def _check(path: Path, name: str) -> None:
    try:
        check_disk(path)
    except FirebuildError as error:
        raise ImageError(f"{name} is not taken: {error.message}", details=error.details) from error


def _fetch_kernel(
    engine: Engine, image: Image, reference: Reference, access: Access, progress: Progress | None
) -> Kernel | None:
    with engine.use_store(), engine.blobs.stage_folder() as stage:
        found = find_artifact(reference, image.manifest_digest, KERNEL_TYPE, access)
        if found is None:
            return None
        digest, manifest = found
        layout = fetch_artifact(reference, digest, stage, access=access, progress=progress)
        name = f"the kernel of `{reference}`"
        config = load_kernel_config(layout, manifest, name)
        parts = load_kernel_parts(layout, manifest, config, name)
        modules = None
        if MODULES_TYPE in parts:
            modules = stage / "modules.tar"
            modules.write_bytes(parts[MODULES_TYPE])
        return adopt_kernel(
            engine.kernels,
            parse_object_name("kernel", config.name),
            parts[VMLINUX_TYPE],
            modules=modules,
            config_text=parts[BUILD_CONFIG_TYPE].decode("utf-8", "replace") if BUILD_CONFIG_TYPE in parts else None,
            source=f"registry {reference}",
        )
