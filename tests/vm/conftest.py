"""Tests with real guests. One state for the session, with a kernel and a base image; each test must leave no machine in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, lend
from tests.support.cli import BUILD_TIMEOUT_S, Cli
from tests.support.ledger import Watch

BASE = "debian:bookworm-slim"
REDIS = "examples/redis:7"
CACHE = Path(os.environ.get("FIREBUILD_DEV_CACHE", "/var/cache/firebuild-dev"))


@pytest.fixture(scope="session")
def base_tarball() -> Path:
    """The base image's tree as a tar, bootstrapped once and kept between runs by the digest of its recipe."""
    recipe = ROOT / "examples" / "debian" / "make-base"
    done = subprocess.run([recipe, "--cached", CACHE], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@dataclass(frozen=True)
class SharedState:
    """The session's state: a kernel is pulled, the base image imported, the redis example built."""

    state: Path
    run: Path
    base_tarball: Path

    def cli(self) -> Cli:
        """A firebuild that works in this state."""
        return Cli(self.state, self.run)


@pytest.fixture(scope="session")
def shared_folders() -> Iterator[Watch]:
    """The session's state and run folders. They are not the user's."""
    with (
        tempfile.TemporaryDirectory(prefix="fbvm-", dir="/var/tmp") as state,
        tempfile.TemporaryDirectory(prefix="fbvm-", dir="/run") as run,
    ):
        Path(state).chmod(0o711)
        Path(run).chmod(0o711)
        yield Watch(Path(state), Path(run))


@pytest.fixture(scope="session")
def shared_state(shared_folders: Watch, base_tarball: Path) -> SharedState:
    """The session's state, prepared with the commands that a user would run."""
    shared = SharedState(shared_folders.state, shared_folders.run, base_tarball)
    cli = shared.cli()
    cli.ok("kernel", "pull", timeout_s=BUILD_TIMEOUT_S)
    cli.ok("image", "import", base_tarball, BASE, timeout_s=BUILD_TIMEOUT_S)
    return shared


@pytest.fixture(scope="session")
def redis_image(shared_state: SharedState) -> str:
    """The redis example's reference, built."""
    dockerfile = ROOT / "examples" / "redis" / "Dockerfile"
    shared_state.cli().ok("rootfs", "--dockerfile", dockerfile, "--tag", REDIS, timeout_s=BUILD_TIMEOUT_S)
    return REDIS


@pytest.fixture
def watched(shared_state: SharedState, shared_folders: Watch) -> Watch:
    """The ledger watches the session's folders, once they are prepared."""
    return shared_folders


@pytest.fixture(autouse=True)
def _leaves_nothing(ledger: None) -> None:
    """Every test of this tier runs under the leak ledger."""


@pytest.fixture
def cli(request: pytest.FixtureRequest, ledger: None, shared_state: SharedState) -> Iterator[Cli]:
    """The real program in the session's state."""
    yield from lend(request, shared_state.cli())


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """An empty build context."""
    folder = tmp_path / "context"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Say at once what a machine lacks, instead of failing in the middle."""
    missing = [
        name
        for name in ("qemu-system-x86_64", "mmdebstrap", "psql", "redis-cli", "ip", "nft")
        if not shutil.which(name)
    ]
    assert not missing, f"missing programs: {', '.join(missing)}; run: ./dev setup"
