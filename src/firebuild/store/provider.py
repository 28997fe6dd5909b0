"""Storage providers: who shows rootfs files to the world and keeps kernels, found by name; others than ours by entry point.

The image store itself (blobs, names, disks) is firebuild's own and the truth. A provider publishes what was derived from
it: for each name a rootfs and its metadata. Packages add providers under the entry-point group `firebuild.storage_providers`;
the entry point is a ProviderFactory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from firebuild.errors import ConfigError
from firebuild.names import Reference
from firebuild.store.view import RootfsMetadata

ENTRY_POINTS = "firebuild.storage_providers"


class Place(msgspec.Struct, frozen=True):
    """Where a provider works: `state`: its profile's state folder; `rootfs`, `kernels`: folders in it to use by default."""

    state: Path
    rootfs: Path
    kernels: Path


class StorageProvider(Protocol):
    """What a provider does. Every method may be called again with the same arguments; they raise FirebuildError."""

    @property
    def kernel_folder(self) -> Path:
        """The folder in which the profile's kernels are kept."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is done: folders that do not exist, say. Changes nothing."""

    def publish(self, reference: Reference, metadata: RootfsMetadata, disk: Path | None) -> None:
        """Show this rootfs under this name, in place of what was shown there. `disk`: its ext4 file, None while there is
        none. The file is the store's: it may be read and copied, never written."""

    def withdraw(self, reference: Reference) -> None:
        """Show nothing under this name any more; absent is fine. Needs no space."""

    def list_published(self) -> Mapping[str, str]:
        """What is shown: full references with a word that changes whenever metadata or disk do (see `stamp_of`)."""


class ProviderFactory(Protocol):
    """What an entry point names: a class, most of the time. It tells the names of the properties, texts and whole numbers."""

    string_properties: Collection[str]
    integer_properties: Collection[str]

    def __call__(self, place: Place, strings: Mapping[str, str], integers: Mapping[str, int], /) -> StorageProvider:
        """Make the provider; touches nothing. Properties that are not among its own are refused before."""


def stamp_of(metadata: RootfsMetadata, disk: Path | None) -> str:
    """The word by which two publications of one name differ."""
    return f"{metadata.manifest_digest} {metadata.facts_digest} {metadata.disk_key if disk is not None else ''}"


def list_providers() -> list[str]:
    """The names of all providers, sorted."""
    from importlib.metadata import entry_points

    return sorted({"directory", *(point.name for point in entry_points(group=ENTRY_POINTS))})


def get_provider(name: str, place: Place, strings: Mapping[str, str], integers: Mapping[str, int]) -> StorageProvider:
    """The provider of that name with its properties. Raises ConfigError naming those there are."""
    factory = _get_factory(name)
    for given, known, flag in (
        (strings, factory.string_properties, "string"),
        (integers, factory.integer_properties, "int64"),
    ):
        for prop in given:
            if prop not in known:
                names = ", ".join(f"`{each}`" for each in sorted(known)) or "none"
                raise ConfigError(
                    f"the storage provider `{name}` has no property `{prop}` for --storage-provider-property-{flag}",
                    hint=f"it has {names}",
                )
    return factory(place, strings, integers)


def _get_factory(name: str) -> ProviderFactory:
    if name == "directory":
        from firebuild.store.directory import DirectoryProvider

        return DirectoryProvider
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            factory: Any = point.load()
        except Exception as error:
            raise ConfigError(f"the storage provider `{name}` ({point.value}) cannot be loaded: {error}") from error
        found: ProviderFactory = factory
        return found
    raise ConfigError(f"there is no storage provider `{name}`", hint=f"there are: {', '.join(list_providers())}")
