"""Moving whole images between the store and registries, layouts, archives and Docker, with skopeo(1)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from firebuild.errors import ImageError, RegistryError, UsageError
from firebuild.images import skopeo
from firebuild.images.archive import check_blob
from firebuild.images.arrival import DOCKER_FORMAT, KEEP_PLAIN, adopt_layout, check_manifest, plan_format
from firebuild.images.blobs import BlobSink
from firebuild.images.ocilayout import Compression, MovedImage, parse_manifest, stage_image
from firebuild.images.skopeo import Access, platform_options, registry_name
from firebuild.names import Digest, Reference, parse_reference

D = TypeVar("D")
# Bytes done, and bytes in all where that is known.
Progress = Callable[[int, int | None], None]

TRANSPORTS = ("docker", "oci", "oci-archive", "docker-archive", "docker-daemon")
_DOCKER_HOST = "unix:///var/run/docker.sock"
_WITHOUT_MANIFEST = ("docker-archive", "docker-daemon")


class Place(msgspec.Struct, frozen=True):
    """Where an image is or goes. `transport`: one of TRANSPORTS; `reference`: of a registry or daemon; `path`: of a layout
    or archive, `name`: the image in it."""

    transport: str
    reference: Reference | None = None
    path: Path | None = None
    name: str = ""

    def __str__(self) -> str:
        if self.transport == "docker":
            return str(self.reference)
        return f"{self.transport}:{self.reference.familiar if self.reference else self.path}{':' if self.name else ''}{self.name}"


def parse_place(text: str) -> Place:
    """`[docker://]REFERENCE`, `docker-daemon:REFERENCE`, `oci:PATH[:NAME]`, `oci-archive:PATH[:NAME]` or
    `docker-archive:PATH[:NAME]`. Raises UsageError."""
    transport, colon, rest = text.partition(":")
    if not colon or transport not in TRANSPORTS:
        return Place("docker", parse_reference(text))
    if transport == "docker":
        if not rest.startswith("//"):
            return Place("docker", parse_reference(text))
        return Place("docker", parse_reference(rest[2:]))
    if transport == "docker-daemon":
        return Place(transport, parse_reference(rest))
    path, _, name = rest.partition(":")
    if not path or "," in rest or "\0" in rest:
        raise UsageError(f"`{text[:200]}` names no file", hint=f"write `{transport}:PATH` or `{transport}:PATH:NAME`")
    return Place(transport, path=Path(path), name=name)


def pull(
    place: Reference | Place,
    blobs: BlobSink[D],
    *,
    architecture: str = "amd64",
    variant: str | None = None,
    access: Access = Access(),  # noqa: B008 - immutable
    progress: Progress | None = None,
) -> MovedImage[D]:
    """Bring an image into the store; the caller names it. Its configuration, and where there is one its manifest, stay as
    they are, byte for byte: id and digest are what Docker and the registry call them.

    Credentials, mirrors and certificates are those of skopeo's own files (containers-registries.conf(5),
    containers-auth.json(5)). Raises RegistryError, ImageError, DiskFullError, DeadlineError, MissingProgramError; nothing
    remains then but blobs that nothing names.
    """
    source = Place("docker", place) if isinstance(place, Reference) else place
    subject = f"the image `{source}`"
    domain = source.reference.domain if source.transport == "docker" and source.reference else ""
    without_manifest = source.transport in _WITHOUT_MANIFEST
    kept: tuple[str, ...] = DOCKER_FORMAT
    if not without_manifest:
        raw = skopeo.get_raw_manifest(_skopeo_name(source), access, subject, domain=domain)
        _check_listed(check_manifest(raw, subject, architecture), source, access, subject)
        kept = plan_format(raw, architecture)
    flags = ["--retry-times", str(access.retries), KEEP_PLAIN, *kept]
    flags += _side_flags(source, access, "src-")
    with blobs.stage_folder() as stage:
        target = stage / "oci"
        watch = (lambda _: progress(folder_bytes(target), None)) if progress else None
        skopeo.copy(
            _skopeo_name(source), f"oci:{target}", subject, stage, options=platform_options(architecture, variant),
            flags=flags, timeout_s=access.timeout_s, tick=watch,
        )  # fmt: skip
        return adopt_layout(target, blobs, subject, own_manifest=without_manifest)


def _side_flags(place: Place, access: Access, side: str) -> list[str]:
    """How skopeo reaches a registry or a Docker. It has a flag for what Docker's own programs take from DOCKER_HOST."""
    if place.transport == "docker" and place.reference:
        return access.flags(place.reference.domain, side)
    if place.transport != "docker-daemon":
        return []
    host = os.environ.get("DOCKER_HOST") or _DOCKER_HOST
    if host.startswith("unix://") and not Path(host.removeprefix("unix://")).is_socket():
        # skopeo's own word for it is "io: read/write on closed pipe".
        raise RegistryError(
            f"there is no Docker at `{host}` for the image `{place}`",
            reason="unreachable",
            hint="start dockerd, or say with DOCKER_HOST where it listens",
        )
    return [f"--{side}daemon-host", host]


