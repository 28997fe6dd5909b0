"""Bad input to `run` and its neighbours: each a clear error that names the thing, and nothing is left."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.cli import Cli, find_free_port
from tests.vm.conftest import BASE, SharedState

SLEEP = ("--", "/bin/sleep", "infinity")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--from", "nobody/nothing:1"], "nobody/nothing:1"),
        (["--from", BASE, "--kernel", "vmlinux-none"], "vmlinux-none"),
        (["--from", BASE, "--network", "no-such-network"], "no-such-network"),
        (["--from", BASE, "--name", "not a name!"], "not a name!"),
        (["--from", BASE, "-p", "99999:80"], "99999"),
        (["--from", BASE, "-m", "1"], "1"),
        (["--from", BASE, "-m", "much"], "much"),
        (["--from", BASE, "--root-mode", "upside-down"], "upside-down"),
        (["--from", BASE, "--ip-address", "10.9.8.7"], "10.9.8.7"),
        (["--from", "Not A Reference"], "Not A Reference"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_cannot_be_met(cli: Cli, arguments: list[str], names: str) -> None:
    result = cli.refused("run", "-d", *arguments, *SLEEP)
    assert result.status == 125, result.describe()
    assert names in result.stderr, result.describe()


@pytest.mark.parametrize("verb", ["inspect", "logs", "kill", "stop", "rm"])
def test_an_unknown_machine(cli: Cli, verb: str) -> None:
    assert "no-such-machine" in cli.refused(verb, "no-such-machine").stderr


def test_exec_in_an_unknown_machine(cli: Cli) -> None:
    result = cli.refused("exec", "no-such-machine", "--", "true")
    assert result.status == 125
    assert "no-such-machine" in result.stderr


def test_an_unknown_command_and_a_near_one(cli: Cli) -> None:
    assert "rootfs" in cli.refused("rootsf").stderr


def test_a_port_that_a_program_of_the_host_has(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = cli.refused("run", "-d", "--name", "port1", "--from", BASE, "-p", f"127.0.0.1:{port}:80", *SLEEP)
    assert str(port) in result.stderr
    assert "port1" not in cli.ok("ls", "-a")


def test_a_port_and_a_name_that_another_machine_has(cli: Cli) -> None:
    port = find_free_port()
    cli.ok("run", "-d", "--name", "taken1", "--from", BASE, "-p", f"127.0.0.1:{port}:80", *SLEEP)
    same_port = cli.refused("run", "-d", "--name", "taken2", "--from", BASE, "-p", f"127.0.0.1:{port}:80", *SLEEP)
    assert str(port) in same_port.stderr
    same_name = cli.refused("run", "-d", "--name", "taken1", "--from", BASE, *SLEEP)
    assert "taken1" in same_name.stderr
    assert cli.ok("exec", "taken1", "--", "echo", "still here") == "still here\n"


def test_a_program_that_the_image_lacks(cli: Cli) -> None:
    result = cli.refused("run", "-d", "--name", "absent1", "--from", BASE, "--", "/no/such/program")
    assert "/no/such/program" in result.stderr
    assert "absent1" not in cli.ok("ls", "-a")


def test_a_user_that_the_image_lacks(cli: Cli) -> None:
    assert (
        "nosuchuser"
        in cli.refused("run", "-d", "--name", "user1", "--user", "nosuchuser", "--from", BASE, *SLEEP).stderr
    )


def test_qemu_is_missing(cli: Cli) -> None:
    # In a mount namespace of its own /dev/null, which nobody can execute, lies over the program.
    hide = 'for f in /usr/bin/qemu-system-x86_64 /usr/libexec/qemu-kvm; do [ ! -e "$f" ] || mount --bind /dev/null "$f"; done; exec "$@"'
    hidden = Cli(
        cli.state, cli.run_folder, prefix=("unshare", "--mount", "sh", "-c", hide, "sh"), transcript=cli.transcript
    )
    result = hidden.refused("run", "-d", "--name", "noqemu1", "--from", BASE, *SLEEP)
    assert "qemu-system-x86" in result.stderr
    assert "noqemu1" not in cli.ok("ls", "-a")


def test_the_cni_plugins_are_missing(cli: Cli, tmp_path: Path) -> None:
    result = cli.refused(
        "run", "-d", "--name", "nocni1", "--from", BASE, *SLEEP, environment={"FIREBUILD_CNI_BIN_DIR": str(tmp_path)}
    )
    assert "bridge" in result.stderr
    assert "nocni1" not in cli.ok("ls", "-a")


def test_there_is_no_kernel(firebuild_cli: Cli, shared_state: SharedState) -> None:
    firebuild_cli.ok("image", "import", shared_state.base_tarball, BASE)
    result = firebuild_cli.refused("run", "-d", "--from", BASE, *SLEEP)
    assert "kernel pull" in result.stderr


def test_a_socket_path_that_would_be_too_long(cli: Cli) -> None:
    long_folder = Path("/run") / ("fbt-" + "x" * 90)
    deep = Cli(cli.state, long_folder, transcript=cli.transcript)
    result = deep.refused("run", "-d", "--name", "deep1", "--from", BASE, *SLEEP)
    assert "107" in result.stderr and str(long_folder) in result.stderr
    # The folder itself may have been made; nothing of a machine may be in it.
    if long_folder.exists():
        (long_folder / "m").rmdir()
        long_folder.rmdir()


def test_a_kernel_that_is_none(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "vmlinux"
    file.write_text("no kernel")
    assert str(file) in cli.refused("kernel", "import", "--vmlinux", file).stderr
    assert str(tmp_path / "gone") in cli.refused("kernel", "import", "--vmlinux", tmp_path / "gone").stderr


def test_an_archive_that_is_none(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "base.tar"
    file.write_bytes(b"no archive" * 200)
    cli.refused("image", "import", file, "tests/none:1")
    cli.refused("image", "inspect", "tests/none:1")
