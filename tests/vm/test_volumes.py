"""Volumes with real guests: filled from the image, kept over crash, stop and start, shared by readers; folders of the host."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.cli import Cli
from tests.vm.conftest import BASE

SEEDED = "/usr/share/doc/base-files"
SCRIPT = (
    f"echo life >> /data/lives; sync; wc -l < /data/lives; ls {SEEDED}; grep /dev/vdc /proc/mounts; exec sleep 1000000"
)


def test_volumes_outlive_machines_and_crashes(cli: Cli) -> None:
    read = ("run", "--rm", "--network", "none", "-v", "vt-data:/mnt:ro", "--from", BASE, "--", "/bin/sh", "-c")
    cli.ok("volume", "create", "vt-data", "--size", "64m")
    cli.ok(
        "run", "-d", "--network", "none", "--name", "vt", "--stop-timeout", "1", "-v", "vt-data:/data",
        "--mount", f"type=volume,source=vt-doc,target={SEEDED}", "--from", BASE, "--", "/bin/sh", "-c", SCRIPT,
    )  # fmt: skip
    cli.await_output("vt", "/dev/vdc")
    first = cli.ok("logs", "vt").splitlines()
    assert first[:-1] == ["1", "FAQ", "copyright"] and " /data ext4 rw,nosuid,nodev" in first[-1]
    # Nothing was left of mke2fs(8), and the root's own disk does not hold the data.
    assert cli.ok("exec", "vt", "--", "ls", "-A", "/data") == "lives\n"
    cli.ok("kill", "--signal", "KILL", "vt")
    refused = cli.refused(*read, "true")
    assert "was not unmounted in order" in refused.stderr and "without `:ro`" in refused.stderr, refused.describe()
    cli.ok("update", "vt", "--disk-size", "20g")
    cli.ok("volume", "update", "vt-data", "--size", "160m")
    # The kernel replays the journal for a machine that may write.
    cli.ok("start", "vt")
    cli.await_output("vt", "2")
    # Both disks were made larger since.
    sizes = cli.ok("exec", "vt", "--", "df", "-m", "--output=size", "/", "/data").split()[1:]
    assert int(sizes[0]) > 18_000 and 100 < int(sizes[1]) <= 160, sizes
    cli.ok("exec", "vt", "--", "rm", f"{SEEDED}/FAQ")
    assert "in use by the machine vt" in cli.refused(*read, "true").stderr
    cli.ok("stop", "vt")
    seen = cli.run(*read, "cat /mnt/lives; touch /mnt/x || exit 7")
    assert (seen.status, seen.stdout) == (7, "life\nlife\n"), seen.describe()
    cli.ok("rm", "vt")
    # What is not empty is not filled again.
    cli.ok("volume", "rm", "vt-data")
    assert cli.ok(
        "run", "--rm", "--network", "none", "-v", f"vt-doc:{SEEDED}", "--from", BASE, "--", "ls", SEEDED,
    ) == "copyright\n"  # fmt: skip
    assert cli.ok("volume", "prune", "-f").splitlines()[0] == "vt-doc"


def test_a_folder_goes_in_and_comes_back(cli: Cli, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    for name in ("same", "both", "gone", "sub/changed"):
        (work / name).write_text("host\n")
        os.chown(work / name, 1000, 1000)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    script = "cd /work && echo guest > both && echo guest > sub/changed && rm gone && echo guest > new && sync && sleep 1000000"
    result = cli.run(
        "run", "-d", "--network", "none", "--name", "vt-folder", "-v", "./work:/work", "--sync-back", "--disk", "./disk",
        "--disk-iops", "1000", "--from", BASE, "--",
        "/bin/sh", "-c", script, cwd=tmp_path,
    )  # fmt: skip
    assert result.status == 0 and "cannot share a folder" in result.stderr, result.describe()
    cli.ok("exec", "vt-folder", "--", "/bin/sh", "-c", "until test -s /work/new; do sleep 0.1; done; sync")
    cli.ok("exec", "vt-folder", "--", "/bin/sh", "-c", "echo mark > /dev/vdd; sync /dev/vdd")
    assert disk.read_bytes().startswith(b"mark\n")
    (work / "both").write_text("changed here\n")
    # Killed: the helper's kernel replays the journal.
    cli.ok("kill", "--signal", "KILL", "vt-folder")
    assert "not copied back yet" in cli.refused("rm", "vt-folder").stderr
    told = cli.run("wait", "vt-folder")
    assert "both has changed on the host too" in told.stderr, told.describe()
    machine = cli.json("inspect", "vt-folder")["VMMID"]
    assert {str(path.relative_to(work)): path.read_text() for path in work.rglob("*") if path.is_file()} == {
        "same": "host\n", "both": "changed here\n", f"both.{machine}": "guest\n", "gone": "host\n", "new": "guest\n",
        "sub/changed": "guest\n",
    }  # fmt: skip
    assert (work / "sub/changed").stat().st_uid == 1000
    cli.ok("rm", "vt-folder")
