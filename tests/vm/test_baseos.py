"""Base operating systems with a real Debian: from packages through a registry to a machine that boots whole, and an image built upon it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.baseos import ensure_tree, start_mirror
from tests.support.cli import BUILD_TIMEOUT_S, Cli
from tests.vm.conftest import CACHE, SharedState

DOCKERFILE = ROOT / "baseos" / "_" / "debian" / "bookworm" / "Dockerfile"
# Not the session's base image: that one stays what it is for the other tests.
NAME = "debian:bookworm"
STORED = "baseos.internal/debian:bookworm"
SERVICE = """FROM debian:bookworm
RUN useradd --create-home worker
USER worker
WORKDIR /home/worker/data
ENV COLOUR=green
STOPSIGNAL SIGUSR1
COPY <<EOF /usr/local/bin/work
#!/bin/sh
trap 'echo asked to stop; exit 7' USR1
echo "working as $(id -un) in $(pwd): $COLOUR"
while :; do sleep 0.2; done
EOF
CMD ["sh", "/usr/local/bin/work"]
"""


@pytest.fixture(scope="module")
def mirror(shared_state: SharedState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which docker.io is a registry on loopback that has Debian."""
    folder = tmp_path_factory.mktemp("mirror")
    tree = ensure_tree(CACHE, "bookworm", BUILD_TIMEOUT_S)
    cli = shared_state.cli()
    with start_mirror(folder) as (port, environment):
        cli.ok("image", "import", tree, f"127.0.0.1:{port}/library/{NAME}", timeout_s=BUILD_TIMEOUT_S)
        cli.ok("image", "push", f"127.0.0.1:{port}/library/{NAME}", timeout_s=BUILD_TIMEOUT_S)
        cli.ok("image", "rm", f"127.0.0.1:{port}/library/{NAME}")
        yield environment


