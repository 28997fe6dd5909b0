"""What a build made, as documents: for `--format json`, and for `--metadata-file` with BuildKit's keys."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from firebuild.build.services import BuildResult
from firebuild.build.sources.spec import InlineSource, parse_dockerfile_source
from firebuild.build.sources.url import redact_urls
from firebuild.engine.builds import RootfsRequest, select_public_args
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


def make_build_metadata(result: BuildResult, tags: Sequence[Reference], request: RootfsRequest | None = None) -> bytes:
    """The file that --metadata-file names: the keys that `docker buildx build` writes. `request`: None without a Dockerfile."""
    image = result.image
    size = sum(layer.size for layer in image.layers) + image.manifest.config.size
    document = {
        "buildx.build.ref": f"firebuild/{secrets.token_hex(12)}",
        "buildx.build.provenance": _make_provenance(result, request),
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


def _make_provenance(result: BuildResult, request: RootfsRequest | None) -> dict[str, Any]:
    """What the image was made of and how it was asked for, in the form of SLSA's provenance 0.2 as BuildKit fills it.

    Secrets are no part of it: see select_public_args.
    """
    config = result.image.config
    materials = [
        {"uri": f"docker-image://{name}", "digest": {"sha256": digest.removeprefix("sha256:")}}
        for name, digest in result.bases
    ]
    materials += [{"uri": found.uri, "digest": {found.algorithm: found.value}} for found in result.materials]
    invocation: dict[str, Any] = {"environment": {"platform": f"{config.os}/{config.architecture}"}}
    if request is not None:
        arguments = {f"build-arg:{name}": value for name, value in select_public_args(request.build_args).items()}
        arguments |= {f"label:{name}": value for name, value in request.labels.items()}
        for text in request.build_contexts:
            name, _, source = text.partition("=")
            arguments[f"context:{name}"] = redact_urls(source)
        if request.target is not None:
            arguments["target"] = request.target
        invocation["parameters"] = {"frontend": "dockerfile.v0", "args": dict(sorted(arguments.items()))}
        invocation["configSource"] = _name_sources(request)
    return {"materials": materials, "invocation": invocation}


def _name_sources(request: RootfsRequest) -> dict[str, str]:
    """Dockerfile and context as they were named; a Dockerfile's own text is no name of anything."""
    named = {"context": request.context, "dockerfile": request.dockerfile}
    if request.dockerfile is not None:
        source = parse_dockerfile_source(request.dockerfile, os.path.exists)
        named["dockerfile"] = None if isinstance(source, InlineSource) else request.dockerfile
    return {key: redact_urls(text) for key, text in named.items() if text is not None}
