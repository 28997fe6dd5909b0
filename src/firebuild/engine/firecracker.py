"""Use cases of Firecracker's own programs: official releases fetched, checked and kept, a folder for each version."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from firebuild.build.sources.http import FetchLimits, fetch, find_final_url
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.url import Url, parse_url
from firebuild.engine.core import Engine
from firebuild.errors import BusyError, NotFoundError, UsageError, VmmError
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, remove_tree, sync_folder
from firebuild.host.locks import hold_lock
from firebuild.host.process import run
from firebuild.vmm.release import PROGRAMS, archive_name, parse_checksum, unpack_programs
from firebuild.vmm.versions import Version, check_supported, find_lacking, parse_answer, parse_version

_STAGE = ".stage-"
_CHECKSUM_LIMITS = FetchLimits(bytes=64 << 10, timeout_s=120.0)
_ARCHIVE_LIMITS = FetchLimits(bytes=512 << 20)
_ANSWER_TIMEOUT_S = 60.0
_LOCK_TIMEOUT_S = 3600.0


class Firecracker(msgspec.Struct, frozen=True):
    """An installed version. `firecracker`, `jailer`: the programs; `lacks`: what newer ones have (vmm.versions)."""

    version: str
    firecracker: Path
    jailer: Path
    lacks: list[str]


def install_firecracker(engine: Engine, version: str | None, report: Callable[[str], None]) -> Firecracker:
    """Fetch a release (the newest without `version`) and keep its programs; one that is there already is left.

    Raises UsageError, ContextError or DeadlineError from the fetching, VmmError for an archive or program that is wrong.
    """
    releases = parse_url(engine.settings.firecracker_releases.rstrip("/"), ("http", "https"))
    wanted = parse_version(version) if version is not None else _find_newest(releases)
    check_supported(wanted)
    root = engine.layout.firecracker
    engine.layout.ensure()
    root.mkdir(mode=0o755, exist_ok=True)
    deadline = Deadline(_LOCK_TIMEOUT_S, "waiting for another installation of Firecracker")
    with hold_lock(engine.layout.firecracker_lock, "the installed versions of Firecracker", deadline=deadline):
        _sweep(root)
        if (found := find_firecracker(engine, wanted)) is not None:
            report(f"Firecracker {wanted} is installed already")
            return found
        stage = root / f"{_STAGE}{secrets.token_hex(6)}"
        stage.mkdir(mode=0o755)
        try:
            _fetch(releases, wanted, stage, report, engine.layout.scratch)
            os.rename(stage, engine.layout.firecracker_version(str(wanted)))
            sync_folder(root)
        except OSError as error:
            raise map_os_error(error, f"installing Firecracker {wanted}") from error
        finally:
            if stage.exists():
                remove_tree(stage)
    return get_firecracker(engine, wanted)


def list_firecrackers(engine: Engine) -> list[Firecracker]:
    """The installed versions, oldest first."""
    root = engine.layout.firecracker
    names = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    versions = sorted(parse_version(name) for name in names if not name.startswith(_STAGE))
    return [found for version in versions if (found := find_firecracker(engine, version)) is not None]


def find_firecracker(engine: Engine, version: Version) -> Firecracker | None:
    """An installed version, or None."""
    folder = engine.layout.firecracker_version(str(version))
    firecracker, jailer = (folder / program for program in PROGRAMS)
    if not firecracker.is_file() or not jailer.is_file():
        return None
    return Firecracker(str(version), firecracker, jailer, find_lacking(version))


def get_firecracker(engine: Engine, version: Version) -> Firecracker:
    """An installed version. Raises NotFoundError."""
    found = find_firecracker(engine, version)
    if found is None:
        raise NotFoundError(
            f"Firecracker {version} is not installed", hint=f"run `firebuild firecracker install --version {version}`"
        )
    return found


def remove_firecracker(engine: Engine, version: str) -> None:
    """Remove an installed version. Raises NotFoundError, BusyError while the settings in force name its programs."""
    found = get_firecracker(engine, parse_version(version))
    in_force = (engine.settings.vmm_binary, engine.settings.binary_jailer)
    if str(found.firecracker) in in_force or str(found.jailer) in in_force:
        raise BusyError(
            f"Firecracker {found.version} is what the profile `{engine.settings.profile}` runs",
            hint="give the profile another --binary-firecracker and --binary-jailer first",
        )
    remove_tree(found.firecracker.parent)


def _find_newest(releases: Url) -> Version:
    """What the releases' page `latest` redirects to: `…/tag/vVERSION`."""
    final = find_final_url(parse_url(f"{releases.text}/latest", ("http", "https")))
    name = final.path.rstrip("/").rpartition("/")[2]
    try:
        return parse_version(name)
    except UsageError as error:
        raise VmmError(f"`{final.shown}` names no version of Firecracker") from error


def _fetch(releases: Url, version: Version, stage: Path, report: Callable[[str], None], scratch_root: Path) -> None:
    architecture = platform.machine()
    name = archive_name(version, architecture)
    address = f"{releases.text}/download/v{version}/{name}"
    with Scratch(scratch_root) as scratch:
        listed = fetch(parse_url(f"{address}.sha256.txt", ("http", "https")), scratch, _CHECKSUM_LIMITS)
        expected = parse_checksum(listed.file.read().decode("utf-8", "replace"), name)
        report(f"fetching {name}")
        archive = fetch(parse_url(address, ("http", "https")), scratch, _ARCHIVE_LIMITS)
        if archive.sha256 != expected:
            raise VmmError(
                f"{name} is not what its checksum says: expected sha256:{expected}, got sha256:{archive.sha256}",
                hint="try again; if it stays so, do not use that server",
            )
        unpack_programs(archive.file, stage, version, architecture)
    for program in PROGRAMS:
        answer = run([str(stage / program), "--version"], timeout_s=_ANSWER_TIMEOUT_S).stdout.decode("utf-8", "replace")
        found = parse_answer(program.capitalize(), answer)
        if found != version:
            raise VmmError(f"the release of Firecracker {version} holds a {program} of version {found}")


def _sweep(root: Path) -> None:
    """Remove what killed installations left; the lock says that none is running."""
    for entry in root.iterdir():
        if entry.name.startswith(_STAGE):
            remove_tree(entry)
