"""A workshop with a base image for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.store.images import RunConfig
from tests.unit.build.fakes import Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    made.add_image("debian:12", {"bin/sh": b"shell", "etc": None}, RunConfig(env=["PATH=/bin", "LANG=C"], cmd=["bash"]))
    yield made
    made.check_nothing_left()
    made.database.close()
