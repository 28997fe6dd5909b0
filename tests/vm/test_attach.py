"""The entrypoint's own terminal and input: `run -i`, `-t`, `-it`, `attach`, and the ways out of them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from tests.support.cli import PROGRAM, Cli
from tests.support.terminal import at_terminal
from tests.vm.conftest import BASE

RUN = ("run", "--network", "none")


def supervisor_of(cli: Cli, name: str) -> int:
    with Engine(load_settings(cli.environment())[0]) as engine:
        supervisor = engine.machines.records.get(name).progress.supervisor
        assert supervisor is not None
        return supervisor.pid


def test_a_shell_at_a_terminal(cli: Cli) -> None:
    """Raw, with the window's size from its first moment; Ctrl-C is a key; detached and attached again, twice at once."""
    with at_terminal(cli, *RUN, "-it", "--name", "tty1", BASE, "bash", "--norc") as person:
        person.expect("#")
        person.type("stty size; tty\n")
        person.expect("30 90")
        person.expect("/dev/pts/0")
        assert person.modes() != person.before
        person.resize(40, 120)
        person.type("stty size\n")
        person.expect("40 120")
        person.type("sh -c 'trap \"echo caught; exit\" INT; echo armed $((1 + 1)); while :; do sleep 0.1; done'\n")
        person.expect("armed 2")
        person.type("\x03")
        person.expect("caught")
        person.type("\x10\x11")
        person.expect("detached from tty1")
        assert person.wait() == 0
        assert person.modes() == person.before
    assert "is not a TTY" in cli.refused("attach", "tty1").stderr
    with at_terminal(cli, "attach", "--detach-keys", "ctrl-a,d", "tty1") as first:
        # Who has typed and seen the answer is attached: before that, output goes by.
        first.type("echo product $((40 * 2))\n")
        first.expect("product 80")
        with at_terminal(cli, "attach", "tty1") as second:
            second.type("echo sum $((40 + 2))\n")
            second.expect("sum 42")
            first.expect("sum 42")
            second.process.send_signal(signal.SIGKILL)
        first.type("\x01d")
        first.expect("detached from tty1")
        assert first.wait() == 0 and first.modes() == first.before
    with at_terminal(cli, "attach", "tty1") as person:
        person.type("exit 5\n")
        assert person.wait() == 5
        assert person.modes() == person.before
    assert cli.ok("wait", "tty1") == "5\n"
    # Again, and somebody there from the first moment.
    with at_terminal(cli, "start", "-ai", "tty1", rows=20) as person:
        person.expect("#")
        person.type("stty size; exit 6\n")
        person.expect("20 90")
        assert person.wait() == 6
    assert "sum 42" in cli.ok("logs", "tty1")


def test_every_way_out_gives_the_terminal_back(cli: Cli) -> None:
    """The machine is killed; the command is terminated; the supervisor is killed."""
    for name, way in (("out1", "kill"), ("out2", "terminate"), ("out3", "supervisor")):
        with at_terminal(cli, *RUN, "-it", "--rm", "--name", name, BASE, "bash", "--norc") as person:
            person.expect("#")
            person.type("trap '' HUP; echo up $((1 + 1))\n")
            person.expect("up 2")
            if way == "kill":
                cli.ok("kill", "--signal", "KILL", name)
            elif way == "terminate":
                person.process.send_signal(signal.SIGTERM)
            else:
                os.kill(supervisor_of(cli, name), signal.SIGKILL)
            status = person.wait()
            assert person.modes() == person.before, way
            # bash at a terminal does not heed SIGTERM: it is killed in the end.
            assert status == (125 if way == "supervisor" else 137), (way, person.shown)
    assert cli.ok("ls", "-a", "-q") == ""


def test_input_is_piped_and_its_end_passed_on(cli: Cli) -> None:
    big = "x" * 99 + "\n"
    result = cli.run(
        *RUN, "-i", "--rm", "--name", "pipe1", BASE, "sh", "-c", "wc -c; echo err >&2; exit 7", stdin=big * 20000
    )
    assert (result.status, result.stdout, result.stderr.splitlines()[-1:]) == (7, "2000000\n", ["err"]), (
        result.describe()
    )
    result = cli.run(*RUN, "-i", "--rm", "--name", "pipe1", BASE, "/no/such")
    assert result.status == 127 and "could not start: no such program" in result.stderr, result.describe()
    assert cli.ok("ls", "-a", "-q") == ""


@contextmanager
def attached(cli: Cli, machine: str) -> Iterator[tuple[subprocess.Popen[str], IO[str], IO[str]]]:
    """`attach` without a terminal, its input and its output."""
    with subprocess.Popen(
        [PROGRAM, "attach", machine], env=cli.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process, process.stdin, process.stdout


def test_signals_are_passed_on_and_open_input_stays_open(cli: Cli) -> None:
    script = "trap 'echo interrupted; exit 9' INT; while read line; do echo got $line; done; echo end"
    cli.ok(*RUN, "-d", "-i", "--name", "open1", BASE, "sh", "-c", script)
    with attached(cli, "open1") as (first, typed, shown):
        typed.write("one\n")
        typed.close()
        assert shown.readline() == "got one\n"
        with attached(cli, "open1") as (second, typed_too, shown_too):
            typed_too.write("two\n")
            typed_too.flush()
            assert shown.readline() == shown_too.readline() == "got two\n"
            second.send_signal(signal.SIGINT)
            # The shell's trap runs when its read is over.
            typed_too.write("three\n")
            typed_too.flush()
            rest, _ = second.communicate(timeout=120)
            assert rest.endswith("interrupted\n")
        assert second.returncode == 9
        assert shown.read().endswith("interrupted\n")
    assert first.returncode == 9
    assert cli.ok("wait", "open1") == "9\n"


def test_a_read_only_root(cli: Cli) -> None:
    script = "touch /x; touch /tmp/x; pwd; touch /data/kept && touch /dev/shm/x && echo written; exec sleep 0"
    result = cli.run(
        *RUN, "-t", "--rm", "--name", "ro1", "--read-only", "-w", "/made/for/it", "-v", "ro1data:/data", BASE, "sh", "-c", script
    )  # fmt: skip
    lines = result.stdout.replace("\r", "").splitlines()
    assert result.status == 0 and lines[2:] == ["/made/for/it", "written"], result.describe()
    assert all("Read-only file system" in line for line in lines[:2])
    cli.ok("volume", "rm", "ro1data")
