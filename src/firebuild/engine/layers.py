"""What the layers of images really hold: their plain sizes, found out once, with their diff ids checked on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from firebuild.engine.core import Engine
from firebuild.host.files import write_atomic
from firebuild.images.archive import open_layer
from firebuild.names import Digest

if TYPE_CHECKING:
    from firebuild.store.images import Image


def load_layer_sizes(engine: Engine) -> dict[Digest, int]:
    """The plain sizes in bytes by diff id, as far as they are known; the file is derived, so a damaged one counts as none."""
    try:
        return msgspec.json.decode(engine.layout.layer_sizes.read_bytes(), type=dict[Digest, int])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}


def note_layer_sizes(engine: Engine, found: dict[Digest, int]) -> None:
    """Keep sizes. Two writers at once may lose each other's: those are then found out again."""
    known = load_layer_sizes(engine)
    if found.keys() - known.keys():
        write_atomic(engine.layout.layer_sizes, msgspec.json.encode({**known, **found}, order="deterministic"))


def measure_layers(
    engine: Engine, image: Image, progress: Callable[[int, int | None], None] | None = None
) -> dict[Digest, int]:
    """The plain sizes of an image's layers. Layers that are not known yet are read, and must be what the image says.

    Raises ImageError for a layer that is damaged, is no layer at all, or has another content than its diff id.
    """
    known = load_layer_sizes(engine)
    found: dict[Digest, int] = {}
    done = 0
    for layer, diff_id in zip(image.layers, image.config.rootfs.diff_ids, strict=True):
        if diff_id in known or diff_id in found:
            continue
        size = 0
        with open_layer(engine.blobs.path(layer.digest), layer.media_type, expected_diff_id=diff_id) as stream:
            for piece in stream:
                size += len(piece)
                if progress:
                    progress(done + size, None)
        done += size
        found[diff_id] = size
    if found:
        note_layer_sizes(engine, found)
    return {diff_id: (known | found)[diff_id] for diff_id in image.config.rootfs.diff_ids}
