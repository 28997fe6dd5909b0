"""The result of a build as an image: configuration, history and times filled in, committed under its names."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING

from firebuild.store.blobs import Descriptor
from firebuild.store.images import History, Image, ImageConfig, ImageStore, RootFs

if TYPE_CHECKING:
    from firebuild.build.executor import StageResult
    from firebuild.build.steps import PlannedStage
    from firebuild.names import Reference


def format_time(at_ns: int) -> str:
    """RFC 3339 in UTC with as many digits as are needed, as Go writes it."""
    seconds, rest = divmod(at_ns, 10**9)
    text = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"


def plan_config(stage: PlannedStage, result: StageResult, *, epoch_s: int | None) -> ImageConfig:
    """The image configuration of a finished stage.

    Times are those at which the layers were made, so that a build whose steps all hit gives the same image again; an
    entry without a layer has the time of the layer before it, or of the first. With `epoch_s` every new time is that.
    """
    config = copy.deepcopy(stage.config)
    times = [format_time(epoch_s * 10**9 if epoch_s is not None else at_ns) for at_ns in result.times_ns]
    fallback = _base_created(stage)
    if epoch_s is not None:
        fallback = format_time(epoch_s * 10**9)
    current = times[0] if times else fallback
    made = iter(times)
    added: list[History] = []
    for entry in config.history:
        if not entry.empty_layer:
            current = next(made)
        entry.created = current
        added.append(entry)
    config.history = [*stage.base_history, *added]
    config.created = current if added else fallback
    config.rootfs = RootFs(diff_ids=[layer.diff_id for layer in result.layers])
    return config


def _base_created(stage: PlannedStage) -> str | None:
    """When what is below was made: what a build without layers of its own is dated."""
    if isinstance(stage.base, Image) and stage.base.created:
        return stage.base.created
    return next((entry.created for entry in reversed(stage.base_history) if entry.created), None)


def commit_result(
    images: ImageStore, config: ImageConfig, result: StageResult, references: Sequence[Reference]
) -> Image:
    """Store the image and point its names at it. Raises StoreError, DiskFullError."""
    layers = [Descriptor(layer.media_type, layer.digest, layer.size) for layer in result.layers]
    return images.commit_image(config, layers, references)
