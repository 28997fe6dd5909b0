"""Profiles as a user meets them: the article's commands, isolation, and storage providers of other packages."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.cli import Cli, find_free_port
from tests.support.fake_machines import Fake
from tests.support.fake_vmm import Script

EMULATOR = Path(sys.executable).with_name("firecracker-emulator")


def make_folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def create(cli: Cli, root: Path, name: str = "standard") -> str:
    """The article's command, its backslashes and all but the paths."""
    return cli.ok(
        "profile-create", f"--profile={name}", f"--binary-firecracker={EMULATOR}", "--binary-jailer=/bin/true",
        f"--chroot-base={root}/jail", f"--run-cache={root}/cache", "--storage-provider=directory",
        f"--storage-provider-property-string=rootfs-storage-root={root}/rootfs",
        f"--storage-provider-property-string=kernel-storage-root={root}/kernels",
    )  # fmt: skip


def test_the_articles_commands(firebuild_cli: Cli, tmp_path: Path) -> None:
    make_folders(tmp_path, "jail", "cache", "rootfs", "kernels")
    create(firebuild_cli, tmp_path)
    assert firebuild_cli.ok("profile-ls", "-q").split() == ["default", "standard"]
    shown = firebuild_cli.json("profile-inspect", "--profile=standard")
    assert shown == firebuild_cli.json("profile", "inspect", "standard")
    assert (shown["RunCache"], shown["ChrootBase"]) == (f"{tmp_path}/cache", f"{tmp_path}/jail")
    # The same name again changes what is given and keeps the rest.
    firebuild_cli.ok("profile-create", "--profile=standard", "--boot-timeout=77")
    changed = firebuild_cli.json("profile-inspect", "--profile=standard")["Settings"]
    assert changed == {**shown["Settings"], "boot-timeout": "77"}
    # The test's own FIREBUILD_STATE would win over the profile: an empty variable counts as none.
    unset = {"FIREBUILD_STATE": "", "FIREBUILD_RUN": ""}
    rows = firebuild_cli.ok("config", "show", "--profile=standard", "--format=json", environment=unset).splitlines()
    found = {row["name"]: (row["value"], row["origin"]) for row in map(json.loads, rows)}
    file = firebuild_cli.profiles / "standard.toml"
    assert found["profile"] == ("standard", "flag --profile")
    assert found["boot-timeout"] == (77.0, f"profile standard ({file}:8)")
    assert found["run-cache"] == (f"{tmp_path}/cache", f"profile standard ({file}:3)")
    assert found["cni-bin-dir"][1] == "default"
    firebuild_cli.ok("profile-create", "--profile=standard", "--overwrite", "--boot-timeout=78")
    assert firebuild_cli.json("profile-inspect", "--profile=standard")["Settings"] == {"boot-timeout": "78"}
    firebuild_cli.ok("profile", "use", "standard")
    assert json.loads(firebuild_cli.ok("config", "show", "--format=json").splitlines()[0])["value"] == "standard"
    firebuild_cli.ok("profile", "rm", "standard")
    assert firebuild_cli.ok("profile-ls", "-q").split() == ["default"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--chroot-base={root}/none", "there is no folder `{root}/none`"),
        ("--run-cache={root}/file", "there is no folder `{root}/file`"),
        ("--storage-provider-property-string=rootfs-storage-root={root}/none", "`{root}/none` is not a folder"),
        ("--storage-provider.directory.kernel-storage-root={root}/none", "`{root}/none` is not a folder"),
        ("--binary-firecracker={root}/none", "there is no program `{root}/none`"),
        ("--binary-jailer={root}/file", "`{root}/file` cannot be executed"),
        ("--cni-bin-dir={root}:{root}/none", "there is no folder `{root}/none`"),
        ("--storage-provider=s3", "there is no storage provider `s3`"),
        ("--storage-provider-property-string=root=/x", "has no property `root`"),
        ("--storage-provider-property-int64=depth=1", "has no property `depth`"),
        ("--storage-provider-property-int64=depth=x", "flag --storage-provider-property-int64"),
        ("--tracing-enable", "--tracing-enable: this firebuild sends no traces"),
        ("--chroot-base={root}/" + "d" * 80, "the kernel takes 107"),
        ("--profile=../x", "is not a profile name"),
    ],
)
def test_what_does_not_exist_is_refused_and_nothing_changes(
    firebuild_cli: Cli, tmp_path: Path, flag: str, words: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / ("d" * 80)).mkdir()
    arguments = [flag.format(root=tmp_path)]
    if not flag.startswith("--profile"):
        arguments.append("--profile=p")
    assert words.format(root=tmp_path) in firebuild_cli.refused("profile-create", *arguments).stderr
    assert firebuild_cli.ok("profile", "ls", "-q").split() == ["default"]


def test_profiles_share_no_folder(firebuild_cli: Cli, tmp_path: Path) -> None:
    make_folders(tmp_path, "jail", "cache", "rootfs", "kernels")
    create(firebuild_cli, tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    taken = firebuild_cli.refused("profile", "create", "other", f"--run-cache={tmp_path}/link")
    assert "(run cache) is the run cache of the profile `standard`" in taken.stderr
    root = f"--storage-provider.directory.rootfs-storage-root={tmp_path}/rootfs"
    assert "`standard`" in firebuild_cli.refused("profile", "create", "other", root).stderr
    # And where no profile says so, the folder itself does.
    (tmp_path / "rootfs/.firebuild").write_text(f"{tmp_path}/cache\n")
    assert f"belongs to the state folder `{tmp_path}/cache`" in firebuild_cli.refused("kernel", "ls", root).stderr


def test_the_same_machine_in_two_profiles(firebuild_cli: Cli, tmp_path: Path) -> None:
    """Two profiles know nothing of each other's machines; a host port, which they share, is refused by name."""
    fakes = {}
    for name in ("one", "two"):
        root = firebuild_cli.state / name
        make_folders(root, "c", "i")
        run = firebuild_cli.run_folder / name
        run.mkdir()
        cli = Cli(root / "c", run)
        cli.profiles.mkdir()
        cli.ok("profile-create", f"--profile={name}", f"--run-cache={root}/c", f"--chroot-base={run}")
        folder = tmp_path / name
        folder.mkdir()
        fakes[name] = Fake(cli, folder)
    for name, each in fakes.items():
        started = each.run("-d", "--name", "same", "--profile", name, script=Script())
        assert started.status == 0, started.describe()
    for name, each in fakes.items():
        assert each.cli.json("inspect", "same")["Profile"] == name
        assert len(each.cli.ok("ls", "-q").split()) == 1
        busy = each.cli.refused("profile", "rm", name)
        assert f"the profile `{name}` has machines: same" in busy.stderr
    fakes["one"].cli.ok("kill", "same")
    assert fakes["two"].state("same") == "running"
    port = find_free_port()
    published = ("-p", f"127.0.0.1:{port}:80")
    first = fakes["one"].run("-d", "--name", "web", *published, script=Script(), network="machines")
    assert first.status == 0, first.describe()
    second = fakes["two"].run("-d", "--name", "web", *published, script=Script(), network="machines")
    assert second.status == 125 and f"the host port 127.0.0.1:{port}/tcp is already published by" in second.stderr
    for each in fakes.values():
        for name in each.cli.ok("ls", "-q").split():
            each.cli.ok("kill", name)
        each.cli.ok("purge")
        shutil.rmtree(each.cli.run_folder)
