"""Volumes through the real CLI, with a scripted stand-in for the VMM: who may have one, and what a crash leaves."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import Fake
from tests.support.fake_vmm import Script
from tests.support.processes import runs


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def test_volumes_are_made_listed_and_removed(fake: Fake) -> None:
    cli = fake.cli
    assert cli.ok("volume", "create", "one", "--size", "64m", "--label", "a=b") == "one\n"
    assert "exists already" in cli.refused("volume", "create", "one").stderr
    assert cli.refused("volume", "create", "two", "--size", "1m").status == 125
    assert cli.refused("volume", "create", "../two").status == 125
    shown = cli.json("volume", "inspect", "one")
    assert (shown["Size"], shown["Labels"], shown["Machines"]) == (64 << 20, {"a": "b"}, [])
    assert shown["Used"] < 8 << 20
    assert os.stat(shown["Disk"]).st_size == 64 << 20
    cli.ok("volume", "create", "two")
    assert cli.ok("volume", "ls", "-q") == "one\ntwo\n"
    assert cli.ok("volume", "ls", "-q", "--filter", "label=a=b") == "one\n"
    assert "there is no volume" in cli.refused("volume", "rm", "three").stderr
    assert cli.refused("volume", "prune").status == 125
    # What a command left that was killed while it made one.
    left = cli.state / "volumes" / ".stage-left"
    left.mkdir()
    assert cli.ok("volume", "prune", "-f", "--filter", "label=a").startswith("one\n")
    assert not left.exists()
    cli.ok("volume", "rm", "two")
    assert cli.ok("volume", "ls", "-q") == ""


def test_one_writes_or_many_read(fake: Fake) -> None:
    cli = fake.cli
    started = fake.run("-d", "--name", "writer", "-v", "data:/data", "--mount", "type=volume,src=more,dst=/data/more")
    assert started.status == 0 and "made the volume data" in started.stderr, started.describe()
    boot = json.loads((cli.state / "machines" / started.stdout.strip() / "boot.json").read_text())
    assert [(mount["drive"], mount["target"], mount["seed"]) for mount in boot["mounts"]] == [
        ("vdc", "/data", True), ("vdd", "/data/more", True),
    ]  # fmt: skip
    mounts = cli.json("inspect", "writer")["Mounts"]
    assert [(mount["Name"], mount["Destination"], mount["RW"]) for mount in mounts] == [
        ("data", "/data", True), ("more", "/data/more", True),
    ]  # fmt: skip
    refused = fake.run("-d", "--name", "second", "-v", "data:/data:ro")
    assert refused.status == 125 and "in use by the machine writer (running, read-write)" in refused.stderr
    assert cli.ok("ls", "-a", "-q").splitlines() == [started.stdout.strip()]
    assert "belongs to the machine writer" in cli.refused("volume", "rm", "data").stderr
    cli.ok("stop", "writer")
    for name in ("reader1", "reader2"):
        assert fake.run("-d", "--name", name, "-v", "data:/data:ro").status == 0
    environment = fake.environment(Script())
    refused = cli.run("start", "writer", environment=environment)
    assert refused.status == 1 and "in use by the machine reader" in refused.stderr, refused.describe()
    assert fake.state("writer") == "stopped"
    assert cli.ok("volume", "prune", "-f") == "Total reclaimed space: 0B\n"
    cli.ok("rm", "-f", "reader1", "reader2")
    assert cli.run("start", "writer", environment=environment).status == 0
    cli.ok("rm", "-f", "writer")
    assert sorted(cli.ok("volume", "prune", "-f").splitlines()[:-1]) == ["data", "more"]


def test_a_crash_frees_a_volume(fake: Fake) -> None:
    """The supervisor is killed, and the VMM lives a moment longer: the next machine gets the volume, and no two have it."""
    cli = fake.cli
    assert fake.run("-d", "--name", "first", "-v", "data:/data").status == 0
    machine = cli.json("inspect", "first")
    with open(cli.state / "machines" / machine["VMMID"] / "supervisor.json") as file:
        pid = _supervisor_of(json.load(file)["control_socket"])
    os.kill(pid, signal.SIGKILL)
    result = fake.run("-d", "--name", "next", "-v", "data:/data")
    assert result.status == 0, result.describe()
    assert fake.state("first") == "lost"
    assert not runs(machine["Pid"]["Pid"])
    cli.ok("rm", "-f", "first", "next")


def test_fsck_names_damaged_volumes_and_changes_nothing(fake: Fake) -> None:
    cli = fake.cli
    for name in ("whole", "cut", "blank", "faulty", "nameless", "other"):
        cli.ok("volume", "create", name, "--size", "64m")
    folder = cli.state / "volumes"
    (folder / ".stage-left").mkdir()
    assert cli.ok("fsck") == ""
    os.truncate(folder / "cut/disk.ext4", 32 << 20)
    for name, offset, words in (("blank", 0, bytes(4096)), ("faulty", 1024 + 0x3A, b"\x03\0")):
        with open(folder / name / "disk.ext4", "r+b") as disk:
            disk.seek(offset)
            disk.write(words)
    (folder / "nameless/volume.json").write_text("{")
    (folder / "other/volume.json").write_bytes((folder / "whole/volume.json").read_bytes())
    result = cli.run("fsck", "--repair")
    assert result.status == 1, result.describe()
    assert [line.partition(": ")[0] for line in result.stdout.splitlines()] == [
        f"volume {name}" for name in ("blank", "cut", "faulty", "nameless", "other")
    ]
    for fault in ("no ext4", "record says 67108864", "found errors", "cannot be read", "that of `whole`"):
        assert fault in result.stdout, result.describe()
    assert not (folder / ".stage-left").exists()
    assert (folder / "cut/disk.ext4").stat().st_size == 32 << 20
    (folder / ".stage-left").mkdir()
    cli.ok("gc")
    assert not (folder / ".stage-left").exists()


def test_disks_grow_while_nobody_has_them(fake: Fake) -> None:
    cli = fake.cli
    assert fake.run("-d", "--name", "grown", "--disk-size", "64m", "-v", "data:/data").status == 0
    assert "stop it first" in cli.refused("update", "grown", "--disk-size", "128m").stderr
    assert "in use by the machine grown" in cli.refused("volume", "update", "data", "--size", "9g").stderr
    cli.ok("stop", "grown")
    assert cli.refused("update", "grown").status == 125
    assert "only become larger" in cli.refused("update", "grown", "--disk-size", "32m").stderr
    cli.ok("update", "grown", "--disk-size", "128m")
    shown = cli.json("inspect", "grown")
    assert shown["Configs"]["Machine"]["DiskSize"] == 128 << 20
    disk = next(drive["PathOnHost"] for drive in shown["Drivers"] if drive["DriveID"] == "upper")
    assert os.stat(disk).st_size == 128 << 20
    assert "only become larger" in cli.refused("volume", "update", "data", "--size", "1g").stderr
    cli.ok("volume", "update", "data", "--size", "9g")
    assert cli.json("volume", "inspect", "data")["Size"] == 9 << 30
    cli.ok("rm", "grown")
    cli.ok("volume", "rm", "data")


def test_files_of_the_user_are_disks(fake: Fake, tmp_path: Path) -> None:
    cli = fake.cli
    disk, odd = tmp_path / "disk", tmp_path / "odd"
    disk.write_bytes(bytes(1 << 20))
    odd.write_bytes(bytes(100))
    (tmp_path / "link").symlink_to(disk)
    started = fake.run("-d", "--name", "raw", "-v", "data:/x", "--disk", f"{tmp_path}/link", "--disk-iops", "50")
    assert started.status == 0, started.describe()
    drives = [(drive["DriveID"], drive["PathOnHost"]) for drive in cli.json("inspect", "raw")["Drivers"]][2:]
    assert drives == [("volume0", str(cli.state / "volumes/data/disk.ext4")), ("disk0", str(disk))]
    refusals = {
        f"{disk}:ro": "in use by the machine raw", str(odd): "whole sectors", "/dev/null": "neither a file",
        str(tmp_path / "no"): "does not exist", drives[0][1]: "belongs to firebuild", "": "names no disk",
    }  # fmt: skip
    for path, words in refusals.items():
        assert words in fake.run("-d", "--disk", path).stderr, path
    assert "at most 12" in fake.run("-d", *(f"--disk={disk}{number}" for number in range(13))).stderr
    assert "named twice" in fake.run("-d", "--disk", f"{disk}:ro", "--disk", f"{tmp_path}/link:ro").stderr
    cli.ok("rm", "-f", "raw")
    disk.unlink()
    assert cli.ok("volume", "rm", "data") == "data\n"


def _supervisor_of(control_socket: str) -> int:
    """The process whose configuration names that socket."""
    folder = Path(control_socket).parent.name
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"firebuild-supervisor") and any(folder.encode() in word for word in words):
                return int(entry.name)
    raise AssertionError(f"no supervisor of {folder}")
