"""Twenty real guests at the same time: started, talked to, stopped, and nothing is left."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from tests.support.cli import Cli, Result
from tests.vm.conftest import BASE

CROWD = 20
# The last of them boots beside nineteen others on as many processors as there are.
BOOT_TIMEOUT_S = "600"
COMMAND_S = 700.0


def test_twenty_guests_at_once(cli: Cli) -> None:
    names = [f"crowd{number}" for number in range(CROWD)]

    def run(name: str) -> Result:
        return cli.run(
            "run", "-d", "--name", name, "-m", "96", "--boot-timeout", BOOT_TIMEOUT_S, "--from", BASE,
            "--", "/bin/sleep", "infinity", timeout_s=COMMAND_S,
        )  # fmt: skip

    def talk(name: str) -> str:
        return cli.ok("exec", name, "--", "hostname")

    with ThreadPoolExecutor(CROWD) as pool:
        started = list(pool.map(run, names))
        assert [result.status for result in started] == [0] * CROWD, "\n".join(
            result.describe() for result in started if result.status
        )
        listed = [json.loads(line) for line in cli.ok("ls", "--format", "json").splitlines()]
        ours = [item for item in listed if item["name"] in names]
        assert {item["state"] for item in ours} == {"running"}
        assert len({item["ip-address"] for item in ours}) == CROWD
        assert list(pool.map(talk, names)) == [f"{name}\n" for name in names]
    cli.ok("stop", "-t", "30", *names)
    assert cli.ok("wait", *names).splitlines() == ["143"] * CROWD
    cli.ok("rm", *names)
