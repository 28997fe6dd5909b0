"""What all tiers share: private firebuilds, the leak ledger, and evidence kept of every failure."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, save_evidence
from tests.support.ledger import Watch, settle, take_snapshot

ROOT = Path(__file__).parents[1]
EVIDENCE_FOLDER = ROOT / "target" / "test-evidence"
_CLIS = pytest.StashKey[list[Cli]]()


@pytest.fixture
def private_folders(request: pytest.FixtureRequest) -> Iterator[Watch]:
    """A state and a run folder of the test's own. The run folder's path is short: a socket's path has 107 bytes."""
    with (
        tempfile.TemporaryDirectory(prefix="fbs-", dir="/var/tmp") as state,
        tempfile.TemporaryDirectory(prefix="fbt-", dir="/run") as run,
    ):
        # The unprivileged VMM passes through to its own files.
        Path(state).chmod(0o711)
        Path(run).chmod(0o711)
        yield Watch(Path(state), Path(run))


@pytest.fixture
def watched(private_folders: Watch) -> Watch:
    """The folders that the ledger watches: the test's own. The vm tier watches the session's."""
    return private_folders


@pytest.fixture
def ledger(watched: Watch) -> Iterator[None]:
    """Nothing may be left when the test is over: the functional and vm tiers use this for each of their tests."""
    before = take_snapshot(watched)
    yield
    left = settle(before, watched)
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture
def firebuild_cli(request: pytest.FixtureRequest, ledger: None, private_folders: Watch) -> Iterator[Cli]:
    """The real program with an empty state of its own."""
    yield from lend(request, Cli(private_folders.state, private_folders.run))


def lend(request: pytest.FixtureRequest, cli: Cli) -> Iterator[Cli]:
    """Lend a test a firebuild: evidence is kept if it fails, and its machines are ended in any case."""
    request.node.stash.setdefault(_CLIS, []).append(cli)
    yield cli
    cli.clean()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # the wrapper's result is the report
    """Copy what a failed test's machines left, and name the copies in the report."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed and (clis := item.stash.get(_CLIS, [])):
        name = re.sub(r"[^\w.-]+", "_", item.nodeid).strip("_")
        for number, cli in enumerate(clis):
            copies = save_evidence(cli, EVIDENCE_FOLDER / f"{name}.{report.when}{number or ''}")
            report.sections.append(("evidence", "\n".join(str(copy) for copy in copies)))
    return report  # type: ignore[return-value]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Old evidence would only mislead."""
    if not hasattr(session.config, "workerinput") and not session.config.option.collectonly:
        shutil.rmtree(EVIDENCE_FOLDER, ignore_errors=True)
