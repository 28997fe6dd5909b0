"""The main job with a real guest: a Dockerfile becomes a running server that a real client talks to, and then nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

from tests.conftest import ROOT
from tests.support.cli import BUILD_TIMEOUT_S, PROGRAM, Cli, find_free_port
from tests.vm.conftest import BASE, SharedState


def redis(host: str, port: int, *words: str) -> str:
    """What a real redis-cli prints."""
    command = ["redis-cli", "-h", host, "-p", str(port), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def address_of(cli: Cli, name: str) -> str:
    """The machine's own address, from the key that the original's users read it from."""
    address: str = cli.json("inspect", name)["NetworkInterfaces"][0]["StaticConfiguration"]["IPConfiguration"]["IP"]
    return address


def test_redis_from_dockerfile_to_purge(cli: Cli, redis_image: str) -> None:
    port = find_free_port()
    machine_id = cli.ok("run", "-d", "--name", "redis1", "--from", redis_image, "-p", f"127.0.0.1:{port}:6379").strip()
    assert len(machine_id) == 20 and machine_id.isalnum()

    cli.await_output("redis1", "Ready to accept connections")
    assert redis("127.0.0.1", port, "PING") == "PONG"
    assert redis("127.0.0.1", port, "SET", "greeting", "hello") == "OK"
    assert redis(address_of(cli, "redis1"), 6379, "GET", "greeting") == "hello"

    listed = json.loads(cli.ok("ls", "--format", "json"))
    assert (listed["id"], listed["running"], listed["image"]) == (machine_id, True, redis_image)
    assert "Ready to accept connections" in cli.ok("logs", "redis1", "--tail", "5")
    assert cli.ok("exec", "redis1", "--", "id", "-un").strip() == "redis"
    assert cli.ok("exec", "redis1", "--", "pwd").strip() == "/var/lib/redis"

    kernel = cli.ok("exec", "redis1", "--", "uname", "-r").strip()
    assert kernel != os.uname().release
    assert kernel in cli.ok("kernel", "ls")

    cli.ok("kill", "redis1")
    assert machine_id not in cli.ok("ls")
    cli.ok("purge")
    assert machine_id not in cli.ok("ls", "-a")
    assert "clean" in cli.run("fsck").stderr


def test_exec_with_a_terminal(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "terminal1", "--from", BASE, "--", "/bin/sleep", "infinity")
    # script(1) gives the command a terminal: a test has none.
    command = f"{PROGRAM} exec -it terminal1 -- sh -c 'tty; stty size'"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        env=cli.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    # script(1) passes its end of input on as a control character, which a terminal that is not raw yet echoes before.
    assert "/dev/pts/" in done.stdout.splitlines()[0], done.stdout
    assert cli.run("exec", "-it", "terminal1", "--", "true").status == 125  # no terminal here


def test_exec_hands_on_streams_and_statuses(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "exec1", "-e", "COLOUR=green", "--from", BASE, "--", "/bin/sleep", "infinity")
    both = cli.run("exec", "exec1", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (both.status, both.stdout, both.stderr) == (7, "out\n", "err\n")
    assert cli.ok("exec", "-i", "exec1", "--", "tr", "a-z", "A-Z", stdin="hello\n") == "HELLO\n"
    assert cli.ok("exec", "exec1", "--", "printenv", "COLOUR") == "green\n"
    assert cli.ok("exec", "exec1", "--", "cat", "/etc/hostname") == "exec1\n"
    assert cli.run("exec", "exec1", "--", "no-such-program").status == 127
    assert cli.run("exec", "exec1", "--", "/etc/hostname").status == 126


def test_a_run_in_the_foreground_has_the_entrypoints_output_and_status(cli: Cli) -> None:
    result = cli.run("run", "--rm", "--name", "front1", "--from", BASE, "--", "/bin/sh", "-c", "echo hello; exit 3")
    assert (result.status, result.stdout) == (3, "hello\n"), result.describe()
    assert "front1" not in cli.ok("ls", "-a")


def test_a_machine_that_ended_by_itself_tells_so(cli: Cli) -> None:
    cli.ok(
        "run",
        "-d",
        "--name",
        "short1",
        "--from",
        BASE,
        "--",
        "/bin/sh",
        "-c",
        "echo last words; read x </dev/null; exit 5",
    )
    assert "last words" in cli.ok("logs", "--follow", "short1")
    cli.ok("kill", "short1")
    ended = next(
        item
        for item in map(json.loads, cli.ok("ls", "-a", "--format", "json").splitlines())
        if item["name"] == "short1"
    )
    assert (ended["running"], ended["exit-code"]) == (False, 5)


def test_the_second_build_is_all_cached_and_boots_nothing(cli: Cli, redis_image: str) -> None:
    before = cli.json("image", "inspect", redis_image)
    # There is no such VMM: the build would fail if it needed a machine.
    again = cli.run(
        "rootfs", "--dockerfile", ROOT / "examples" / "redis" / "Dockerfile", "--tag", redis_image,
        environment={"FIREBUILD_BINARY_FIRECRACKER": "/nonexistent"}, timeout_s=BUILD_TIMEOUT_S,
    )  # fmt: skip
    assert again.status == 0, again.describe()
    assert cli.json("image", "inspect", redis_image)[0]["Id"] == before[0]["Id"]


def test_the_image_says_what_the_dockerfile_says(cli: Cli, redis_image: str) -> None:
    config = cli.json("image", "inspect", redis_image)[0]["Config"]
    assert config["Entrypoint"] == ["redis-server"]
    assert config["Cmd"] == ["/etc/redis/redis.conf"]
    assert (config["User"], config["WorkingDir"]) == ("redis", "/var/lib/redis")
    assert "6379/tcp" in config["ExposedPorts"]
    assert "REDIS_HOME=/var/lib/redis" in config["Env"]


def test_the_view_of_root_file_systems(shared_state: SharedState, redis_image: str) -> None:
    folder = shared_state.state / "rootfs" / "examples" / "redis" / "7"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["Type"], metadata["Tag"]) == ("rootfs", redis_image)
    assert metadata["EntrypointInfo"]["Cmd"] == ["/etc/redis/redis.conf"]
    assert (folder / "rootfs").stat().st_size > 0


def test_export_writes_the_whole_tree(cli: Cli, redis_image: str, tmp_path: Path) -> None:
    file = tmp_path / "redis.tar"
    cli.ok("image", "export", redis_image, "-o", file, timeout_s=BUILD_TIMEOUT_S)
    with tarfile.open(file) as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    assert {"etc/debian_version", "etc/redis/redis.conf", "usr/bin/redis-server"} <= names


def test_a_guest_resolves_names_and_reaches_the_outside(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "net1", "--from", BASE, "--", "/bin/sleep", "infinity")
    assert address_of(cli, "net1") in cli.ok("exec", "net1", "--", "getent", "hosts", "net1")
    # What its package manager does is what "reaches package mirrors" means.
    updated = cli.run("exec", "-u", "root", "net1", "--", "apt-get", "update", timeout_s=BUILD_TIMEOUT_S)
    assert updated.status == 0, updated.describe()
