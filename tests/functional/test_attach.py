"""`run -i`, `attach` and what can be wrong with them, with a scripted stand-in for the guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import IMAGE, Fake
from tests.support.fake_vmm import Script


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def test_input_goes_in_output_comes_out_and_the_status_is_the_guests(fake: Fake) -> None:
    command = ("run", "-i", "--rm", "--network", "none", "--name", "in1", IMAGE, "anything", "--with", "-options")
    result = fake.cli.run(*command, environment=fake.environment(Script(attach="echo", exit_code=42)), stdin="hello\n")
    assert (result.status, result.stdout) == (42, "echo hello\n"), result.describe()
    assert fake.cli.ok("ls", "-a", "-q") == ""


@pytest.mark.parametrize(
    ("script", "status", "words", "left"),
    [
        (Script(attach="fail"), 127, "could not start: no such program: /bin/app", ""),
        # The stream is of no use: the machine is stopped by who looks for its end.
        (Script(attach="break", exit_after_s=2, exit_code=3), 3, "", "in1"),
    ],
    ids=["cannot-start", "broken-stream"],
)
def test_what_goes_wrong_behind_the_answer(fake: Fake, script: Script, status: int, words: str, left: str) -> None:
    result = fake.cli.run(
        "run", "-i", "--network", "none", "--name", "in1", IMAGE, environment=fake.environment(script), stdin="x"
    )
    assert result.status == status and words in result.stderr, result.describe()
    assert left in fake.cli.ok("ls", "-a")
    assert left or fake.cli.ok("ls", "-a", "-q") == ""


def test_refusals(fake: Fake) -> None:
    assert "not a TTY" in fake.cli.refused("run", "-it", "--network", "none", IMAGE).stderr
    assert "`ctrl-1` is not a key" in fake.cli.refused("run", "-i", "--detach-keys", "ctrl-1", IMAGE).stderr
    assert "does not go" in fake.cli.refused("run", "-d", "--read-only", "--init", "system", IMAGE).stderr
    assert "there is no machine" in fake.cli.refused("attach", "nobody").stderr
    assert fake.run("-d", "--name", "old").status == 0
    assert "nobody can attach to old" in fake.cli.refused("attach", "old").stderr
    assert "is running" in fake.cli.refused("start", "-a", "old").stderr
    fake.cli.ok("stop", "old")
    assert "for one machine, not for 2" in fake.cli.refused("start", "-i", "old", "other").stderr
    assert "is stopped" in fake.cli.refused("attach", "old").stderr


def test_an_ended_machine_starts_again_with_somebody_attached(fake: Fake) -> None:
    environment = fake.environment(Script(attach="echo", exit_code=7))
    first = ("run", "-i", "--network", "none", "--name", "again", IMAGE)
    assert fake.cli.run(*first, environment=environment, stdin="one\n").stdout == "echo one\n"
    result = fake.cli.run("start", "-ai", "again", environment=environment, stdin="two\n")
    assert (result.status, result.stdout) == (7, "echo two\n"), result.describe()
    assert fake.state("again") == "stopped"
    assert fake.run("-d", "--name", "plain", script=Script(exit_after_s=0.1)).status == 0
    fake.cli.ok("wait", "plain")
    only = fake.cli.run("start", "-i", "plain", environment=fake.environment(Script(attach="fail")), stdin="x")
    assert only.status == 127 and "was made without -i" in only.stderr, only.describe()
