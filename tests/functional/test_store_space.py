"""Space: leases keep what is in use or in flight from a concurrent collection, removing works on a full disk, quotas and missing
room are told before work starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from firebuild.engine.disk_keys import root_disk_key
from firebuild.names import parse_reference
from firebuild.store.disks import Disk
from firebuild.store.images import Image, ImageConfig, RootFs
from tests.support.cli import Cli
from tests.support.fake_machines import Fake
from tests.support.fake_vmm import Script
from tests.support.full_disk import fill

LAYER = "application/vnd.oci.image.layer.v1.tar"
HOLDER = """
import sys
from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from firebuild.names import parse_reference
with Engine(load_settings()[0]) as engine, engine.use_store(adds=sys.argv[1] == "add"):
    engine.keep_image(lambda: engine.images.get_named("app:1"))
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cli(firebuild_cli: Cli) -> Cli:
    return firebuild_cli


def open_engine(cli: Cli) -> Engine:
    return Engine(load_settings(cli.environment())[0])


def make_image(engine: Engine, name: str, size: int = 1000) -> tuple[Image, Disk]:
    layer = engine.blobs.put(name.encode() + os.urandom(size), LAYER)
    config = ImageConfig("amd64", "linux", rootfs=RootFs(diff_ids=[layer.digest]))
    image = engine.images.commit_image(config, [layer], [parse_reference(name)])
    key, parameters = root_disk_key(engine, image.chain_id)
    with engine.disks.stage(engine.settings.root_disk_bytes) as staged:
        return image, staged.publish(key, {"chain_id": image.chain_id, "parameters": parameters})


def untag(cli: Cli, name: str) -> None:
    cli.ok("image", "rm", name)


@pytest.mark.parametrize("kind", ["add", "use"])
def test_what_a_living_process_uses_stays_and_a_dead_ones_goes(cli: Cli, kind: str) -> None:
    with open_engine(cli) as engine:
        image, disk = make_image(engine, "app:1")
        other, _ = make_image(engine, "other:1")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind], env=cli.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
        untag(cli, "app:1")
        untag(cli, "other:1")
        planned = cli.ok("gc", "--dry-run").replace("would remove", "removed")
        assert cli.ok("gc") == planned
        with open_engine(cli) as engine:
            assert disk.path.exists() and engine.images.load_image(image.manifest_digest)
            assert engine.blobs.has(other.layers[0].digest) == (kind == "add")
            assert not (engine.layout.disks / root_disk_key(engine, other.chain_id)[0]).exists()
    finally:
        holder.kill()
        holder.communicate()
    cli.ok("gc")
    with open_engine(cli) as engine:
        assert not disk.path.exists() and engine.blobs.list_digests() == []
        assert engine.database.query("SELECT * FROM leases") == []


def test_a_running_machines_base_stays(cli: Cli, tmp_path: Path) -> None:
    fake = Fake(cli, tmp_path)
    assert fake.run("-d", "--name", "m", script=Script()).status == 0
    with open_engine(cli) as engine:
        engine.images.untag(parse_reference("test/app:1"))
        (key,) = engine.disks.list_keys()
    assert cli.ok("gc", "-a").startswith("removed 0 disks")
    with open_engine(cli) as engine:
        assert engine.disks.list_keys() == [key]
    cli.ok("kill", "m")
    cli.ok("purge")
    assert cli.ok("gc", "-a").startswith("removed 1 disk,")


@pytest.fixture
def small(tmp_path: Path, private_folders: object, firebuild_cli: Cli) -> Iterator[Cli]:
    """A firebuild on a file system of 48 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=0711", "tmpfs", folder], check=True)
    try:
        yield Cli(folder, firebuild_cli.run_folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_removing_works_where_no_byte_is_free(small: Cli) -> None:
    with open_engine(small) as engine:
        make_image(engine, "app:1", 5 << 20)
        make_image(engine, "keep:1")
    small.ok("gc")
    assert (small.state / "reserve").stat().st_blocks * 512 == 2 << 20
    fill(small.state)
    assert "no space left" in small.refused("image", "tag", "keep:1", "more:1").stderr.lower()
    small.ok("image", "rm", "app:1")
    fill(small.state)
    removed = small.ok("gc")
    assert removed.startswith("removed 1 disk, 3 blobs, 0 cached steps: ") and removed.rstrip().endswith("MB")
    with open_engine(small) as engine:
        assert list(engine.images.list_references()) == ["docker.io/library/keep:1"]
    (small.state / "filler").unlink()
    small.ok("gc")
    assert (small.state / "reserve").exists() and small.ok("fsck") == ""


def test_missing_room_is_told_before_work_starts(small: Cli, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    with tarfile.open(tmp_path / "big.tar", "w") as archive:
        entry = tarfile.TarInfo("file")
        entry.size = 20 << 20
        with open("/dev/zero", "rb") as zero:
            archive.addfile(entry, zero)
    refused = small.refused("image", "import", tmp_path / "big.tar", "big:1").stderr
    assert "an import needs 52 MiB below" in refused and f"`{small.state}`" in refused and "MiB are free" in refused
    (small.state / "filler").write_bytes(b"x" * (20 << 20))
    for what, command in (
        ("a build", ("rootfs", "--dockerfile", tmp_path / "Dockerfile", "--tag", "x:1")),
        ("pulling x:1", ("image", "pull", "x:1")),
        ("starting a machine from x:1", ("run", "--from", "x:1")),
    ):
        refused = small.refused(*command).stderr
        assert f"{what} needs 32 MiB below `{small.state}`" in refused, refused
    assert small.ok("fsck") == ""


def add_step(engine: Engine, key: str, size: int, used: int) -> None:
    layer = engine.blobs.put(os.urandom(size), LAYER)
    engine.database.execute(
        "INSERT INTO steps (key, layer_digest, diff_id, layer_size, media_type, explain, created_at_ns, used_at_ns)"
        " VALUES (?, ?, ?, ?, ?, '{}', 0, ?)",
        (key, layer.digest, layer.digest, size, LAYER, used),
    )


def test_quotas_drop_the_oldest_steps_first_and_then_refuse(cli: Cli, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    with open_engine(cli) as engine:
        for number in (3, 1, 2):
            add_step(engine, f"{number}" * 64, 1 << 20, number)

    def list_steps() -> list[str]:
        with open_engine(cli) as engine:
            return [row["key"][0] for row in engine.database.query("SELECT key FROM steps ORDER BY key")]

    cli.ok("image", "import", tmp_path / "base.tar", "a:1", "--build-cache-quota=2m")
    assert list_steps() == ["2", "3"]
    cli.ok("image", "import", tmp_path / "base.tar", "b:1", "--store-quota=1200k")
    assert list_steps() == ["3"]
    refused = cli.refused("image", "import", tmp_path / "base.tar", "c:1", "--store-quota=1k").stderr
    assert "and its quota is 0 MiB" in refused and "--store-quota" in refused
    assert list_steps() == []


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/../b", "a\0", "ü/x:1", "x" * 300, "a:" + "t" * 129, "/abs", "a//b", "-x:1"]
)
def test_names_that_are_no_names_are_refused(cli: Cli, name: str) -> None:
    with open_engine(cli) as engine:
        make_image(engine, "app:1")
        before = engine.images.list_references()
    if "\0" in name:
        with pytest.raises(ValueError, match="null byte"):
            cli.run("image", "tag", "app:1", name)
    else:
        cli.refused("image", "tag", "app:1", "--", name)
    with open_engine(cli) as engine:
        assert engine.images.list_references() == before
