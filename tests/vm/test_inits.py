"""System mode beside inits other than systemd: the entrypoint as their service, exec, logs, restart, stop, exit status."""

from __future__ import annotations

import pytest

from tests.support.baseos import ensure_tree
from tests.support.cli import BUILD_TIMEOUT_S, Cli
from tests.support.terminal import at_terminal
from tests.vm.conftest import CACHE, SharedState

PACKAGES = {"sysvinit": ("sysvinit-core",), "openrc": ("openrc", "sysvinit-core")}
SCRIPT = """
trap 'echo asked to end; exit 8' TERM
echo "working as $(id -un) in $(pwd): $COLOUR"
test -e ended || { touch ended; echo ended too soon; exit 3; }
echo steady
while :; do sleep 0.2; done
"""


@pytest.fixture(scope="module", params=sorted(PACKAGES))
def image(request: pytest.FixtureRequest, shared_state: SharedState) -> str:
    """A Debian image with one of the inits, and nothing of firebuild's in it."""
    name: str = request.param
    tree = ensure_tree(CACHE, "bookworm", BUILD_TIMEOUT_S, PACKAGES[name])
    reference = f"tests/{name}:1"
    shared_state.cli().ok("image", "import", tree, reference, timeout_s=BUILD_TIMEOUT_S)
    return reference


def test_the_entrypoint_is_a_service_of_the_init(cli: Cli, image: str) -> None:
    cli.ok(
        "run", "-d", "--name", "init1", "--init", "system", "--restart", "on-failure:5", "--user", "nobody", "--workdir", "/var/tmp",
        "-e", "COLOUR=green",
        "--health-cmd", "echo $COLOUR; id -un", "--health-interval", "200ms", "--from", image, "--", "sh", "-c", SCRIPT,
    )  # fmt: skip
    assert cli.ok("exec", "-u", "root", "init1", "--", "cat", "/proc/1/comm") == "init\n"
    # It ends once, and is started again.
    cli.await_output("init1", "steady")
    life = "working as nobody in /var/tmp: green\n"
    assert cli.ok("logs", "init1") == f"{life}ended too soon\n{life}steady\n"
    assert cli.json("inspect", "init1")["RestartCount"] == 1
    assert cli.ok("exec", "init1", "--", "id", "-un") == "nobody\n"

    # Its health is checked by the service.
    cli.ok("wait", "--for", "healthy", "init1")
    assert cli.json("inspect", "init1")["State"]["Health"]["Log"][-1]["Output"] == "green\nnobody\n"

    # Asked to end, it is not started again: that is the machine's end, by way of the init.
    cli.ok("stop", "init1")
    assert cli.ok("logs", "init1").endswith("steady\nasked to end\n")
    ended = cli.json("inspect", "init1")
    assert (ended["State"]["ExitCode"], ended["State"]["Status"], ended["RestartCount"]) == (8, "stopped", 1)


@pytest.mark.parametrize("image", ["sysvinit"], indirect=True)  # its shutdown is OpenRC's on Debian too
def test_the_init_may_end_the_machine(cli: Cli, image: str) -> None:
    check = ("--health-cmd", "test -e /run/firebuild/agent", "--health-interval", "200ms")
    cli.ok("run", "-d", "--name", "init2", "--init", "system", "--entrypoint", "", *check, "--from", image)
    # There is no entrypoint whose health it could be: it is the machine's.
    cli.ok("wait", "--for", "healthy", "init2")
    cli.ok("exec", "-u", "root", "init2", "--", "shutdown", "-r", "now")
    assert cli.ok("wait", "init2") == "0\n"
    assert cli.json("inspect", "init2")["State"]["ExitCode"] == 0


@pytest.mark.parametrize("image", ["sysvinit"], indirect=True)  # what is tied to the terminal knows no init
def test_the_entrypoints_terminal_and_a_volume(cli: Cli, image: str) -> None:
    run = ("run", "--network", "none", "--init", "system")
    with at_terminal(
        cli, *run, "-it", "--name", "init3", "-v", "initdata:/data", image, "bash", "--norc", "-c", "stty size; exec bash --norc"
    ) as person:  # fmt: skip
        person.expect("30 90")
        person.type("tty; cat /proc/1/comm; grep ' /data ' /proc/mounts; touch /data/kept; echo done $((1 + 1))\n")
        person.expect("/dev/pts/0")
        person.expect("init")
        person.expect("/data ext4 rw,nosuid,nodev")
        person.expect("done 2")
        person.resize(40, 120)
        person.type("stty size\n")
        person.expect("40 120")
        person.type("\x10\x11")
        person.expect("detached from init3")
        assert person.wait() == 0 and person.modes() == person.before
    with at_terminal(cli, "attach", "init3") as person:
        person.type("echo sum $((40 + 2)); exit 5\n")
        person.expect("sum 42")
        assert person.wait() == 5
    assert cli.ok("wait", "init3") == "5\n"
    cli.ok("rm", "init3")
    # Pipes, and what the volume held is there.
    piped = cli.run(
        *run, "-i", "--rm", "--name", "init4", "-v", "initdata:/data", image, "sh", "-c", "ls /data; wc -c; exit 7", stdin="x" * 300_000
    )  # fmt: skip
    assert (piped.status, piped.stdout) == (7, "kept\n300000\n"), piped.describe()
    cli.ok("volume", "rm", "initdata")
    assert cli.ok("ls", "-a", "-q") == ""
