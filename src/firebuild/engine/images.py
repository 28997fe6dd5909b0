"""Use cases of images: pulled, imported from a tarball, exported as a tree, removed."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from firebuild.engine.core import Engine
from firebuild.engine.disks import export_tree
from firebuild.errors import BusyError, ConflictError
from firebuild.host.files import open_atomic
from firebuild.images.archive import import_layer
from firebuild.images.skopeo import pull
from firebuild.machine.state import ENDED
from firebuild.names import Reference
from firebuild.store.images import History, Image, ImageConfig, RootFs, RunConfig

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def host_architecture() -> str:
    """This host's architecture in OCI's words, `amd64`."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def pull_image(
    engine: Engine,
    reference: Reference,
    *,
    tls_verify: bool | None,
    authfile: Path | None,
    report: Callable[[str], None],
) -> Image:
    """Bring an image from its registry and tag it. Raises ImageError, DiskFullError, DeadlineError, MissingProgramError."""
    with engine.use_store():
        moved = pull(
            reference,
            engine.blobs,
            architecture=host_architecture(),
            tls_verify=tls_verify,
            authfile=authfile,
            progress=report,
        )
        return engine.images.tag(reference, moved.manifest_digest)


def import_image(engine: Engine, file: Path, reference: Reference) -> Image:
    """Make an image of one layer from a tarball of a root file system. Raises ImageError, DiskFullError."""
    with engine.use_store():
        layer = import_layer(file, engine.blobs)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        config = ImageConfig(
            architecture=host_architecture(),
            os="linux",
            created=now,
            config=RunConfig(env=[DEFAULT_PATH], cmd=["/bin/sh"]),
            rootfs=RootFs(diff_ids=[layer.diff_id]),
            history=[History(created=now, created_by=f"firebuild image import {file.name}")],
        )
        return engine.images.commit_image(config, [layer.descriptor], [reference])


def export_image(engine: Engine, name: str, output: Path) -> int:
    """Write an image's whole tree as a tar file, which appears whole or not at all; returns the number of entries."""
    with engine.use_store():
        image = engine.images.get_named(name)
        if output.exists():
            raise ConflictError(f"`{output}` exists already", hint="choose another file, or remove it")
        with open_atomic(output, mode=0o644) as file:
            return export_tree(engine, image, file.write)


def remove_image(engine: Engine, reference: Reference) -> None:
    """Remove a reference. Raises NotFoundError, BusyError while a machine that has not ended was started from it."""
    image = engine.images.get_image(reference)
    for record in engine.machines.records.list_all():
        if record.spec.image_digest == image.manifest_digest and record.state not in ENDED:
            raise BusyError(
                f"the image {reference} is used by the machine {record.spec.name}",
                hint=f"firebuild stop {record.spec.name}",
            )
    engine.images.untag(reference)
