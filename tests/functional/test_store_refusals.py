"""What is damaged (rotten bits, truncation, empty metadata, edits by hand) or of a newer version: refused or named in a sentence,
the rest of the store unharmed."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import Fake
from tests.support.registry import tree_tar

COMMANDS = (("ls",), ("image", "ls"), ("gc",), ("purge",), ("run", "--from", "test/app:1", "--network", "none"))


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def test_a_newer_database_is_refused_by_every_command_that_reads_it(fake: Fake) -> None:
    path = fake.cli.state / "firebuild.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    for command in COMMANDS:
        if command != ("image", "ls"):
            refused = fake.cli.refused(*command).stderr
            assert (
                "has schema version 99; this firebuild knows" in refused
                and "use the firebuild that wrote it" in refused
            )
    assert path.read_bytes() == before


def test_a_newer_store_is_refused_and_left_alone(fake: Fake) -> None:
    marker = fake.cli.state / "store/oci-layout"
    marker.unlink()
    marker.write_text('{"imageLayoutVersion":"2.0.0"}')
    index = (fake.cli.state / "store/index.json").read_bytes()
    for command in (("image", "ls"), ("gc",), ("fsck",), ("image", "rm", "test/app:1")):
        assert "has layout version `2.0.0`; this firebuild knows 1.0.0" in fake.cli.refused(*command).stderr
    assert (fake.cli.state / "store/index.json").read_bytes() == index


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schemaVersion":2,"manifests":[{}]}', b"\0" * 100])
def test_an_index_that_does_not_parse_is_named(fake: Fake, content: bytes) -> None:
    index = fake.cli.state / "store/index.json"
    index.write_bytes(content)
    for command in (("image", "ls"), ("image", "tag", "a:1", "b:1"), ("gc",)):
        refused = fake.cli.refused(*command).stderr
        assert f"the store's index `{index}` is damaged" in refused, refused
    assert index.read_bytes() == content
    report = fake.cli.run("fsck")
    assert report.status == 1 and "is damaged" in report.stdout


@pytest.mark.parametrize("content", [b"", b"{", b'{"key":"x"}', b'{"version":2}'])
def test_a_disks_metadata_that_does_not_parse_is_set_aside_by_fsck(fake: Fake, content: bytes) -> None:
    (record,) = (fake.cli.state / "disks").glob("*/disk.json")
    record.chmod(0o600)
    record.write_bytes(content)
    refused = fake.run("-d", "--name", "m")
    assert refused.status == 125 and f"the disk `{record.parent}` is damaged" in refused.stderr, refused.describe()
    report = fake.cli.run("fsck", "--repair")
    assert report.status == 1 and f"disk {record.parent.name}: " in report.stdout and "(removed)" in report.stdout
    assert not record.parent.exists() and fake.cli.ok("fsck") == ""


def test_a_disk_of_a_newer_version_is_told_apart(fake: Fake) -> None:
    (record,) = (fake.cli.state / "disks").glob("*/disk.json")
    text = record.read_text().replace("{", '{"version":7,', 1)
    record.chmod(0o600)
    record.write_text(text)
    assert "its metadata has version 7; this firebuild knows 1" in fake.run("-d", "--name", "m").stderr


def test_a_damaged_image_harms_no_other(fake: Fake, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    fake.cli.ok("image", "import", tmp_path / "base.tar", "good:1")
    shown = fake.cli.json("image", "inspect", "test/app:1")[0]
    blob = fake.cli.state / "store/blobs/sha256" / shown["Digest"].removeprefix("sha256:")
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:-5])
    refused = fake.cli.refused("run", "--from", "test/app:1").stderr
    assert "the image `test/app:1` is damaged" in refused and shown["Digest"] in refused
    listed = fake.cli.run("image", "ls")
    assert "good" in listed.stdout and "test/app:1" in listed.stderr
    assert fake.cli.json("image", "inspect", "good:1")
    assert fake.cli.run("fsck", "--repair").status == 1
    assert blob.name in " ".join(path.name for path in (fake.cli.state / "store/quarantine").iterdir())
    assert "damaged" in fake.cli.refused("gc").stderr, "what it holds cannot be known"
    fake.cli.ok("image", "rm", "test/app:1")
    fake.cli.ok("gc")
    assert fake.cli.ok("fsck") == ""


def test_whoever_meets_a_damaged_blob_is_told_what_mends_it(firebuild_cli: Cli, tmp_path: Path) -> None:
    """One bit of a layer, its size as before: nothing of it goes out. Whoever brings the layer again mends it, and says so."""
    cli = firebuild_cli
    tree = tmp_path / "tree.tar"
    for name in ("other", "app"):
        tree.write_bytes(tree_tar(name.encode() * 1000))
        cli.ok("image", "import", tree, f"{name}:1")
    cli.ok("image", "push", "--compression", "keep", "app:1", f"oci:{tmp_path / 'whole'}:app")
    (layer,) = cli.json("image", "inspect", "app:1")[0]["Layers"]
    blob = cli.state / "store/blobs/sha256" / layer["Digest"].removeprefix("sha256:")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)
    # What was found out of layers before is not read again: here nothing is known.
    for known in cli.state.rglob("layer-sizes.json"):
        known.unlink()
    for command in (
        ("image", "save", "--format", "oci-archive", "-o", tmp_path / "a.tar", "app:1"),
        ("image", "save", "--format", "docker-archive", "-o", tmp_path / "b.tar", "app:1"),
        ("image", "push", "--compression", "keep", "app:1", f"oci:{tmp_path / 'c'}:app"),
        ("image", "push", "app:1", f"oci:{tmp_path / 'd'}:app"),
        ("image", "diff", "other:1", "app:1"),
        ("image", "history", "app:1"),
    ):
        refused = cli.refused(*command).stderr
        assert f"the blob {layer['Digest']} is damaged" in refused and "firebuild fsck --repair" in refused, refused
    assert not list(tmp_path.glob("[ab].tar"))
    pulled = cli.run("image", "pull", f"oci:{tmp_path / 'whole'}:app", "again:1")
    assert pulled.status == 0 and f"the blob {layer['Digest']} was damaged" in pulled.stderr, pulled.describe()
    (aside,) = (cli.state / "store/quarantine").iterdir()
    assert aside.read_bytes() == content and str(aside) in pulled.stderr
    assert cli.ok("fsck") == "" and cli.ok("image", "history", "app:1")
    assert cli.ok("image", "diff", "app:1", "again:1") == ""


def test_without_open_files_a_command_says_so_and_does_all_or_nothing(firebuild_cli: Cli, tmp_path: Path) -> None:
    """From too few to begin with to enough: each is an error in a sentence, or done."""
    tree = tmp_path / "tree.tar"
    tree.write_bytes(tree_tar())
    firebuild_cli.ok("image", "import", tree, "app:1")
    ends = set()
    for limit in range(5, 12):
        few = replace(firebuild_cli, prefix=("prlimit", f"--nofile={limit}"))
        for command in (
            ("image", "import", tree, f"new:{limit}"),
            ("image", "tag", "app:1", f"tagged:{limit}"),
            ("gc",),
        ):
            done = few.run(*command)
            ends.add(done.status)
            assert done.status in (0, 1) and "Traceback" not in done.stderr, done.describe()
            assert done.status == 0 or "open" in done.stderr.partition("error: ")[2], done.describe()
            if command[0] == "image":
                there = firebuild_cli.run("image", "inspect", str(command[-1])).status == 0
                assert there == (done.status == 0), done.describe()
    assert ends == {0, 1}
    assert firebuild_cli.ok("fsck") == "" and not list((firebuild_cli.state / "store/ingest").iterdir())
