"""Images pushed to a real registry and taken back; and what a real Docker makes of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.config.settings import load_settings
from firebuild.engine.bootable import push_bootable
from firebuild.engine.core import Engine
from firebuild.engine.disk_keys import root_disk_key
from firebuild.engine.image_export import export_image, save_images
from firebuild.images.skopeo import Access
from firebuild.images.transfer import parse_place
from tests.support.cli import Cli
from tests.support.fake_machines import Fake
from tests.support.registry import password_auth, start_registry, tree_tar, write_certificate

BUSYBOX = shutil.which("busybox")


@pytest.fixture
def cli(firebuild_cli: Cli, tmp_path: Path) -> Cli:
    """With `app:1`, an image that Docker can run: busybox says hello."""
    assert BUSYBOX is not None, "busybox-static is missing; run: ./dev setup"
    tree = tmp_path / "tree.tar"
    tree.write_bytes(tree_tar(b"hello", [("bin/busybox", Path(BUSYBOX).read_bytes())]))
    firebuild_cli.ok("image", "import", tree, "app:1", "--change", 'CMD ["/bin/busybox", "cat", "/etc/motd"]')
    return firebuild_cli


def test_a_registry_with_tls_and_passwords(cli: Cli, tmp_path: Path) -> None:
    """Login, push and pull with the digests kept, damage found and pulled again, logout. The password is nowhere to be read."""
    certificate = write_certificate(tmp_path)
    trust = {"SSL_CERT_FILE": str(certificate)}
    authfile = tmp_path / "auth.json"
    flags = ("--authfile", authfile, "--tls-verify")
    before = cli.json("image", "inspect", "app:1")[0]
    with start_registry(tmp_path / "registry", password_auth(tmp_path), tls=True) as port:
        host = f"127.0.0.1:{port}"
        login = ("login", host, *flags, "-u", "user", "--password-stdin")
        assert "no trusted connection" in cli.refused(*login, stdin="secret").stderr
        wrong = cli.refused(*login, stdin="wrong", environment=trust)
        assert "does not take this user name" in wrong.stderr and not authfile.exists()
        cli.ok("--debug", *login, stdin="secret\n", environment=trust)
        assert not any(
            "secret" in word for result in cli.transcript for word in (*result.argv, result.stdout, result.stderr)
        )

        name = f"{host}/team/app:1"
        digest = cli.ok("image", "push", "--compression", "keep", *flags, "app:1", name, environment=trust).strip()
        assert digest == before["Digest"]
        gzip = cli.ok("image", "push", *flags, "app:1", f"{host}/team/app:gzip", environment=trust).strip()
        again = cli.ok("image", "push", *flags, "app:1", f"{host}/team/app:gzip", environment=trust).strip()
        assert gzip == again != digest
        cli.ok("image", "pull", *flags, name, environment=trust)
        cli.ok("image", "pull", *flags, f"{host}/team/app:gzip", environment=trust)
        assert cli.json("image", "inspect", name)[0]["Digest"] == digest
        back = cli.json("image", "inspect", f"{host}/team/app:gzip")[0]
        assert (back["Id"], back["ChainID"], back["Digest"]) == (before["Id"], before["ChainID"], gzip)

        layer = back["Layers"][0]["Digest"]
        blob = cli.state / "store" / "blobs" / "sha256" / layer[7:]
        content = bytearray(blob.read_bytes())
        content[len(content) // 2] ^= 1
        blob.chmod(0o600)
        blob.write_bytes(content)
        found = cli.run("fsck", "--repair")
        assert found.status == 1 and layer in found.stdout and "set aside as" in found.stdout, found.describe()
        assert f"{host}/team/app:gzip" in found.stdout and "pull" in found.stdout, found.describe()
        assert len(os.listdir(cli.state / "store" / "quarantine")) == 1
        cli.ok("image", "pull", *flags, f"{host}/team/app:gzip", environment=trust)
        assert cli.ok("fsck") == ""

        cli.ok("logout", host, "--authfile", authfile)
        assert "refuses access" in cli.refused("image", "pull", *flags, name, environment=trust).stderr
        assert "no credentials" in cli.refused("logout", host, "--authfile", authfile).stderr


@pytest.mark.parametrize("way", ["push", "save", "export"])
def test_what_is_on_its_way_out_stays_though_its_name_goes(
    firebuild_cli: Cli, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is removed and everything collected while the image, or its disk, is being read."""
    cli = Fake(firebuild_cli, tmp_path).cli
    tree = tmp_path / "tree.tar"
    tree.write_bytes(tree_tar())
    cli.ok("image", "import", tree, "app:1")
    seen: list[list[str]] = []

    def lose_the_name(*_: object) -> None:
        if not seen:
            cli.ok("image", "rm", "app:1")
            cli.ok("gc", "-a")
        seen.append(engine.disks.list_keys())

    with Engine(load_settings(cli.environment())[0]) as engine:
        image = engine.images.get_named("app:1")
        key, parameters = root_disk_key(engine, image.chain_id)
        with engine.disks.stage(engine.settings.root_disk_bytes) as staged:
            staged.publish(key, {"chain_id": image.chain_id, "parameters": parameters})
        if way == "push":
            with start_registry(tmp_path / "registry") as port:
                target = parse_place(f"127.0.0.1:{port}/team/app:1")
                # The first piece of the image that is told of; its disk goes after it.
                push_bootable(engine, "app:1", target, disk=True, kernel="", compression="gzip",
                              access=Access(), progress=lose_the_name)  # fmt: skip
        elif way == "save":
            save_images(
                engine, ["app:1"], tmp_path / "app.tar", archive_format="docker-archive", progress=lose_the_name
            )
        else:
            monkeypatch.setattr("firebuild.engine.image_export.export_tree", lose_the_name)
            export_image(engine, "app:1", tmp_path / "tree-out.tar")
        assert seen and all(key in keys for keys in seen)
    cli.ok("gc", "-a")
    with Engine(load_settings(cli.environment())[0]) as engine:
        assert key not in engine.disks.list_keys() and engine.disks.list_keys(), "with its end the image goes"


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[list[str]]:
    """A Docker of the test's own; without one that starts the test is skipped."""
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        pytest.skip("there is no dockerd here")
    folder = Path("/run") / f"fbd-{os.getpid()}"
    folder.mkdir()
    socket = f"unix://{folder}/d.sock"
    log = open(tmp_path / "dockerd.log", "wb")  # noqa: SIM115 - closed below
    daemon = subprocess.Popen(
        ["dockerd", "--data-root", tmp_path / "docker", "--exec-root", folder / "x", "--host", socket, "--pidfile",
         folder / "pid", "--bridge", "none", "--iptables=false", "--ip-masq=false", "--ip-forward=false"],
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        for _ in range(300):
            if daemon.poll() is not None:
                pytest.skip(f"dockerd does not start here: {(tmp_path / 'dockerd.log').read_text()[-500:]}")
            ready = subprocess.run(["docker", "--host", socket, "version"], capture_output=True)
            if ready.returncode == 0:
                break
        else:
            pytest.skip("dockerd never answered")
        yield ["docker", "--host", socket]
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)
        log.close()
        shutil.rmtree(folder)


