"""`cp` both ways with a real guest: one machine shows all of Docker's rules that matter."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

from tests.support.cli import Cli
from tests.vm.conftest import BASE


def test_files_and_trees_go_in_and_come_back(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_text("hello\n")
    (source / "l").symlink_to("a")
    (source / "sub" / "big").write_bytes(os.urandom(3 << 20))
    os.chown(source / "a", 1234, 1234)
    cli.ok("run", "-d", "--name", "copy1", "--from", BASE, "--", "/bin/sleep", "1000000")
    guest = ("exec", "copy1", "--", "/bin/sh", "-c")
    cli.ok("cp", source, "copy1:/opt")
    assert cli.ok(*guest, "cat /opt/source/l; stat -c %u /opt/source/a") == "hello\n0\n"
    cli.ok("cp", "-a", f"{source}/.", "copy1:/srv")
    assert cli.ok(*guest, "stat -c %u /srv/a; ls /srv") == "1234\na\nl\nsub\n"
    cli.ok("cp", source / "a", "copy1:/srv/new")
    cli.ok("cp", "-L", source / "l", "copy1:/srv/sub/")
    assert cli.ok(*guest, "cat /srv/new /srv/sub/l; stat -c %F /srv/sub/l") == "hello\nhello\nregular file\n"
    assert "is a folder" in cli.refused("cp", source, "copy1:/srv/new").stderr
    assert "does not exist" in cli.refused("cp", source / "a", "copy1:/no/such").stderr

    cli.ok("cp", "copy1:/opt/source", tmp_path / "back")
    assert subprocess.run(["diff", "-r", source, tmp_path / "back"]).returncode == 0
    assert (tmp_path / "back" / "a").stat().st_uid == 0
    assert (tmp_path / "back" / "l").readlink() == Path("a")
    cli.ok("cp", "-a", "copy1:/srv/a", tmp_path / "back")
    assert (tmp_path / "back" / "a").stat().st_uid == 1234
    cli.ok(*guest, "mkdir /odd && cd /odd && mkfifo f && echo x > s && chmod 6755 s && truncate -s 16M hole")
    told = cli.run("cp", "copy1:/odd", tmp_path)
    assert told.status == 0 and "FIFO" in told.stderr, told.describe()
    assert {path.name for path in (tmp_path / "odd").iterdir()} == {"s", "hole"}
    assert (tmp_path / "odd" / "s").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "odd" / "hole").stat().st_blocks < 100

    # A tar of this text is text.
    sent = cli.ok("cp", "copy1:/srv/a", "-")
    with tarfile.open(fileobj=io.BytesIO(sent.encode())) as archive:
        assert [(member.name, member.uid) for member in archive] == [("a", 1234)]
    cli.ok("cp", "-", "copy1:/mnt", stdin=sent)
    assert cli.ok(*guest, "cat /mnt/a; stat -c %u /mnt/a") == "hello\n1234\n"
    assert "not a plain tar" in cli.refused("cp", "-", "copy1:/mnt", stdin="no tar" * 200).stderr
    cli.ok("kill", "copy1")
    cli.ok("cp", source / "a", "copy1:/late")
    cli.ok("cp", "copy1:/late", tmp_path / "late")
    assert (tmp_path / "late").read_text() == "hello\n"
    assert cli.json("inspect", "copy1")["State"]["Status"] == "stopped"
    cli.ok("rm", "-f", "copy1")
