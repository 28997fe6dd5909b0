"""firebuild against Docker: the same Dockerfiles, one rule each, give the same trees and configurations."""

from __future__ import annotations

import pytest

from tests.support.differential.case import Case
from tests.support.differential.dockerd import DockerUnavailableError
from tests.support.differential.suite import CASES, Outcomes, judge, run_cases
from tests.support.ledger import Watch, settle, take_snapshot
from tests.vm.conftest import SharedState


@pytest.fixture(scope="module")
def outcomes(shared_state: SharedState, shared_folders: Watch) -> Outcomes:
    """All cases, built by both. Afterwards nothing may be left."""
    before = take_snapshot(shared_folders)
    try:
        made = run_cases(CASES, shared_state.state, shared_state.run)
    except DockerUnavailableError as error:
        pytest.skip(f"no Docker to compare with: {error}")
    left = settle(before, shared_folders)
    assert not left, "left behind:\n" + "\n".join(left)
    return made


@pytest.fixture(autouse=True)
def _leaves_nothing(outcomes: Outcomes) -> None:
    """The builds are over: the ledger was compared once, when they were."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_as_docker(case: Case, outcomes: Outcomes) -> None:
    lines = judge(case, outcomes)
    assert not lines, f"{case.dockerfile}\n" + "\n".join(lines)
