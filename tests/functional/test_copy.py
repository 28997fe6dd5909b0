"""`cp` against a guest that lies: the real CLI, a scripted guest."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import Fake
from tests.support.fake_vmm import Script


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def make_tar(*names: str) -> str:
    """A tar in hex; a name that ends with `/` is a folder, `a->b` a link, others are files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for text in names:
            name, arrow, target = text.partition("->")
            info = tarfile.TarInfo(name)
            if arrow:
                info.type, info.linkname = tarfile.SYMTYPE, target
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info)
    return buffer.getvalue().hex()


def test_what_a_guest_sends_lands_below_the_target_or_not_at_all(fake: Fake, tmp_path: Path) -> None:
    target = tmp_path / "outer" / "target"
    target.mkdir(parents=True)
    good = make_tar("data/", "data/file")
    hostile = [
        make_tar("data/", "../evil"), make_tar("data/", "/evil"), make_tar("evil"), make_tar(),
        make_tar("data/", f"data/l->{tmp_path}/outer", "data/l/evil"), "ff" * 600, good[:600], good + "-",
    ]  # fmt: skip
    for number, data in enumerate(hostile):
        name = f"m{number}"
        assert fake.run("-d", "--name", name, script=Script(copy_out=data)).status == 0
        result = fake.cli.refused("cp", f"{name}:/data", target)
        assert "evil" not in {path.name for path in tmp_path.rglob("*")}, result.describe()
        fake.cli.ok("rm", "-f", name)
    assert {path.name for path in (tmp_path / "outer").iterdir()} == {"target"}
    assert fake.run("-d", "--name", "good", script=Script(copy_out=good)).status == 0
    fake.cli.ok("cp", "good:/data", target)
    assert (target / "data" / "file").is_file()
    (target / "link").symlink_to(tmp_path)
    assert "is a link to a folder" in fake.cli.refused("cp", "good:/data", target / "link").stderr
    assert "does not exist" in fake.cli.refused("cp", "good:/data", tmp_path / "no" / "such").stderr
    assert "unsupported-op" not in fake.cli.refused("cp", tmp_path / "no", "good:/data").stderr
    for wrong in (("good:/a", "good:/b"), ("a", "b"), ("good:", "b"), ("-", "-")):
        assert fake.cli.refused("cp", *wrong).status == 125
    fake.cli.ok("kill", "good")
    # The helper of an ended machine is a guest like another; nothing of it stays.
    environment = fake.environment(Script(copy_out=make_tar("data/", "data/late")))
    result = fake.cli.run("cp", "good:/data", target, environment=environment)
    assert result.status == 0 and "a helper machine" in result.stderr, result.describe()
    assert (target / "data" / "late").is_file()
    environment = fake.environment(Script(failed="no root"))
    assert "no root" in fake.cli.run("cp", "good:/data", target, environment=environment).stderr
    assert fake.cli.ok("ls", "-a", "-q").split() == [fake.cli.json("inspect", "good")["VMMID"]]
    assert len(list((fake.cli.state / "machines").iterdir())) == 1
    fake.cli.ok("rm", "good")
