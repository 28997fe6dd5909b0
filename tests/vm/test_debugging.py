"""Shells in a build, on a real guest and a real terminal: --on-failure shell, --debug-at, retry, continue, exit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.cli import BUILD_TIMEOUT_S, PROGRAM, Cli
from tests.support.ledger import Watch, find_processes, settle, take_snapshot
from tests.support.ssh_agent import ADD_IDENTITY, ASK, REQUEST_IDENTITIES, serve_agent
from tests.support.terminal import Terminal
from tests.vm.conftest import BASE

CANARY = "canary-of-the-debugger"
INTERRUPTED = 130
REFUSED = 125

DOCKERFILE = f"""\
FROM {BASE} AS tools
RUN mkdir /tools && echo tool >/tools/tool
FROM {BASE}
ENV COLOUR=green
WORKDIR /srv/app
RUN chown 1234 /srv/app
USER 1234
RUN --mount=type=secret,id=token,mode=0444 \\
    --mount=type=cache,id=debugging,target=/cache,mode=0777 \\
    --mount=from=tools,source=/tools,target=/tools \\
    echo left >left; echo kept >/cache/kept; touch nope/x
RUN --mount=type=cache,id=debugging,target=/cache,mode=0777 ls /cache >cached
"""
FAILING_LINE = 8


def open_build(cli: Cli, context: Path, *options: str, rows: int = 24) -> Terminal:
    arguments = ["rootfs", str(context), "--tag", "tests/debugging:1", "--secret", "id=token,env=TOKEN", *options]
    return Terminal([PROGRAM, *arguments], {**cli.environment(), "TERM": "xterm", "TOKEN": CANARY}, rows=rows)


def ask(terminal: Terminal, command: str) -> str:
    """What a command shows; the marks are computed, so that its echo on the screen is not taken for them."""
    terminal.type(f"echo begin-$((40+2)); {command}; echo end-$((40+2))\n")
    terminal.expect("begin-42")
    return terminal.expect("end-42").strip()


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_failed_step_is_looked_at_mended_and_run_again(cli: Cli, context: Path) -> None:
    file = context / "Dockerfile"
    file.write_text(DOCKERFILE)
    with open_build(cli, context, "--on-failure", "shell", "--progress", "tty") as terminal:
        terminal.expect("failed with exit code 1")
        help_line = terminal.expect("thrown away")
        assert "in the failed step, as 1234 in /srv/app" in help_line
        assert "`retry`" in help_line and "`exit`" in help_line
        look = "id -u; pwd; echo $COLOUR; cat left /run/secrets/token /cache/kept /tools/tool; hostname"
        assert ask(terminal, look).split() == [
            "1234", "/srv/app", "green", "left", f"{CANARY}kept", "tool", "buildkitsandbox",
        ]  # fmt: skip
        # The window's size, and Ctrl-C, are the shell's.
        assert ask(terminal, "stty size") == "24 100"
        terminal.resize(33, 91)
        assert ask(terminal, "until [ \"$(stty size)\" = '33 91' ]; do sleep 0.1; done; echo follows") == "follows"
        # The mark is the child's: an interrupt that comes before it has the terminal would be the shell's.
        terminal.type("sh -c 'echo sleeps-$((1+1)); exec sleep 1000'\n")
        terminal.expect("sleeps-2")
        terminal.type("\x03")
        terminal.expect("(debug) ")  # what is typed before it may go with the interrupt
        assert ask(terminal, "touch changed /cache/mine; rm left; echo alive") == "alive"

        # With what makes no build the person comes back to the same files.
        replace(file, "touch nope/x", "touch nope/x\nCOPY")
        terminal.type("retry\n")
        terminal.expect("no build")
        terminal.expect("thrown away")
        assert ask(terminal, "ls") == "changed"

        replace(file, "touch nope/x\nCOPY", "ls >now")
        terminal.type("retry\n")
        terminal.expect(f"retry: line {FAILING_LINE} runs as it is now")
        assert terminal.wait(timeout_s=BUILD_TIMEOUT_S) == 0, terminal.shown
        assert "build machine: booted" in terminal.rest()
        assert "started anew" not in terminal.shown
        assert terminal.modes() == terminal.before

    show = "cd /srv/app; ls; cat now cached; ls / /run"
    result = cli.run(
        "run", "--rm", "--name", "debug1", "--network", "none", "--from", "tests/debugging:1", "--", "sh", "-c", show
    )
    words = result.stdout.split()
    assert words[: words.index("bin")] == ["cached", "left", "now", "left", "now", "kept", "/:"], result.describe()
    assert not {"cache", "tools", "firebuild-debug"} & set(words), result.describe()

    # What was made in the rounds is what a build without a person makes.
    again = cli.run(
        "rootfs", context, "--tag", "tests/debugging:2", "--secret", "id=token,env=TOKEN", environment={"TOKEN": CANARY}
    )
    assert "build machine: not needed" in again.stderr, again.describe()
    assert cli.ok("image", "inspect", "tests/debugging:1") is not None


def test_a_build_stops_before_a_line_though_all_is_cached(cli: Cli, context: Path) -> None:
    file = context / "Dockerfile"
    file.write_text(f"FROM {BASE}\nWORKDIR /w\nRUN echo one >one\n# nothing\nCOPY Dockerfile /w/\nRUN ls >two\n")
    tag = ["--tag", "tests/debugging:1"]
    cli.ok("rootfs", context, *tag, timeout_s=BUILD_TIMEOUT_S)

    with open_build(cli, context, "--debug-at", "4") as terminal:
        assert terminal.wait() == REFUSED
        assert "line 4 of `Dockerfile` belongs to no step" in terminal.shown
        assert "line 3 (`RUN echo one >one`) and line 5 (`COPY Dockerfile /w/`)" in terminal.shown

    with open_build(cli, context, "--debug-at", "5", "--debug-at", "3", "--progress", "plain") as terminal:
        assert "`continue` runs the step" in terminal.expect("thrown away")
        assert ask(terminal, "pwd; ls") == "/w"
        terminal.type("continue\n")
        # The step runs though its result was there, and the next stop follows it.
        terminal.expect("RUN echo one >one")
        assert "CACHED" not in terminal.expect("thrown away")
        assert ask(terminal, "touch trace; ls").split() == ["one", "trace"]
        terminal.type("false; exit\n")
        assert terminal.wait() == 1
        assert "ended in the shell before line 5, `COPY Dockerfile /w/`" in terminal.rest()
        assert terminal.modes() == terminal.before

    with open_build(cli, context, "--debug-at", "6") as terminal:
        terminal.expect("thrown away")
        assert ask(terminal, "touch trace; ls").split() == ["Dockerfile", "one", "trace"]
        replace(file, "echo one >one", "echo first >one")
        terminal.type("retry\n")
        assert "line 3, before the step that was stopped at, changed" in terminal.expect(
            "and what follows it run again"
        )
        assert terminal.wait(timeout_s=BUILD_TIMEOUT_S) == 0, terminal.shown
    show = ["--", "sh", "-c", "cat /w/one /w/two"]
    result = cli.run("run", "--rm", "--name", "debug2", "--network", "none", "--from", "tests/debugging:1", *show)
    assert result.stdout.split() == ["first", "Dockerfile", "one", "two"], result.describe()


def test_a_lent_agent_answers_in_the_shell(cli: Cli, context: Path, tmp_path: Path) -> None:
    """All the mounts and flags of the step are the shell's: an agent's socket, a file system of memory, no network."""
    flags = "--mount=type=ssh,required --mount=type=tmpfs,target=/scratch,size=1m --network=none"
    (context / "Dockerfile").write_text(f"FROM {BASE}\nRUN {flags} false\n")
    with (
        serve_agent(tmp_path / "agent") as path,
        open_build(cli, context, "--on-failure", "shell", "--ssh", f"default={path}") as terminal,
    ):
        terminal.expect("thrown away")
        perl = f"perl -e '{' '.join(ASK.split())}'"
        for _ in range(2):
            assert ask(terminal, f"{perl} {REQUEST_IDENTITIES}") == "asked 11, got 12"
        # Adding a key is refused before the agent hears of it.
        assert ask(terminal, f"{perl} {ADD_IDENTITY}") == "asked 17, got 5"
        assert ask(terminal, "ls /sys/class/net; stat -f -c %T /scratch").split() == ["lo", "tmpfs"]
        replace(context / "Dockerfile", "false", f"{perl} 11 | tee /asked")
        terminal.type("retry\n")
        assert terminal.wait(timeout_s=BUILD_TIMEOUT_S) == 0, terminal.shown
    show = ["--", "sh", "-c", "cat /asked; ls -d /scratch /run/buildkit"]
    result = cli.run("run", "--rm", "--name", "debug3", "--network", "none", "--from", "tests/debugging:1", *show)
    assert result.stdout == "asked 11, got 12\n", result.describe()


def test_an_image_without_a_shell_and_a_copy_that_fails(cli: Cli, context: Path) -> None:
    (context / "data").write_text("first line\nsecond\n")
    (context / "Dockerfile").write_text(
        f"FROM {BASE} AS full\nCOPY --chown=nobody2 data /d\n"
        'FROM scratch AS empty\nCOPY data /etc/data\nRUN ["/bin/app", "-v"]\n'
    )
    with open_build(cli, context, "--on-failure", "shell", "--target", "empty") as terminal:
        terminal.expect("there is no shell in")
        assert "ls [PATH]" in terminal.expect("(debug) ")
        terminal.type("ls\nls etc\ncat /etc/data\nrun /etc/data\nnonsense\n")
        assert "etc" in terminal.expect("data")
        terminal.expect("first line\r\nsecond")
        terminal.expect("not an executable file")
        terminal.expect("retry, exit, ls [PATH]")
        terminal.type("exit\n")
        assert terminal.wait() == 1
        assert "no program" in terminal.rest()

    with open_build(cli, context, "--on-failure", "shell", "--target", "full") as terminal:
        terminal.expect("nobody2")
        assert "the stage as it was before the failed step, as root in /" in terminal.expect("thrown away")
        assert ask(terminal, "ls -d /d /bin 2>/dev/null") == "/bin"
        # A shell that is killed leaves the prompt, which opens another.
        terminal.type("kill -9 $$\n")
        terminal.expect("ended by signal 9")
        terminal.expect("(debug) ")
        terminal.type("shell\n")
        terminal.expect("thrown away")
        assert ask(terminal, "echo again") == "again"
        replace(context / "Dockerfile", "nobody2", "nobody")
        terminal.type("retry\n")
        assert terminal.wait(timeout_s=BUILD_TIMEOUT_S) == 0, terminal.shown


@pytest.mark.parametrize("way", ["SIGTERM", "hangup", "machine"])
def test_the_terminal_comes_back_on_every_way_out(cli: Cli, context: Path, shared_folders: Watch, way: str) -> None:
    (context / "Dockerfile").write_text(f"FROM {BASE}\nRUN exit 3\n")
    before = take_snapshot(shared_folders)
    with open_build(cli, context, "--on-failure", "shell", "--progress", "tty") as terminal:
        terminal.expect("thrown away")
        assert ask(terminal, "id -u") == "0"
        assert terminal.modes() != terminal.before
        if way == "hangup":
            terminal.hang_up()
            terminal.process.wait(timeout=BUILD_TIMEOUT_S)
        elif way == "SIGTERM":
            os.kill(terminal.process.pid, signal.SIGTERM)
            assert terminal.wait() == INTERRUPTED
            assert "interrupted" in terminal.rest()
        else:
            (vmm,) = [line for line in find_processes(shared_folders) if "firebuild.emulator.main --api-sock" in line]
            os.kill(int(vmm.split()[0]), signal.SIGKILL)
            assert terminal.wait() == 1
            assert "connection to the guest was lost" in terminal.rest()
        if way != "hangup":
            assert terminal.modes() == terminal.before
            assert "\x1b[?1049l" in terminal.rest()
    assert not settle(before, shared_folders)


def test_without_a_terminal_nothing_begins(cli: Cli, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM no/such:image\n")
    for option in (["--on-failure", "shell"], ["--debug-at", "1"]):
        refused = cli.refused("rootfs", context, "--tag", "tests/debugging:1", *option)
        assert refused.status == REFUSED
        assert f"{' '.join(option[:1])}" in refused.stderr and "needs a terminal" in refused.stderr
    assert "nothing to do on a failure" in cli.refused("rootfs", context, "-t", "t:1", "--on-failure", "x").stderr