@pytest.fixture(scope="module")
def baseos(shared_state: SharedState, mirror: dict[str, str]) -> str:
    """What the command says about Debian's base operating system, built from the file that is shipped."""
    result = shared_state.cli().run(
        "baseos", "--dockerfile", DOCKERFILE, "--filesystem-size-mbs", "700", environment=mirror, timeout_s=BUILD_TIMEOUT_S
    )  # fmt: skip
    assert result.status == 0, result.describe()
    return result.stderr


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SSH key; the public one has .pub behind it."""
    file = tmp_path_factory.mktemp("keys") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True, timeout=60)
    return file


def test_it_is_stored_beside_the_image_that_it_stands_for(cli: Cli, shared_state: SharedState, baseos: str) -> None:
    assert STORED in baseos and f"take it for {NAME}" in baseos
    assert f"FROM docker.io/library/{NAME}" in baseos
    listed = {
        item["reference"]: item["kind"]
        for item in map(json.loads, cli.ok("image", "ls", "--format", "json").splitlines())
    }
    assert (listed[STORED], listed[NAME]) == ("baseos", "image")
    config = cli.json("image", "inspect", STORED)[0]["Config"]
    assert config["Labels"] == {"org.firebuild.init": "system", "org.firebuild.user": "debian"}
    metadata = json.loads((shared_state.state / "rootfs" / "_" / "debian" / "bookworm" / "metadata.json").read_text())
    # Shown where the image's name says, and of the two that one which FROM takes.
    assert (metadata["Type"], metadata["Tag"]) == ("baseos", NAME)


def ssh(cli: Cli, machine: str, identity: Path, command: str) -> str:
    """What a command prints that is run over the machine's own sshd, by the image's user."""
    return cli.ok("ssh", "-i", identity, machine, "--", command)


def test_a_machine_is_a_whole_system(cli: Cli, baseos: str, identity: Path) -> None:
    cli.ok(
        "run",
        "-d",
        "--name",
        "base1",
        "--from",
        NAME,
        "-e",
        "GREETING=hello there",
        "--identity-file",
        f"{identity}.pub",
    )
    assert cli.ok("exec", "base1", "--", "systemctl", "is-system-running", "--wait") == "running\n"
    assert cli.ok("exec", "base1", "--", "cat", "/proc/1/comm") == "systemd\n"
    machine = cli.json("inspect", "base1")
    address = machine["NetworkInterfaces"][0]["StaticConfiguration"]["IPConfiguration"]["IP"]

    # By SSH: the user of the image, its keys, its way to root, and the run's environment in a login shell.
    lines = ssh(
        cli, "base1", identity, "id -un; sudo id -un; getent hosts base1; bash -lc 'echo $GREETING'"
    ).splitlines()
    assert lines == ["debian", "root", f"{address:15} base1", "hello there"]
    assert ssh(cli, "base1", identity, "stat -c '%a %U' ~/.ssh ~/.ssh/authorized_keys") == "700 debian\n600 debian\n"

    # Nobody comes in with a password, over SSH or on the console.
    shadow = cli.ok("exec", "base1", "--", "cut", "-d:", "-f1,2", "/etc/shadow")
    assert all(line.split(":")[1][0] in "!*" for line in shadow.splitlines()), shadow
    assert cli.ok("exec", "base1", "--", "systemctl", "is-active", "console-getty.service") == "active\n"
    identifier = cli.ok("exec", "base1", "--", "cat", "/etc/machine-id").strip()
    assert len(identifier) == 32 and identifier.strip("0")
    assert cli.ok("exec", "base1", "--", "ls", "/etc/ssh/ssh_host_ed25519_key.pub")

    cli.ok("stop", "base1")
    assert cli.json("inspect", "base1")["State"] | {"CreatedAtUTC": 0, "ReadyAtUTC": 0, "EndedAtUTC": 0} == {
        "Status": "stopped", "ExitCode": 0, "Reason": "exit", "CreatedAtUTC": 0, "ReadyAtUTC": 0, "EndedAtUTC": 0,
        "Health": None,
    }  # fmt: skip


def test_an_entrypoint_is_a_service_of_the_init(cli: Cli, baseos: str, mirror: dict[str, str], context: Path) -> None:
    (context / "Dockerfile").write_text(SERVICE)
    built = cli.run("rootfs", context, "--tag", "tests/service:1", "--progress", "plain", timeout_s=BUILD_TIMEOUT_S)
    assert built.status == 0, built.describe()
    assert f"the stored base operating system {STORED}" in built.stderr
    checked = cli.run("rootfs", context, "--base-policy", "registry", "--check", environment=mirror)
    assert STORED not in checked.stdout + checked.stderr

    cli.ok("run", "-d", "--name", "service1", "--from", "tests/service:1")
    cli.await_output("service1", "working as worker in /home/worker/data: green")
    assert cli.ok("exec", "service1", "--", "id", "-un") == "worker\n"
    status = cli.ok(
        "exec", "-u", "root", "service1", "--", "systemctl", "show", "-p", "ActiveState", "firebuild-entrypoint"
    )
    assert status == "ActiveState=active\n"
    assert "working as worker" in cli.ok(
        "exec", "-u", "root", "service1", "--", "journalctl", "-u", "firebuild-entrypoint"
    )

    # Started again by the init, at a user's wish: the machine goes on.
    cli.ok("exec", "-u", "root", "service1", "--", "systemctl", "restart", "firebuild-entrypoint")
    assert cli.ok("logs", "service1").count("asked to stop") == 1

    # Its end is the machine's: stop signal, exit status, an orderly way down.
    cli.ok("stop", "service1")
    assert cli.json("inspect", "service1")["State"]["ExitCode"] == 7
    assert cli.ok("logs", "service1").count("asked to stop") == 2


def test_an_image_without_an_init(cli: Cli, context: Path) -> None:
    refused = cli.refused("run", "-d", "--name", "noinit1", "--init", "system", "--from", "debian:bookworm-slim")
    assert "/sbin/init" in refused.stderr
    assert "noinit1" not in cli.ok("ls", "-a")
    # Nor is it called a system when it becomes a base operating system.
    (context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    stored = cli.run("baseos", "--tag", "tests/noinit:1", context, timeout_s=BUILD_TIMEOUT_S)
    assert stored.status == 0 and "brings no init" in stored.stderr, stored.describe()
    (shown,) = cli.json("image", "inspect", "baseos.internal/tests/noinit:1")
    assert "org.firebuild.init" not in (shown["Config"].get("Labels") or {})
