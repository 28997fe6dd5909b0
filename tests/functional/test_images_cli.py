"""`firebuild image …` as users type it, in an empty state: nothing of this needs a machine."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from firebuild.images.archives import SavedImage, load_archive, write_archive
from firebuild.names import parse_reference
from firebuild.store.fsck import check_store
from firebuild.store.images import ImageStore
from tests.support.cli import Cli
from tests.support.registry import assert_nothing_staged, make_blobs, make_image, tree_tar
from tests.support.web import serve_web

DPKG = b"Package: tool\nStatus: install ok installed\nVersion: %s\nArchitecture: amd64\n\n"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with `app:1` and `app:2`, which differ in a file, a package and their configuration: made once, copied by each test."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "run").mkdir()
    made = Cli(folder / "state", folder / "run")
    first = folder / "one.tar"
    first.write_bytes(tree_tar(b"one", [("var/lib/dpkg/status", DPKG % b"1.0"), ("bin/tool", b"x" * 5000)]))
    made.ok("image", "import", "-q", first, "app:1", "--change", 'CMD ["/bin/tool"]', "-c", "ENV A=1", "-c", "ENV B=$A")
    second = folder / "two.tar"
    second.write_bytes(tree_tar(b"two", [("var/lib/dpkg/status", DPKG % b"2.0"), ("bin/more", b"y")]))
    made.ok("image", "import", second, "app:2", "-m", "second", "-c", "LABEL kind=test", "-c", "WORKDIR /srv")
    return folder / "state"


@pytest.fixture
def cli(firebuild_cli: Cli, stored: Path) -> Cli:
    """With the two images."""
    shutil.copytree(stored, firebuild_cli.state, symlinks=True, dirs_exist_ok=True)
    return firebuild_cli


def test_listed_and_inspected(cli: Cli) -> None:
    table = cli.ok("image", "ls")
    assert table.splitlines()[0].split() == ["REFERENCE", "ID", "KIND", "CREATED", "SIZE", "SHARED", "DISK"]
    assert len(table.splitlines()) == 3
    rows = [json.loads(line) for line in cli.ok("image", "ls", "--format", "json").splitlines()]
    assert [row["reference"] for row in rows] == ["app:1", "app:2"]
    assert rows[0]["size"] == len(tree_tar(b"one", [("a", DPKG), ("b", b"x" * 5000)])) and rows[0]["kind"] == "image"
    assert cli.ok("image", "ls", "-q").split() == [row["id"] for row in rows]
    assert cli.ok("image", "ls", "--format", "{{.Repository}} {{.Tag}}").split("\n")[0] == "app 1"
    for text, expected in (
        ("label=kind=test", ["app:2"]), ("label=kind", ["app:2"]), ("reference=app", ["app:1", "app:2"]),
        ("reference=*:1", ["app:1"]), ("kind=rootfs", []), ("until=1h", []), ("until=2100-01-01", ["app:1", "app:2"]),
    ):  # fmt: skip
        assert cli.ok("image", "ls", "--filter", text, "--format", "{{.Reference}}").split() == expected, text
    for wrong in ("size=3", "label", "kind=cat", "until=yesterday", "before=none:1"):
        cli.refused("image", "ls", "--filter", wrong)
    one, two = cli.json("image", "inspect", "app:1", rows[1]["id"][:19])
    assert one["Config"]["Cmd"] == ["/bin/tool"] and "B=1" in one["Config"]["Env"]
    assert two["Config"]["WorkingDir"] == "/srv" and two["RepoTags"] == ["app:2"]
    assert two["RepoDigests"] == [f"app@{two['Digest']}"]
    assert cli.ok("image", "inspect", "--format", "{{json .Config.Cmd}}", "app:1") == '["/bin/tool"]\n'
    assert "ConfigX" in cli.refused("image", "inspect", "--format", "{{.ConfigX}}", "app:1").stderr
    (entry,) = [json.loads(line) for line in cli.ok("image", "history", "--format", "json", "app:2").splitlines()]
    assert entry["Comment"] == "second" and entry["Size"] > 0


def test_differences(cli: Cli) -> None:
    found = cli.json("image", "diff", "--format", "json", "app:1", "app:2")
    assert {(change["kind"], change["path"]) for change in found["files"]} == {
        ("added", "/bin/more"), ("removed", "/bin/tool"), ("changed", "/etc/motd"), ("changed", "/var/lib/dpkg/status"),
    }  # fmt: skip
    assert found["packages"] == [{"name": "tool", "old": "1.0", "new": "2.0"}]
    assert {entry["key"] for entry in found["config"]} >= {"Cmd", "Labels", "WorkingDir"}
    text = cli.ok("image", "diff", "app:1", "app:2")
    assert "A /bin/more" in text and "package changed tool 1.0 -> 2.0" in text
    assert cli.ok("image", "diff", "app:1", "app:1") == ""


def test_names_come_and_go(cli: Cli) -> None:
    identity = cli.ok("image", "ls", "-q", "--filter", "reference=app:1").strip()
    cli.ok("image", "tag", identity, "team/app:x")
    assert "has 2 names" in cli.refused("image", "rm", identity[7:20]).stderr
    assert cli.ok("image", "rm", "team/app:x") == "team/app:x\n"
    cli.ok("image", "tag", "app:1", "team/app:x")
    assert set(cli.ok("image", "rm", "-f", identity[7:20]).split()) == {"app:1", "team/app:x"}
    assert "app:1" in cli.refused("image", "rm", "app:1").stderr
    both = cli.run("image", "rm", "none:1", "app:2")
    assert both.status == 1 and both.stdout == "app:2\n" and "none:1" in both.stderr
    plan = cli.ok("image", "prune", "--dry-run")
    assert plan.startswith("would remove 0 names, 0 disks, 6 blobs")
    assert cli.ok("image", "prune").startswith("Total reclaimed space: ")
    assert cli.ok("image", "prune", "--dry-run").startswith("would remove 0 names, 0 disks, 0 blobs")


def test_prune_of_named_images_asks_first(cli: Cli) -> None:
    assert "--force" in cli.refused("image", "prune", "--all").stderr
    assert cli.ok("image", "prune", "-a", "-n", "--filter", "label!=kind").startswith("app:1\nwould remove 1 name")
    cli.refused("image", "prune", "--filter", "until=1h")
    cli.ok("image", "prune", "-af", "--filter", "label=kind=test")
    assert cli.ok("image", "ls", "--format", "{{.Reference}}") == "app:1\n"
    cli.ok("image", "prune", "-af")
    assert cli.ok("image", "ls", "-q") == "" and cli.ok("fsck") == ""


@pytest.mark.parametrize("archive_format", ["oci-archive", "docker-archive"])
def test_saved_and_loaded(cli: Cli, tmp_path: Path, archive_format: str) -> None:
    before = cli.json("image", "inspect", "app:1", "app:2")
    archive = tmp_path / "images.tar"
    cli.ok("image", "save", "-o", archive, "--format", archive_format, "app:1", "app:2")
    assert "exists already" in cli.refused("image", "save", "-o", archive, "app:1").stderr
    with open(tmp_path / "stdout.tar", "wb") as file:
        subprocess.run([*cli._argv(["image", "save", "--format", archive_format, "app:1", "app:2"])],
                       env=cli.environment(), stdout=file, check=True)  # fmt: skip
    assert (tmp_path / "stdout.tar").read_bytes() == archive.read_bytes()
    cli.ok("image", "prune", "-af")
    with open(archive, "rb") as file:
        done = subprocess.run(cli._argv(["image", "load"]), env=cli.environment(), stdin=file, capture_output=True)
    assert done.stdout == b"Loaded image: app:1\nLoaded image: app:2\n", done.stderr
    cli.ok("image", "load", "-i", archive)
    after = cli.json("image", "inspect", "app:1", "app:2")
    keys = ["Id", "RepoTags", "Config", "RootFS", "Size", *(["Digest"] if archive_format == "oci-archive" else [])]
    assert [{key: image[key] for key in keys} for image in after] == [
        {key: image[key] for key in keys} for image in before
    ]
    listing = subprocess.run(["skopeo", "inspect", f"oci:{cli.state}/store:docker.io/library/app:2"],
                             capture_output=True, check=True)  # fmt: skip
    assert json.loads(listing.stdout)["Digest"] == after[1]["Digest"]
    assert cli.ok("fsck") == ""


def test_places_of_every_kind(cli: Cli, tmp_path: Path) -> None:
    digest = cli.json("image", "inspect", "app:1")[0]["Digest"]
    for target in (f"oci:{tmp_path}/layout:x", f"oci-archive:{tmp_path}/a.tar:x"):
        assert cli.ok("image", "push", "--compression", "keep", "app:1", target).strip() == digest
        cli.ok("image", "pull", target, "back:1")
        assert cli.json("image", "inspect", "back:1")[0]["Digest"] == digest
    assert cli.ok("image", "push", "app:1", f"oci:{tmp_path}/gzip:x").strip() != digest
    assert "no name" in cli.refused("image", "pull", f"oci:{tmp_path}/layout").stderr
    cli.refused("image", "pull", f"oci:{tmp_path}/none:x", "back:2")


def test_import_from_a_url_and_from_a_pipe(firebuild_cli: Cli) -> None:
    with serve_web() as web:
        web.pages["/tree.tar"] = tree_tar(b"from afar")
        firebuild_cli.ok("image", "import", f"{web.url}/tree.tar", "far:1")
        refused = firebuild_cli.refused("image", "import", f"{web.url}/none.tar", "far:2")
    assert "404" in refused.stderr
    assert firebuild_cli.ok("image", "ls", "--format", "{{.Reference}}") == "far:1\n"
    for change in ("RUN true", "COPY a b", "FROM x", "CMD\nUSER 0", ""):
        firebuild_cli.refused("image", "import", "-", "far:3", "--change", change, stdin="")
    for name in ("../x:1", "a/../b", "ä:1", "a" * 300, "UPPER:1"):
        firebuild_cli.refused("image", "import", "-", name, stdin="")
    assert firebuild_cli.ok("image", "ls", "-q").count("sha256:") == 1


def write_tar(path: Path, files: dict[str, object]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_archives_that_lie(firebuild_cli: Cli, tmp_path: Path) -> None:
    """Each is refused in a sentence, and nothing of it is left."""
    cli = firebuild_cli
    blobs = make_blobs(tmp_path / "store")
    image = make_image(blobs, tmp_path, "made:1", tree_tar(os.urandom(100_000)))
    good = io.BytesIO()
    saved = SavedImage(image.manifest_digest, image.config.rootfs.diff_ids, [parse_reference("made:1")])
    write_archive([saved], blobs, good.write, archive_format="oci-archive")
    data = good.getvalue()
    layer = image.layers[0].digest[7:]
    at = data.index(layer.encode()) + 5000
    wrong = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + "0" * 64, "size": 3}
    index = {"schemaVersion": 2, "manifests": [wrong]}
    loop = json.dumps({"manifests": [{**wrong, "platform": {"os": "linux", "architecture": "amd64"}}]}).encode()
    hostile: dict[str, bytes] = {
        "flipped": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        "cut": data[: at + 100],
        "no tar": b"hello" * 1000,
        "empty": b"",
        "another layer": data.replace(layer.encode(), b"0" * 64),
        "no image": write_tar(tmp_path / "x", {"etc/passwd": b"root"}).read_bytes(),
        "no blob": write_tar(tmp_path / "x", {"oci-layout": {}, "index.json": index}).read_bytes(),
        "no entry": write_tar(tmp_path / "x", {"oci-layout": {}, "index.json": {"manifests": []}}).read_bytes(),
        "path for a digest": write_tar(
            tmp_path / "x", {"oci-layout": {}, "index.json": {"manifests": [{**wrong, "digest": "sha256:../../etc"}]}}
        ).read_bytes(),
        "manifest of another digest": write_tar(
            tmp_path / "x", {"oci-layout": {}, "index.json": index, "blobs/sha256/" + "0" * 64: loop}
        ).read_bytes(),
        "docker's, empty": write_tar(tmp_path / "x", {"manifest.json": []}).read_bytes(),
        "docker's, outside": write_tar(
            tmp_path / "x", {"manifest.json": [{"Config": "../../etc/passwd", "RepoTags": ["a:1"], "Layers": []}]}
        ).read_bytes(),
        "huge index": write_tar(tmp_path / "x", {"oci-layout": {}, "index.json": b" " * (5 << 20)}).read_bytes(),
    }
    for name, content in hostile.items():
        (tmp_path / "hostile.tar").write_bytes(content)
        result = cli.run("image", "load", "-i", tmp_path / "hostile.tar")
        assert result.status == 1 and "archive" in result.stderr and "Traceback" not in result.stderr, (name, result)
    assert cli.ok("image", "ls", "-q") == ""
    assert os.listdir(cli.state / "store" / "ingest") == []
    assert cli.ok("fsck") == ""


def test_a_layer_that_is_not_what_the_configuration_says(tmp_path: Path, firebuild_cli: Cli) -> None:
    """All digests of the archive fit, and the configuration lies about what is in the layer."""
    blobs = make_blobs(tmp_path / "store")
    image = make_image(blobs, tmp_path, "made:1")
    lie = ImageStore(blobs).load_image(image.manifest_digest)
    lie.config.rootfs.diff_ids = ["sha256:" + "1" * 64]  # type: ignore[list-item]
    lying = ImageStore(blobs).commit_image(lie.config, image.layers, [parse_reference("made:2")])
    archive = io.BytesIO()
    write_archive([SavedImage(lying.manifest_digest, lie.config.rootfs.diff_ids, [parse_reference("made:2")])],
                  blobs, archive.write, archive_format="oci-archive")  # fmt: skip
    (tmp_path / "lie.tar").write_bytes(archive.getvalue())
    result = firebuild_cli.refused("image", "load", "-i", tmp_path / "lie.tar")
    assert "expected the diff id sha256:1111" in result.stderr
    assert firebuild_cli.ok("image", "ls", "-q") == ""


def test_a_compressed_archive_of_docker(tmp_path: Path) -> None:
    """What Docker before 25 writes has no layout in it: skopeo reads that; compressed archives are uncompressed first."""
    blobs = make_blobs(tmp_path / "store")
    tree = tree_tar()
    image = make_image(blobs, tmp_path, "made:1", tree)
    config = blobs.read(image.config_digest)
    name = image.config_digest[7:]
    manifest = [{"Config": f"{name}.json", "RepoTags": ["made:1"], "Layers": ["one/layer.tar"]}]
    write_tar(tmp_path / "old.tar", {"manifest.json": manifest, f"{name}.json": config, "one/layer.tar": tree})
    subprocess.run(["gzip", tmp_path / "old.tar"], check=True)
    other = make_blobs(tmp_path / "other")
    (moved,) = load_archive(tmp_path / "old.tar.gz", other)
    assert moved.names == ["made:1"]
    assert ImageStore(other).load_image(moved.manifest_digest).chain_id == image.chain_id
    assert_nothing_staged(other)
    assert check_store(other).clean
