"""System mode beside inits other than systemd: the entrypoint as their service, exec, logs, restart, stop, exit status."""

from __future__ import annotations

import pytest

from tests.support.baseos import ensure_tree
from tests.support.cli import BUILD_TIMEOUT_S, Cli
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
