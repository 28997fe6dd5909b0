"""The path view as users read it: in step with the names of the store through every command and after crashes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import Fake

PACKAGE = """
from pathlib import Path
class Elsewhere:
    string_properties = ("target",)
    integer_properties = ("depth",)
    def __init__(self, place, strings, integers):
        self.target, self.kernel_folder = Path(strings["target"]), place.kernels
    def check(self):
        pass
    def publish(self, reference, metadata, disk):
        (self.target / metadata.image.image).write_text(f"{metadata.tag} {disk}")
    def withdraw(self, reference):
        (self.target / reference.path.rpartition("/")[2]).unlink(missing_ok=True)
    def list_published(self):
        return {}
"""


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def read_view(folder: Path) -> Any:
    return json.loads((folder / "metadata.json").read_text())


def test_tag_and_rm_keep_it_in_step(fake: Fake) -> None:
    root = fake.cli.state / "rootfs"
    fake.cli.ok("image", "tag", "test/app:1", "debian:bookworm-slim")
    folder = root / "_/debian/bookworm-slim"
    shown = read_view(folder)
    assert (shown["Type"], shown["Tag"], shown["Image"]) == (
        "rootfs", "debian:bookworm-slim", {"Org": "_", "Image": "debian", "Version": "bookworm-slim"},
    )  # fmt: skip
    assert shown["EntrypointInfo"]["Cmd"] == ["/bin/app"] and shown["Parent"] is None
    assert shown["ManifestDigest"] == fake.cli.json("image", "inspect", "test/app:1")[0]["Digest"]
    disk = (folder / "rootfs").resolve()
    assert disk.is_relative_to(fake.cli.state / "disks") and disk.stat().st_mode & 0o777 == 0o444
    fake.cli.ok("image", "rm", "debian:bookworm-slim")
    assert not (root / "_").exists() and (root / "test/app/1/metadata.json").exists()


def test_an_image_without_a_disk_has_metadata_only(fake: Fake, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    fake.cli.ok("image", "import", tmp_path / "base.tar", "imported:1")
    folder = fake.cli.state / "rootfs/_/imported/1"
    assert os.listdir(folder) == ["metadata.json"]
    assert read_view(folder)["DiskKey"] == ""


@pytest.mark.parametrize("command", ["fsck", "gc", "purge"])
def test_whatever_happened_to_it_the_next_command_mends_it(fake: Fake, command: str) -> None:
    root = fake.cli.state / "rootfs"
    fake.cli.ok("image", "tag", "test/app:1", "other/app:2")
    # The stand-in's first name was shown before it had a disk.
    fake.cli.ok("purge")
    good = {path: path.read_bytes() for path in root.glob("*/*/*/metadata.json")}
    assert len(good) == 2
    shutil.rmtree(root / "other")
    (root / "test/app/1/metadata.json").write_text("{")
    (root / "test/app/1/rootfs").unlink()
    (root / "gone/app/3").mkdir(parents=True)
    (root / "gone/app/3/metadata.json").write_bytes(next(iter(good.values())))
    fake.cli.ok(command, *(["--repair"] if command == "fsck" else []))
    assert {path: path.read_bytes() for path in root.glob("*/*/*/metadata.json")} == good
    assert all((path.parent / "rootfs").exists() for path in good)
    assert not (root / "gone").exists()


def test_a_provider_of_another_package(fake: Fake, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "elsewhere-1.dist-info"
    info.mkdir(parents=True)
    (site / "elsewhere.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[firebuild.storage_providers]\nelsewhere = elsewhere:Elsewhere\n")
    target = tmp_path / "target"
    target.mkdir()
    path = {"PYTHONPATH": str(site)}
    flags = ("--storage-provider=elsewhere", f"--storage-provider-property-string=target={target}")
    fake.cli.ok("profile-create", "--profile=p", *flags, environment=path)
    fake.cli.ok("image", "tag", "test/app:1", "other/thing:2", "--profile=p", environment=path)
    assert (target / "thing").read_text().startswith("other/thing:2 /")
    fake.cli.ok("image", "rm", "other/thing:2", *flags, environment=path)
    assert not (target / "thing").exists()
    refused = fake.cli.refused("image", "ls", "--storage-provider=elsewher", environment=path)
    assert "there are: directory, elsewhere" in refused.stderr
    missing = fake.cli.refused("image", "ls", *flags, "--storage-provider-property-string=depth=1", environment=path)
    assert "it has `target`" in missing.stderr
