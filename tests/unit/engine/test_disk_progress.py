"""While a root disk is made, the bytes that the guest has taken are told, of all that there are where that is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from firebuild.engine.disks import _write_layers
from firebuild.engine.layers import measure_layers
from tests.support.registry import make_image, tree_tar


class Guest:
    """Takes every layer; of two, the upper one beside the disk."""

    def __init__(self) -> None:
        self.taken = 0

    def apply_disk(self, drive: str, chunks: Iterable[bytes]) -> None:
        self.taken += sum(map(len, chunks))

    def apply_layer(self, layer: str, stack: list[str], chunks: Iterable[bytes]) -> None:
        self.taken += sum(map(len, chunks))

    def __getattr__(self, name: str) -> Any:
        assert name in ("mount_layer", "drop_layer", "merge_disk")
        return lambda *_: None


def test_bytes_of_all_layers_are_told(tmp_path: Path) -> None:
    trees = [tree_tar(b"x" * 700_000), tree_tar(b"y" * 500_000)]
    settings = load_settings({"FIREBUILD_STATE": str(tmp_path / "state"), "FIREBUILD_RUN": str(tmp_path / "run")})[0]
    with Engine(settings) as engine:
        image = make_image(engine.blobs, tmp_path, "made:1", *trees)
        size = sum(map(len, trees))
        for total in (None, size):
            told: list[tuple[int, int | None]] = []
            guest = Guest()
            machine: Any = SimpleNamespace(guest=guest, result_drives=["vda"])
            _write_layers(engine, image, machine, lambda done, all_: told.append((done, all_)))  # noqa: B023 - called here
            assert told[-1] == (size, total) and guest.taken == size
            assert len(told) > 3 and told == sorted(told, key=lambda each: each[0])
            measure_layers(engine, image)
