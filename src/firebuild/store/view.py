"""The path view of rootfs images: <rootfs-storage-root>/<org>/<name>/<version>/{rootfs,metadata.json}, derived from the store.

`rootfs` is a symbolic link to the image's derived disk (a hard link would hand out the store's own inode).
`metadata.json` has the keys that firebuild has always had, in CamelCase. `_` stands for Docker's library images.
The view is derived: it can be removed and made again at any time, and nothing reads it back but the user.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import FirebuildError
from firebuild.host.files import map_os_error, sync_folder, write_atomic
from firebuild.names import Reference, parse_reference
from firebuild.store.disks import Disk
from firebuild.store.images import Image


class ImageName(msgspec.Struct, rename="pascal"):
    """`Image`: a reference in the three parts of its path."""

    org: str
    image: str
    version: str


class EntrypointInfo(msgspec.Struct, rename="pascal"):
    """What a machine of this rootfs runs."""

    cmd: list[str]
    entrypoint: list[str]
    env: dict[str, str]
    shell: list[str]
    user: str
    workdir: str


class BuildConfig(msgspec.Struct, rename="pascal"):
    """How it was built. `build_args`: without secrets."""

    build_args: dict[str, str] = {}
    dockerfile: str = ""
    docker_image: str = ""
    docker_image_base: str = ""
    pre_build_commands: list[str] = []
    post_build_commands: list[str] = []


class StepFact(msgspec.Struct, rename="pascal"):
    """One step of a build. `digest`: of its layer; `cached`: whether that was there before; `duration_ms`: of what was run."""

    instruction: str
    digest: str
    cached: bool
    duration_ms: int


class RootfsMetadata(msgspec.Struct, rename="pascal"):
    """metadata.json. `type`: baseos or rootfs; `created_at_utc`: Unix seconds; `parent`: the base's metadata, if known."""

    type: str
    created_at_utc: int = msgspec.field(name="CreatedAtUTC")
    image: ImageName
    tag: str
    labels: dict[str, str]
    ports: list[str]
    volumes: list[str]
    entrypoint_info: EntrypointInfo
    build_config: BuildConfig
    parent: dict[str, Any] | None = None
    manifest_digest: str = ""
    config_digest: str = ""
    chain_id: str = ""
    disk_key: str = ""
    facts_digest: str = ""
    user: str = ""
    environment: dict[str, str] = {}
    stop_signal: str = ""
    architecture: str = ""
    steps: list[StepFact] = []


_EMPTY = RootfsMetadata(
    "", 0, ImageName("", "", ""), "", {}, [], [], EntrypointInfo([], [], {}, [], "", ""), BuildConfig()
)


def split_reference(reference: Reference) -> ImageName | None:
    """The three parts of a reference's path, or None for one without a tag.

    Each part is one safe path component, and no two references share all three: `/` inside an organisation becomes `+`,
    which no reference can hold, and docker.io is written out where its organisation looks like a registry.
    """
    if reference.tag is None:
        return None
    parent, _, name = reference.path.rpartition("/")
    if reference.domain == "docker.io":
        org = "_" if parent == "library" else parent
        first = parent.partition("/")[0]
        if "." in first or first == "localhost":
            org = f"docker.io/{parent}"
    else:
        org = f"{reference.domain}/{parent}" if parent else reference.domain
    return ImageName(org=org.replace("/", "+"), image=name, version=reference.tag)


def view_folder(root: Path, reference: Reference) -> Path | None:
    """Where the view of a reference is, or None for one without a tag."""
    parts = split_reference(reference)
    return root / parts.org / parts.image / parts.version if parts else None