def test_docker_runs_what_was_saved_and_pushed(cli: Cli, docker: list[str], tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = subprocess.run([*docker, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"docker {words}: {done.stdout}{done.stderr}"
        return done.stdout

    if not any(Path("/sys/fs/cgroup").iterdir()):
        pytest.skip("there are no control groups here, and Docker runs nothing without")
    before = cli.json("image", "inspect", "app:1")[0]
    identity = before["Id"]
    cli.ok("image", "save", "-o", tmp_path / "app.tar", "app:1")
    assert "app:1" in run("load", "-i", str(tmp_path / "app.tar"))
    assert json.loads(run("image", "inspect", "app:1"))[0]["Id"] == identity
    assert run("run", "--rm", "--network", "none", "app:1") == "hello"
    with start_registry(tmp_path / "registry") as port:
        name = f"127.0.0.1:{port}/team/app:1"
        cli.ok("image", "push", "app:1", name)
        run("pull", "-q", name)
        assert run("run", "--rm", "--network", "none", name) == "hello"
        # The other way round: what Docker saves and pushes comes in here as the same image.
        run("tag", "app:1", f"127.0.0.1:{port}/team/docker:1")
        run("push", "-q", f"127.0.0.1:{port}/team/docker:1")
        cli.ok("image", "pull", f"127.0.0.1:{port}/team/docker:1")
    run("save", "-o", str(tmp_path / "docker.tar"), "app:1")
    cli.ok("image", "rm", "app:1")
    assert cli.ok("image", "load", "-i", tmp_path / "docker.tar") == "Loaded image: app:1\n"
    for name in ("app:1", f"127.0.0.1:{port}/team/docker:1"):
        # Docker's own manifests have its configurations, which stay as they are.
        back = cli.json("image", "inspect", name)[0]
        assert (back["Id"], back["ChainID"], back["Config"]) == (identity, before["ChainID"], before["Config"])


def test_in_and_out_of_a_docker_itself(cli: Cli, docker: list[str]) -> None:
    """`docker-daemon:`: the image that Docker lists is the one that is here, and it comes back as the same."""
    host = {"DOCKER_HOST": docker[2]}
    before = cli.json("image", "inspect", "app:1")[0]
    cli.ok("image", "push", "app:1", "docker-daemon:app:daemon", environment=host)
    shown = subprocess.run([*docker, "image", "inspect", "app:daemon"], capture_output=True, check=True).stdout
    assert json.loads(shown)[0]["Id"] == before["Id"]
    assert "docker-daemon:none:1" in cli.refused("image", "pull", "docker-daemon:none:1", environment=host).stderr
    nobody = cli.refused(
        "image", "pull", "docker-daemon:app:daemon", environment={"DOCKER_HOST": "unix:///run/no.sock"}
    )
    assert "there is no Docker at `unix:///run/no.sock`" in nobody.stderr and "DOCKER_HOST" in nobody.stderr
    cli.ok("image", "pull", "docker-daemon:app:daemon", "back:1", environment=host)
    back = cli.json("image", "inspect", "back:1")[0]
    assert {key: back[key] for key in ("Id", "ChainID", "Config")} == {
        key: before[key] for key in ("Id", "ChainID", "Config")
    }
