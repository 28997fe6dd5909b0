"""What belongs to an image in a registry: artifacts pushed by digest, and the index that lists them under a tag.

OCI distribution-spec, "Referrers Tag Schema": the tag `sha256-<hex>` of a repository names an index of the artifacts whose
`subject` has that digest. Registries with the referrers API index `subject` by themselves; the tag works with every registry,
and it is what skopeo(1), which has no word for that API, can read and write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import ImageError, RegistryError
from firebuild.images import skopeo
from firebuild.images.bootable import Artifact, ArtifactManifest, parse_artifact
from firebuild.images.ocilayout import MANIFEST_TYPE, digest_of, write_index
from firebuild.images.skopeo import Access, find_raw_manifest
from firebuild.images.transfer import Progress, folder_bytes, read_bytes
from firebuild.names import Digest, Reference

_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_ENTRIES_MAX = 64
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def tag_of(reference: Reference, subject: Digest) -> Reference:
    """The tag under which a repository lists what belongs to a manifest."""
    return Reference(reference.domain, reference.path, subject.replace(":", "-"), None)


def push_artifacts(
    layout: Path,
    artifacts: Sequence[Artifact],
    reference: Reference,
    subject: Digest,
    stage: Path,
    *,
    access: Access,
    progress: Progress | None = None,
) -> None:
    """Push artifacts that are in a layout to an image's repository, then list them; others' entries in the list stay.

    An entry of ours of the same kind is replaced. Raises RegistryError, DeadlineError, MissingProgramError.
    """
    flags = ["--retry-times", str(access.retries), *access.flags(reference.domain, "dest-")]
    total = folder_bytes(layout)
    for artifact in artifacts:
        write_index(layout, [{**artifact.descriptor, "annotations": {"org.opencontainers.image.ref.name": "artifact"}}])
        target = Reference(reference.domain, reference.path, None, Digest(artifact.digest))
        skopeo.copy(
            f"oci:{layout}:artifact", f"docker://{skopeo.registry_name(target)}", f"what belongs to `{reference}`", stage,
            flags=["--preserve-digests", *flags], timeout_s=access.timeout_s,
            tick=(lambda pid: progress(min(read_bytes(pid), total), total)) if progress else None,
        )  # fmt: skip
    listed = _load_entries(reference, subject, access)
    kinds = {artifact.descriptor["artifactType"] for artifact in artifacts}
    ours = {artifact.digest for artifact in artifacts}
    kept = [entry for entry in listed if entry.get("artifactType") not in kinds and entry.get("digest") not in ours]
    entries = [*kept, *(artifact.descriptor for artifact in artifacts)]
    data = msgspec.json.encode({"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": entries})
    digest = digest_of(data)
    (layout / "blobs" / "sha256" / digest[7:]).write_bytes(data)
    name = {"org.opencontainers.image.ref.name": "list"}
    write_index(layout, [{"mediaType": _INDEX_TYPE, "digest": digest, "size": len(data), "annotations": name}])
    # Without --preserve-digests: skopeo before 1.14 does not know `artifactType` in an index and writes the list without it.
    skopeo.copy(
        f"oci:{layout}:list", f"docker://{skopeo.registry_name(tag_of(reference, subject))}",
        f"the list of what belongs to `{reference}`", stage,
        flags=["--multi-arch=index-only", *flags], timeout_s=access.timeout_s,
    )  # fmt: skip


def find_artifact(
    reference: Reference, subject: Digest, kind: str, access: Access
) -> tuple[Digest, ArtifactManifest] | None:
    """The artifact of that type that belongs to a manifest, or None. Nothing but its manifest is moved yet.

    Raises RegistryError; ImageError where it is another one than it is listed as.
    """
    name = f"what belongs to `{reference}`"
    for entry in reversed(_load_entries(reference, subject, access)):
        if entry.get("artifactType") != kind:
            continue
        digest = Digest(str(entry.get("digest")))
        place = Reference(reference.domain, reference.path, None, digest)
        data = find_raw_manifest(place, access, subject=name) if _DIGEST.fullmatch(digest) else None
        if data is None or digest_of(data) != digest:
            raise RegistryError(f"{name} is listed and not there: {digest[:100]}", reason="damaged")
        manifest = parse_artifact(data, name)
        if manifest.artifact_type != kind or manifest.subject is None or manifest.subject.digest != subject:
            raise ImageError(f"{name} is not what it is listed as: it is a `{manifest.artifact_type[:100]}`")
        return digest, manifest
    return None


def _load_entries(reference: Reference, subject: Digest, access: Access) -> list[dict[str, Any]]:
    """The list's entries, each with its `artifactType`: where the list lacks it, the artifact's own manifest is asked."""
    name = f"the list of what belongs to `{reference}`"
    data = find_raw_manifest(tag_of(reference, subject), access, subject=name)
    if data is None:
        return []
    try:
        found = msgspec.json.decode(data, type=dict[str, Any]).get("manifests")
        entries = msgspec.convert(found if isinstance(found, list) else [], list[dict[str, Any]])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RegistryError(f"{name} does not parse: {error}", reason="damaged") from error
    if len(entries) > _ENTRIES_MAX:
        raise ImageError(f"{name} has {len(entries)} entries; {_ENTRIES_MAX} are allowed")
    return [entry if entry.get("artifactType") else _with_type(entry, reference, access) for entry in entries]


def _with_type(entry: dict[str, Any], reference: Reference, access: Access) -> dict[str, Any]:
    digest = entry.get("digest")
    if entry.get("mediaType") != MANIFEST_TYPE or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return entry
    name = Reference(reference.domain, reference.path, None, Digest(digest))
    data = find_raw_manifest(name, access, subject=f"what belongs to `{reference}`")
    if data is None or digest_of(data) != digest:
        return entry
    return {**entry, "artifactType": parse_artifact(data, f"what belongs to `{reference}`").artifact_type}


def fetch_artifact(
    reference: Reference,
    digest: Digest,
    stage: Path,
    *,
    access: Access,
    progress: Progress | None = None,
) -> Path:
    """Bring an artifact into a layout below `stage`; its blobs are still to be verified.

    Raises RegistryError, DiskFullError, DeadlineError.
    """
    layout = stage / f"artifact-{digest[7:19]}"
    source = Reference(reference.domain, reference.path, None, digest)
    flags = ["--retry-times", str(access.retries), "--preserve-digests", *access.flags(reference.domain, "src-")]
    skopeo.copy(
        f"docker://{skopeo.registry_name(source)}", f"oci:{layout}:artifact", f"what belongs to `{reference}`", stage,
        flags=flags, timeout_s=access.timeout_s,
        tick=(lambda _: progress(folder_bytes(layout), None)) if progress else None,
    )  # fmt: skip
    return layout
