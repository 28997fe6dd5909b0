"""A disk beside its image in a registry: with and without the referrers API, without room to pack it, and killed on its way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from firebuild.kernels.vmlinux import parse_kernel
from tests.support.api_registry import serve_api_registry
from tests.support.cli import Cli
from tests.support.fake_machines import IMAGE, Fake
from tests.support.fake_vmm import Script, write_fake_vmm
from tests.unit.kernels.samples import make_elf

DISK = "application/vnd.firebuild.disk.v1"
KERNEL = "application/vnd.firebuild.kernel.v1"


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    """With a kernel that the checks would not take from a stranger: what is shown here is how it travels."""
    return Fake(firebuild_cli, tmp_path)


@pytest.fixture
def elsewhere(firebuild_cli: Cli) -> Iterator[Cli]:
    """Another host, as far as firebuild can tell: a state of its own, in which there is a kernel only."""
    state = firebuild_cli.state / "elsewhere"
    state.mkdir(mode=0o711)
    cli = Cli(state, firebuild_cli.run_folder)
    with Engine(load_settings(cli.environment())[0]) as engine:
        engine.kernels.publish("fake", parse_kernel(make_elf(), "a test"), source="test")
    yield cli
    cli.clean()


@pytest.mark.parametrize("referrers", [True, False], ids=["api", "tag"])
def test_another_host_runs_what_was_pushed_whatever_the_registry_can(
    fake: Fake, elsewhere: Cli, tmp_path: Path, referrers: bool
) -> None:
    with serve_api_registry(referrers=referrers) as registry:
        name = f"{registry.name}/team/app:1"
        digest = fake.cli.ok("image", "push", "--disk", "--kernel", "fake", IMAGE, name).strip()
        assert fake.cli.ok("image", "push", "--disk", IMAGE, name).strip() == digest
        kinds = sorted(entry["artifactType"] for entry in registry.list_referrers("team/app", digest))
        assert kinds == [DISK, KERNEL], "each of them says whose it is, and a second push adds nothing"
        url = f"http://{registry.name}/v2/team/app"
        if referrers:
            # As programs that know the API, and not firebuild's tag, find them.
            with urllib.request.urlopen(f"{url}/referrers/{digest}", timeout=30) as answer:
                assert sorted(entry["artifactType"] for entry in json.load(answer)["manifests"]) == kinds
        with urllib.request.urlopen(f"{url}/manifests/{digest.replace(':', '-')}", timeout=30) as answer:
            listed = {entry["digest"] for entry in json.load(answer)["manifests"]}
        assert listed == {entry["digest"] for entry in registry.list_referrers("team/app", digest)}

        vmm = write_fake_vmm(tmp_path / "other-vmm", Script())
        command = ("run", "-d", "--name", "taken", "--from", name, "--network", "none")
        done = elsewhere.run(*command, environment={"FIREBUILD_BINARY_FIRECRACKER": str(vmm)})
        assert done.status == 0 and "making the disk" not in done.stderr, done.describe()
    with Engine(load_settings(elsewhere.environment())[0]) as engine:
        (disk,) = engine.disks.list_keys()
    assert disk in os.listdir(fake.cli.state / "disks")
    assert elsewhere.ok("fsck") == ""


@pytest.fixture
def small(tmp_path: Path, firebuild_cli: Cli) -> Iterator[Cli]:
    """A firebuild on a file system of 80 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m,mode=0711", "tmpfs", folder], check=True)
    try:
        yield Cli(folder, firebuild_cli.run_folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def put_noise_on_the_disk(cli: Cli, mib: int) -> None:
    (disk,) = (cli.state / "disks").glob("*/disk.ext4")
    disk.chmod(0o600)
    with disk.open("r+b") as file:
        file.seek(256 << 20)
        for _ in range(mib):
            file.write(os.urandom(1 << 20))


def test_without_room_to_pack_a_disk_nothing_of_it_is_sent(small: Cli, tmp_path: Path) -> None:
    Fake(small, tmp_path)
    put_noise_on_the_disk(small, 30)
    with serve_api_registry() as registry:
        refused = small.refused("image", "push", "--disk", IMAGE, f"{registry.name}/team/app:1").stderr
        assert "packing what belongs to" in refused and "team/app:1" in refused, refused
        assert "MiB" in refused and "firebuild gc" in refused, refused
        assert not [key for key in registry.manifests if key[1].startswith("sha256-")]
        assert os.listdir(small.state / "store" / "ingest") == []
        # The image alone needs no room.
        small.ok("image", "push", IMAGE, f"{registry.name}/team/app:1")


def test_a_push_that_is_killed_leaves_nothing_for_long(fake: Fake) -> None:
    put_noise_on_the_disk(fake.cli, 8)
    ingest = fake.cli.state / "store" / "ingest"
    with serve_api_registry() as registry:
        name = f"{registry.name}/team/app:1"
        fake.cli.ok("image", "push", IMAGE, name)
        registry.held.clear()
        with fake.cli.start("image", "push", "--disk", IMAGE, name) as process:
            assert registry.waiting.wait(120), "the disk was never sent"
            assert os.listdir(ingest), "it is packed before it is sent"
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
        registry.held.set()
        fake.cli.ok("gc")
        assert os.listdir(ingest) == []
        assert fake.cli.ok("fsck") == ""
        digest = fake.cli.ok("image", "push", "--disk", IMAGE, name).strip()
        assert [entry["artifactType"] for entry in registry.list_referrers("team/app", digest)] == [DISK]
