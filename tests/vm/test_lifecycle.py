"""One machine and what becomes of it: signalled, paused, stopped, started again with what it had written."""

from __future__ import annotations

import time

from tests.support.cli import Cli
from tests.vm.conftest import BASE

# What it counts is on its own disk: each life sees those before.
SCRIPT = "trap 'echo signalled' USR1; echo y >> /lives; echo life $(wc -l < /lives); while :; do sleep 0.2; done"


def test_a_machine_is_signalled_paused_stopped_and_started_again(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "life1", "--stop-timeout", "1", "--from", BASE, "--", "/bin/sh", "-c", SCRIPT)
    cli.await_output("life1", "life 1")
    cli.ok("kill", "--signal", "USR1", "life1")
    cli.await_output("life1", "signalled")
    cli.ok("pause", "life1")
    assert "is paused" in cli.refused("exec", "life1", "true").stderr
    time.sleep(6)  # nothing is waited for: so long the guest's clock stands still
    cli.ok("resume", "life1")
    now = time.time()
    assert float(cli.ok("exec", "life1", "date", "+%s.%N")) > now - 3
    assert cli.ok("exec", "life1", "cat", "/lives") == "y\n"
    assert "life1" in cli.ok("stats", "--no-stream", "--format", "{{.Name}}")
    address = cli.json("inspect", "--vmm-id", "life1")["NetworkInterfaces"][0]["StaticConfiguration"]["IPConfiguration"]
    assert address["IP"].startswith("192.168.127.")
    cli.ok("stop", "life1")
    # The shell is PID 1's child and has no handler for SIGTERM.
    assert cli.ok("wait", "life1") == "143\n"
    cli.ok("start", "life1")
    cli.await_output("life1", "life 2")
    assert cli.ok("exec", "life1", "cat", "/lives") == "y\ny\n"
    cli.ok("kill", "--signal", "KILL", "life1")
    assert cli.ok("wait", "life1") == "137\n"
    assert [line for line in cli.ok("logs", "life1").splitlines() if line.startswith("life")] == ["life 1", "life 2"]
    cli.ok("rm", "life1")
