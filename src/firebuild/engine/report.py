"""What a build made, as documents: for `--format json`, and for `--metadata-file` with BuildKit's keys."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from firebuild.build.services import BuildResult
from firebuild.names import Reference
from firebuild.store.images import MANIFEST_TYPE

RESULT_KEYS = (
    "Id", "Digest", "RepoTags", "Created", "Architecture", "Os", "Size", "Steps", "Cached", "Booted", "Disk",
)  # fmt: skip


def describe_build(result: BuildResult, tags: Sequence[Reference]) -> dict[str, Any]:
    """The result for people's programs; keys as in `image inspect` where both have them."""
    image = result.image
    return {
        "Id": image.id,
        "Digest": image.manifest_digest,
        "RepoTags": [tag.familiar for tag in tags],
        "Created": image.created,
        "Architecture": image.config.architecture,
        "Os": image.config.os,
        "Size": image.size,
        "Steps": result.steps,
        "Cached": result.cached,
        "Booted": result.booted,
        "Disk": str(result.disk.path) if result.disk is not None else None,
    }


def make_build_metadata(result: BuildResult, tags: Sequence[Reference]) -> bytes:
    """The file that --metadata-file names: the keys that `docker buildx build` writes, and the base images."""
    image = result.image
    size = sum(layer.size for layer in image.layers) + image.manifest.config.size
    document = {
        "buildx.build.ref": f"firebuild/{secrets.token_hex(12)}",
        "buildx.build.provenance": {
            "materials": [
                {"uri": f"docker-image://{name}", "digest": {"sha256": digest.removeprefix("sha256:")}}
                for name, digest in result.bases
            ],
        },
        "containerimage.config.digest": image.config_digest,
        "containerimage.descriptor": {
            "mediaType": image.manifest.media_type or MANIFEST_TYPE,
            "digest": image.manifest_digest,
            "size": image.size - size,
            "platform": {"architecture": image.config.architecture, "os": image.config.os},
        },
        "containerimage.digest": image.manifest_digest,
        "image.name": ",".join(tag.full for tag in tags),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
