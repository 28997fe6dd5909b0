"""Functional tests: as root, with real namespaces, links and rules, no guest. Each must leave the host as it was."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _leaves_nothing(ledger: None) -> None:
    """Every test of this tier runs under the leak ledger."""
