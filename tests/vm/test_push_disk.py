"""An image pushed with its disk and its kernel runs on another state of this host with nothing built, made or fetched elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.registry import start_registry

DOCKERFILE = 'FROM scratch\nCOPY busybox /bin/busybox\nCMD ["/bin/busybox", "echo", "from the registry"]\n'
# Small disks: this is about where they come from.
SETTINGS = {"FIREBUILD_ROOT_DISK": "64m"}


class SmallDiskCli(Cli):
    """With the settings above, and with every VMM counted: the emulator is started through a script that leaves a line."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **SETTINGS, "FIREBUILD_BINARY_FIRECRACKER": str(self.state.parent / "vmm")}

    def count_machines(self) -> int:
        return len((self.state.parent / "count").read_text().splitlines())


@pytest.fixture
def elsewhere() -> Iterator[SmallDiskCli]:
    """Another host, as far as firebuild can tell: a state of its own, and empty."""
    with (
        tempfile.TemporaryDirectory(prefix="fbpush-", dir="/var/tmp") as folder,
        tempfile.TemporaryDirectory(prefix="fbp-", dir="/run") as run,
    ):
        for path in (folder, run):
            Path(path).chmod(0o711)
        count = Path(folder) / "count"
        count.touch()
        count.chmod(0o666)
        script = Path(folder) / "vmm"
        emulator = Path(sys.executable).with_name("firecracker-emulator")
        script.write_text(f'#!/bin/sh\necho started >>{count}\nexec {emulator} "$@"\n')
        script.chmod(0o755)
        (Path(folder) / "state").mkdir(mode=0o711)
        cli = SmallDiskCli(Path(folder) / "state", Path(run))
        yield cli
        cli.clean()


def test_runs_from_the_registry_at_once(cli: Cli, elsewhere: SmallDiskCli, context: Path, tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, context / "busybox")
    (context / "Dockerfile").write_text(DOCKERFILE)
    built: dict[str, Any] = {"environment": SETTINGS}
    cli.ok("rootfs", context, "--tag", "pushed/app:1", **built)
    with start_registry(tmp_path / "registry") as port:
        name = f"127.0.0.1:{port}/team/app:1"
        digest = cli.ok("image", "push", "--disk", "--kernel", "default", "pushed/app:1", name, **built).strip()
        # A second push of another kind adds to the list, and one of the same kind replaces: two entries, both ours.
        assert cli.ok("image", "push", "--disk", "pushed/app:1", name, **built).strip() == digest
        listed = fetch(port, digest.replace(":", "-"))["manifests"]
        manifests = [fetch(port, entry["digest"]) for entry in listed]
        assert {manifest["artifactType"] for manifest in manifests} == {
            "application/vnd.firebuild.disk.v1", "application/vnd.firebuild.kernel.v1",
        } and len(manifests) == 2  # fmt: skip
        assert all(manifest["subject"]["digest"] == digest for manifest in manifests)

        done = elsewhere.run("run", "--rm", "--network", "none", name)
        assert done.status == 0 and done.stdout == "from the registry\n", done.describe()
        assert elsewhere.count_machines() == 1, "the machine itself, and none to build or to make a disk"
        (kernel,) = [json.loads(line) for line in elsewhere.ok("kernel", "ls", "--format", "json").splitlines()]
        assert name in kernel["source"]
        assert elsewhere.ok("fsck") == ""
        assert elsewhere.json("image", "inspect", name)[0]["Digest"] == digest

        # A disk of other parameters does not fit: said, and not taken.
        other: dict[str, Any] = {"environment": {"FIREBUILD_ROOT_DISK": "96m"}}
        refused = elsewhere.refused("image", "pull", "--disk", name, **other)
        assert "does not fit" in refused.stderr
        lie_about_the_disk(tmp_path / "registry", manifests)
        shutil.rmtree(elsewhere.state / "disks")
        refused = elsewhere.refused("image", "pull", "--disk", name)
        assert "damaged" in refused.stderr or "does not match" in refused.stderr, refused.describe()
        assert elsewhere.count_machines() == 1
        # By digest only the image is what was asked for: its disk is made here.
        elsewhere.ok("image", "rm", name)
        done = elsewhere.run("run", "--rm", "--network", "none", f"127.0.0.1:{port}/team/app@{digest}")
        assert done.stdout == "from the registry\n" and elsewhere.count_machines() == 3, done.describe()


def fetch(port: int, name: str) -> dict[str, Any]:
    kinds = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/team/app/manifests/{name}", headers={"Accept": kinds})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def lie_about_the_disk(registry: Path, manifests: list[dict[str, Any]]) -> None:
    """Change a byte of the disk's first chunk where the registry keeps it."""
    (layers,) = [each["layers"] for each in manifests if "disk" in str(each["artifactType"])]
    (data,) = (registry / "data").glob(f"**/{layers[0]['digest'][7:]}/data")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    with open(data, "r+b") as file:
        file.write(content)
        os.fsync(file.fileno())
