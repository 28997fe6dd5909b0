"""File systems that a guest or a stranger wrote: e2fsck looks at them as nobody, and what is not clean is used by nobody."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from firebuild.errors import FirebuildError, StoreError
from firebuild.store.disk_check import check_disk
from tests.support.ledger import Watch

BLOCK = 4096


def make_disk(folder: Path) -> Path:
    """16 MiB with some files, as a build machine leaves it."""
    tree = folder / "tree"
    (tree / "below").mkdir(parents=True)
    for number in range(50):
        (tree / "below" / f"file{number}").write_bytes(bytes([number]) * 5000)
    disk = folder / "disk.ext4"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK), "-d", tree, disk, "16M"], check=True)
    return disk


def debugfs(command: str) -> Callable[[Path], None]:
    def change(disk: Path) -> None:
        subprocess.run(["debugfs", "-w", "-R", command, disk], check=True, capture_output=True)

    return change


def write_at(offset: int, data: bytes) -> Callable[[Path], None]:
    def change(disk: Path) -> None:
        with disk.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return change


# ext4's superblock stands at byte 1024 (kernel documentation, ext4, "Super Block").
DAMAGE: dict[str, Callable[[Path], None]] = {
    "no file system": write_at(0, os.urandom(64 << 10)),
    "zeros": write_at(0, bytes(1 << 20)),
    "another magic": write_at(1024 + 0x38, b"\0\0"),
    "not unmounted": write_at(1024 + 0x3A, b"\0\0"),
    "errors seen": write_at(1024 + 0x3A, b"\3\0"),
    "a feature of tomorrow": write_at(1024 + 0x60, b"\xff\xff\xff\xff"),
    "more blocks than bytes": write_at(1024 + 4, b"\xff\xff\xff\x7f"),
    "a block size of 2^60": write_at(1024 + 0x18, b"\x32\0\0\0"),
    "no inodes in a group": write_at(1024 + 0x28, bytes(4)),
    "group descriptors": write_at(BLOCK, b"\xff" * BLOCK),
    "a folder in itself": debugfs("ln below below/loop"),
    "a link count": debugfs("sif below/file1 links_count 7"),
    "a block of two files": debugfs("sif below/file1 block[0] 1"),
    "a free inode with a name": debugfs("clri below/file2"),
    "an extent tree without sense": debugfs("sif below/file3 block[1] 0xffffffff"),
    "an enormous file": debugfs("sif below/file4 size 0x7fffffffffff"),
    "no root": debugfs("clri /"),
    "no journal": debugfs("clri <8>"),
}  # fmt: skip


def test_a_clean_disk_passes_and_is_as_it_was(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    before = disk.read_bytes()
    check_disk(disk)
    assert disk.read_bytes() == before and stat.S_IMODE(disk.stat().st_mode) == 0o444


def test_damage_is_refused_and_not_repaired(tmp_path: Path) -> None:
    sound = make_disk(tmp_path)
    for name, change in DAMAGE.items():
        disk = tmp_path / "damaged.ext4"
        shutil.copyfile(sound, disk)
        change(disk)
        before = disk.read_bytes()
        with pytest.raises(StoreError, match="is not clean") as caught:
            check_disk(disk)
        assert disk.read_bytes() == before, name
        assert len(caught.value.details or "") < 10_000 and "\x1b" not in (caught.value.details or ""), name
        disk.unlink()


def test_noise_ends_in_a_verdict(tmp_path: Path) -> None:
    """Random bytes over metadata: clean, or not clean, and never a hang or a fault of ours."""
    sound, seed = make_disk(tmp_path).read_bytes(), random.randrange(1 << 32)
    print(f"seed {seed}")
    numbers, verdicts = random.Random(seed), []
    for _ in range(20):
        data = bytearray(sound)
        for _ in range(numbers.randrange(1, 40)):
            data[numbers.randrange(1024, 80 * BLOCK)] = numbers.randrange(256)
        disk = tmp_path / "noise.ext4"
        disk.unlink(missing_ok=True)
        disk.write_bytes(data)
        try:
            check_disk(disk)
            verdicts.append("clean")
        except FirebuildError as error:
            assert isinstance(error, StoreError)
            verdicts.append("not clean")
    assert "not clean" in verdicts


def test_e2fsck_has_no_rights_of_ours(private_folders: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in its place tells who it is: nobody, in no group, without capabilities, with bounds."""
    folder = private_folders.state
    told = folder / "told"
    told.touch()
    told.chmod(0o666)
    spy = folder / "e2fsck"
    asked = "id -u; id -G; grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/$$/status; ulimit -v; ulimit -t"
    spy.write_text(f"#!/bin/sh\n{{ {asked}; }} >{told}\n")
    spy.chmod(0o755)
    monkeypatch.setattr("firebuild.store.disk_check.get_program", _instead(spy))
    disk = folder / "disk"
    disk.write_bytes(b"x")
    check_disk(disk)
    lines = told.read_text().split("\n")
    assert lines[:2] == ["65534", "65534"], lines
    status = dict(line.split(":\t") for line in lines[2:6])
    assert status["CapEff"] == status["CapPrm"] == "0" * 16 and status["NoNewPrivs"] == "1"
    assert "unlimited" not in lines[6:8], lines


def _instead(spy: Path) -> Callable[..., str]:
    from firebuild.host.process import get_program

    return lambda name, *rest, **more: str(spy) if name == "e2fsck" else get_program(name, *rest, **more)