def _check_listed(digests: list[Digest], source: Place, access: Access, subject: str) -> None:
    """Refuse an index's manifest that is beyond the limits before skopeo asks the registry for each thing that it names. What
    another answer brings in later is checked when it is here."""
    if source.transport == "docker" and source.reference:
        for digest in digests:
            name = "docker://" + registry_name(Reference(source.reference.domain, source.reference.path, None, digest))
            raw = skopeo.get_raw_manifest(name, access, subject, domain=source.reference.domain)
            parse_manifest(raw, subject)


def push(
    manifest_digest: Digest,
    blobs: BlobSink[Any],
    target: Place,
    *,
    compression: Compression = "gzip",
    access: Access = Access(),  # noqa: B008 - immutable
    progress: Progress | None = None,
) -> Digest:
    """Write an image of the store elsewhere; returns the digest of the manifest that is there now.

    Raises RegistryError, ImageError, DiskFullError, DeadlineError, MissingProgramError.
    """
    subject = f"the image `{target}`"
    flags = ["--retry-times", str(access.retries)]
    if target.transport in ("docker", "oci"):
        flags.append("--preserve-digests")
    flags += _side_flags(target, access, "dest-")
    with blobs.stage_folder() as stage:
        plain = "plain" if target.transport == "docker-daemon" else compression
        told = (lambda done: progress(done, None)) if progress else None
        oci = target.transport in ("oci", "oci-archive")
        layout, digest = stage_image(stage, blobs, manifest_digest, compression=plain, oci=oci, progress=told)
        total = folder_bytes(layout)
        watch = (lambda pid: progress(min(read_bytes(pid), total), total)) if progress else None
        try:
            skopeo.copy(
                f"oci:{layout}", _skopeo_name(target), subject, stage,
                flags=flags, timeout_s=access.timeout_s, tick=watch,
            )  # fmt: skip
        except RegistryError as error:
            if error.reason == "damaged":
                # Of what is read here the store is the only source.
                for path in (layout / "blobs" / "sha256").iterdir():
                    check_blob(path)
            raise
        return digest


def load_docker_archive(
    path: Path,
    blobs: BlobSink[D],
    selector: str,
    *,
    subject: str,
    architecture: str,
    progress: Progress | None = None,
) -> MovedImage[D]:
    """Take one image of a Docker archive in. `selector`: how skopeo picks it, `:@0`. Raises as `pull`."""
    if ":" in os.fspath(path) or "," in os.fspath(path):
        raise ImageError(f"{subject} cannot be read: skopeo takes no `:` and no `,` in a path")
    with blobs.stage_folder() as stage:
        target = stage / "oci"
        watch = (lambda _: progress(folder_bytes(target), None)) if progress else None
        skopeo.copy(
            f"docker-archive:{path.absolute()}{selector}", f"oci:{target}", subject, stage,
            options=platform_options(architecture), flags=[KEEP_PLAIN, *DOCKER_FORMAT], tick=watch,
        )  # fmt: skip
        return adopt_layout(target, blobs, subject, own_manifest=True)


def _skopeo_name(place: Place) -> str:
    if place.transport == "docker":
        assert place.reference is not None
        return "docker://" + registry_name(place.reference)
    if place.transport == "docker-daemon":
        assert place.reference is not None
        return f"docker-daemon:{place.reference.full}"
    assert place.path is not None
    return f"{place.transport}:{place.path.absolute()}" + (f":{place.name}" if place.name else "")


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder, through links; files that vanish meanwhile do not count."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def read_bytes(pid: int) -> int:
    """How many bytes a process has read so far (proc_pid_io(5)); 0 where that cannot be known."""
    try:
        with open(f"/proc/{pid}/io") as file:
            return int(file.readline().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
