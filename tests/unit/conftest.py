"""Unit tests: no root, no network, no programs. Every test runs under the guard."""

from __future__ import annotations

import pytest

from tests.support import guard


@pytest.fixture(autouse=True)
def _guard(monkeypatch: pytest.MonkeyPatch) -> None:
    guard.install(monkeypatch)