def make_metadata(
    image: Image,
    reference: Reference,
    *,
    kind: str,
    disk: Disk | None = None,
    build: BuildConfig | None = None,
    parent: Mapping[str, Any] | None = None,
    created_at_s: int | None = None,
    steps: Sequence[StepFact] = (),
    facts_digest: str = "",
) -> RootfsMetadata:
    """The metadata of an image under a name. `kind`: baseos or rootfs. `created_at_s`: Unix time; else the image's own."""
    run = image.config.config
    parts = split_reference(reference)
    return RootfsMetadata(
        type=kind,
        created_at_utc=created_at_s if created_at_s is not None else _parse_time(image.created),
        image=parts or ImageName(org="", image=reference.name, version=""),
        tag=reference.familiar,
        labels=dict(sorted(run.labels.items())),
        ports=sorted(run.exposed_ports),
        volumes=sorted(run.volumes),
        entrypoint_info=EntrypointInfo(
            cmd=run.cmd,
            entrypoint=run.entrypoint,
            env=_split_env(run.env),
            shell=run.shell or ["/bin/sh", "-c"],
            user=run.user or "0:0",
            workdir=run.working_dir or "/",
        ),
        build_config=build or BuildConfig(),
        parent=dict(parent) if parent is not None else None,
        manifest_digest=image.manifest_digest,
        config_digest=image.config_digest,
        chain_id=image.chain_id,
        disk_key=disk.key if disk else "",
        facts_digest=facts_digest,
        user=run.user,
        environment=_split_env(run.env),
        stop_signal=run.stop_signal,
        architecture=image.config.architecture,
        steps=list(steps),
    )


def ensure_view(root: Path, reference: Reference, disk: Path | None, metadata: RootfsMetadata) -> Path | None:
    """Bring the view of one name in step: the link first, then the metadata, each replaced whole.

    `disk`: None while there is none: then there is no `rootfs` either. Returns the folder, or None for a reference
    without a tag. Raises DiskFullError, HostError.
    """
    folder = view_folder(root, reference)
    if folder is None:
        return None
    temporary = folder / f".rootfs.{secrets.token_hex(6)}.tmp"
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if disk is None:
            (folder / "rootfs").unlink(missing_ok=True)
        else:
            os.symlink(disk, temporary)
            os.rename(temporary, folder / "rootfs")
        sync_folder(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise map_os_error(error, f"writing the view `{folder}`") from error
    write_atomic(folder / "metadata.json", msgspec.json.format(msgspec.json.encode(metadata), indent=2) + b"\n")
    return folder


def find_metadata(root: Path, reference: Reference) -> RootfsMetadata | None:
    """The metadata of a name's view, or None if there is none or it does not parse: the view is only derived."""
    folder = view_folder(root, reference)
    if folder is None:
        return None
    try:
        return msgspec.json.decode((folder / "metadata.json").read_bytes(), type=RootfsMetadata)
    except (OSError, msgspec.MsgspecError):
        return None


def remove_view(root: Path, reference: Reference) -> None:
    """Remove the view of one name and the folders that are empty then; absent is fine. Raises HostError."""
    folder = view_folder(root, reference)
    if folder is None:
        return
    try:
        for name in ("metadata.json", "rootfs"):
            (folder / name).unlink(missing_ok=True)
        for parent in (folder, folder.parent, folder.parent.parent):
            if not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()
    except OSError as error:
        raise map_os_error(error, f"removing the view `{folder}`") from error


def list_views(root: Path) -> list[tuple[Reference, RootfsMetadata, Path | None]]:
    """The names whose views exist, sorted by path, with their metadata and the disk that is linked (None: no such file).

    A view whose metadata does not parse has empty ones, so that it is made anew or removed; strange folders are left out.
    """
    found = []
    for path in sorted(root.glob("*/*/*/")):
        reference = _parse_folder(path)
        if reference is None:
            continue
        metadata = find_metadata(root, reference) or _EMPTY
        link = path / "rootfs"
        found.append((reference, metadata, Path(os.readlink(link)) if link.is_symlink() and link.exists() else None))
    return found


def _parse_folder(path: Path) -> Reference | None:
    org, name, version = path.parts[-3:]
    text = name if org == "_" else f"{org.replace('+', '/')}/{name}"
    try:
        reference = parse_reference(f"{text}:{version}")
    except FirebuildError:
        return None
    return reference if view_folder(path.parents[2], reference) == path else None


def _split_env(env: Sequence[str]) -> dict[str, str]:
    return {name: value for name, _, value in (item.partition("=") for item in env)}


def _parse_time(text: str | None) -> int:
    """Unix seconds of an RFC 3339 time; 0 for none or for what is not one."""
    import datetime

    if not text:
        return 0
    try:
        return int(msgspec.convert(text, datetime.datetime).timestamp())
    except (msgspec.ValidationError, ValueError, OverflowError):
        return 0
