"""Machines through the real CLI, supervisor and network, with a scripted stand-in for the VMM."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli, Result, find_free_port
from tests.support.fake_machines import IMAGE, Fake
from tests.support.fake_vmm import Script


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def test_run_ls_inspect_kill_purge(fake: Fake) -> None:
    started = fake.run("-d", "--name", "one", "-e", "A=1")
    assert started.status == 0, started.describe()
    assert re.fullmatch(r"[a-z0-9]{20}\n", started.stdout)
    listed = [json.loads(line) for line in fake.cli.ok("ls", "--format", "json").splitlines()]
    assert [(item["name"], item["state"], item["running"]) for item in listed] == [("one", "running", True)]
    shown = fake.cli.json("inspect", "--vmm-id", started.stdout.strip()[:6])
    assert shown["VMMID"] == started.stdout.strip()
    assert shown["Configs"]["RunConfig"]["EnvVars"] == {"A": "1"}
    (written,) = fake.cli.state.glob("rootfs/test/app/1/metadata.json")
    assert shown["Rootfs"] == {
        **json.loads(written.read_text()), "Tag": IMAGE, "Digest": shown["Rootfs"]["ManifestDigest"],
    }  # fmt: skip
    assert (
        shown["Rootfs"]["EntrypointInfo"]["Cmd"]
        == shown["Configs"]["RunConfig"]["EntrypointInfo"]["Cmd"]
        == ["/bin/app"]
    )
    result = fake.cli.run("exec", "one", "--", "anything")
    assert (result.status, result.stdout) == (3, "fake output\n")
    fake.cli.ok("kill", "one")
    fake.cli.ok("image", "rm", IMAGE)
    fake.cli.ok("gc")
    assert fake.cli.json("inspect", "one")["Rootfs"]["ManifestDigest"] == shown["Rootfs"]["Digest"]
    assert fake.state("one") == "stopped"
    assert fake.cli.ok("purge") == "one\n"
    assert fake.cli.ok("ls", "-a", "-q") == ""


def test_the_foreground_shows_output_and_takes_the_exit_status(fake: Fake) -> None:
    result = fake.run("--rm", "--name", "fg", script=Script(output="hello\nworld\n", exit_after_s=0.2, exit_code=42))
    assert (result.status, result.stdout) == (42, "hello\nworld\n"), result.describe()
    assert fake.cli.ok("ls", "-a", "-q") == ""


def test_logs_stay_until_the_machine_is_removed(fake: Fake) -> None:
    fake.run("-d", "--name", "talker", script=Script(output="one\ntwo\nthree\n"))
    fake.cli.ok("kill", "talker")
    assert fake.cli.ok("logs", "talker") == "one\ntwo\nthree\n"
    assert fake.cli.ok("logs", "--tail", "1", "talker") == "three\n"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+Z one", fake.cli.ok("logs", "-t", "talker").splitlines()[0])
    assert fake.cli.ok("logs", "--console", "talker") == "fake kernel: booting\n"
    fake.cli.ok("rm", "talker")
    assert "there is no machine `talker`" in fake.cli.refused("logs", "talker").stderr


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script(die_at_start=True), ["the VMM of m ended before its API was there", "told to die"]),
        (
            Script(refuse={"PUT /boot-source": "no such kernel"}),
            ["the VMM refused PUT /boot-source with status 400: no such kernel"],
        ),
        (Script(ready=False), ["was not ready within 4 s", "fake step", "fake kernel: booting"]),
        (Script(push="ffffffff"), ["not ready within 4 s"]),
        (Script(no_socket=True), ["took longer than 4 s"]),
    ],
    ids=["dies", "refuses", "never-ready", "breaks-the-protocol", "no-api"],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(fake: Fake, script: Script, words: list[str]) -> None:
    result = fake.run("-d", "--name", "m", "--boot-timeout", "4", script=script)
    assert result.status == 125, result.describe()
    for word in words:
        assert word in result.stderr, result.describe()
    assert fake.cli.ok("ls", "-a", "-q") == ""
    assert not list((fake.cli.state / "machines").iterdir())


def test_a_program_that_does_not_exist_is_127_without_the_logs(fake: Fake) -> None:
    result = fake.run("-d", "--name", "m", script=Script(failed="/bin/app: not found"))
    assert result.status == 127, result.describe()
    assert "could not start: /bin/app: not found" in result.stderr
    assert "fake kernel" not in result.stderr
    assert fake.cli.ok("ls", "-a", "-q") == ""


def test_the_foreground_ends_with_its_reader_or_its_terminal(fake: Fake) -> None:
    environment = {**fake.cli.environment(), **fake.environment(Script(output="x" * 100 + "\n"))}
    argv = [*fake.cli._argv(["run", "--rm", "--name", "fg", "--from", IMAGE, "--network", "none"])]
    for number in (signal.SIGHUP, signal.SIGINT):
        process = subprocess.Popen(
            argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.read(100)
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode == 143
        assert fake.cli.ok("ls", "-a", "-q") == ""


def test_a_guest_that_ignores_stop_is_killed(fake: Fake) -> None:
    fake.run("-d", "--name", "deaf", script=Script(ignore_stop=True))
    fake.cli.ok("stop", "-t", "1", "deaf")
    shown = fake.cli.json("inspect", "deaf")["State"]
    assert (shown["Status"], shown["ExitCode"], shown["Reason"]) == ("stopped", 137, "killed")


def test_a_taken_name_is_refused_and_the_first_machine_unharmed(fake: Fake) -> None:
    fake.run("-d", "--name", "twin")
    result = fake.run("-d", "--name", "twin")
    assert result.status == 125
    assert "the name `twin` is taken" in result.stderr
    assert fake.state("twin") == "running"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "no/such:1"), "no/such:1"),
        (("--from", "UPPER"), "is not an image reference"),
        (("--from", IMAGE, "--kernel", "missing"), "there is no kernel `missing`"),
        (("--from", IMAGE, "--network", "missing"), "missing"),
        (("--from", IMAGE, "-p", "99999:1"), "ports are 1 to 65535"),
        (("--from", IMAGE, "--mem", "1"), "1 MiB is not a machine's memory"),
        (("--from", IMAGE, "--name", "a/b"), "is not a machine name"),
        (("--from", IMAGE, "--net-rate", "1k"), "is no rate for a network"),
        (("--from", IMAGE, "--net-rate", "1m", "--network", "none"), "and no network"),
    ],
)
def test_bad_requests_are_refused_before_anything_exists(fake: Fake, arguments: tuple[str, ...], message: str) -> None:
    result = fake.cli.run("run", "-d", *arguments, environment=fake.environment(Script()))
    assert result.status == 125, result.describe()
    assert message in result.stderr, result.describe()
    assert fake.cli.ok("ls", "-a", "-q") == ""


def test_a_port_that_is_taken_is_refused_by_name(fake: Fake) -> None:
    port = find_free_port()
    environment = fake.environment(Script())
    first = ("run", "-d", "--name", "first", "--from", IMAGE, "-p", f"127.0.0.1:{port}:80")
    fake.cli.ok(*first, environment=environment)
    second = fake.cli.run(*first[:3], "second", *first[4:], environment=environment)
    assert second.status == 125
    assert str(port) in second.stderr, second.describe()
    assert fake.cli.ok("ls", "-q", "-a").count("\n") == 1
    address = fake.cli.json("inspect", "first")["NetworkInterfaces"][0]["StaticConfiguration"]["IPConfiguration"]["IP"]
    assert address.startswith("192.168.127.")
    fake.cli.ok("kill", "first")


def test_a_socket_path_that_is_too_long_is_refused_before_anything_exists(fake: Fake, tmp_path: Path) -> None:
    run = tmp_path / ("r" * 90)
    environment = {**fake.environment(Script()), "FIREBUILD_RUN": str(run)}
    result = fake.cli.run("run", "-d", "--from", IMAGE, "--network", "none", environment=environment)
    assert result.status == 125, result.describe()
    assert "the kernel takes 107" in result.stderr
    assert fake.cli.ok("ls", "-a", "-q") == ""


def test_a_lost_supervisor_is_seen_and_purged(fake: Fake) -> None:
    fake.run("-d", "--name", "lost")
    pid = _recorded(fake.cli)["supervisor"]["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while fake.state("lost") != "lost" and time.monotonic() < deadline:
        pass
    assert fake.state("lost") == "lost"
    assert fake.cli.ok("purge") == "lost\n"


def test_stopping_a_lost_machine_settles_it(fake: Fake) -> None:
    fake.run("-d", "--name", "lost")
    os.kill(_recorded(fake.cli)["supervisor"]["pid"], signal.SIGKILL)
    _await_state(fake, "lost", "lost")
    fake.cli.ok("stop", "lost")
    shown = fake.cli.json("inspect", "lost")["State"]
    assert (shown["Status"], shown["ExitCode"]) == ("stopped", 137)
    assert "lost" in shown["Reason"]


@pytest.mark.parametrize("ends_first", [True, False], ids=["machine ends later", "machine is running"])
def test_rm_holds_when_the_foreground_command_is_killed(fake: Fake, ends_first: bool) -> None:
    script = Script(output="x" * 100 + "\n", exit_after_s=2.0) if ends_first else Script(output="x" * 100 + "\n")
    environment = {**fake.cli.environment(), **fake.environment(script)}
    argv = [*fake.cli._argv(["run", "--rm", "--name", "fg", "--from", IMAGE, "--network", "none"])]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(100)
    process.kill()
    process.communicate(timeout=120)
    if not ends_first:
        assert fake.state("fg") == "running", "a machine does not end with the command that shows it"
        fake.cli.ok("kill", "fg")
    deadline = time.monotonic() + 60
    while fake.cli.ok("ls", "-a", "-q") and time.monotonic() < deadline:
        pass
    assert fake.cli.ok("ls", "-a", "-q") == ""
    assert not list((fake.cli.state / "machines").iterdir())


def test_a_guest_that_crashes_says_why(fake: Fake) -> None:
    console = (
        "[    1.0] Out of memory: Killed process 70 (hog) total-vm\n[    2.0] Kernel panic - not syncing: no init\n"
    )
    fake.run("-d", "--name", "crash", script=Script(console=console))
    os.kill(_recorded(fake.cli)["vmm"]["pid"], signal.SIGKILL)
    _await_state(fake, "crash", "failed")
    reason = fake.cli.json("inspect", "crash")["State"]["Reason"]
    assert reason == "kernel panic: no init (out of memory: hog was killed)"


def _await_state(fake: Fake, name: str, state: str) -> None:
    deadline = time.monotonic() + 60
    while fake.state(name) != state and time.monotonic() < deadline:
        pass
    assert fake.state(name) == state


def _recorded(cli: Cli) -> Any:
    with sqlite3.connect(cli.state / "firebuild.db") as database:
        (record,) = database.execute("SELECT record FROM machines").fetchone()
    database.close()
    return json.loads(record)


@pytest.mark.parametrize("delay_s", [0.05, 0.15, 0.25, 0.35, 0.5, 0.8, 1.2])
def test_a_command_killed_at_any_moment_of_run_is_repaired(fake: Fake, delay_s: float) -> None:
    environment = {**fake.cli.environment(), **fake.environment(Script(ready=False))}
    argv = [*fake.cli._argv(["run", "-d", "--name", "cut", "--from", IMAGE])]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        process.communicate(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    # The supervisor may be cleaning up at this very moment: one purge waits for it.
    fake.cli.ok("purge")
    assert fake.cli.ok("ls", "-a", "-q") == ""
    assert not list((fake.cli.state / "machines").iterdir())


@pytest.mark.parametrize("delay_s", [0.1, 0.3, 0.6, 1.0])
def test_an_interrupted_run_leaves_nothing(fake: Fake, delay_s: float) -> None:
    environment = {**fake.cli.environment(), **fake.environment(Script(ready=False))}
    argv = [*fake.cli._argv(["run", "-d", "--name", "cut", "--from", IMAGE])]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        process.communicate(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    # Before firebuild's own code runs, Python ends by the signal itself.
    assert process.returncode in (130, -signal.SIGINT), error
    assert fake.cli.ok("ls", "-a", "-q") == ""
    assert not list((fake.cli.state / "machines").iterdir() if (fake.cli.state / "machines").exists() else [])


def test_many_at_once_have_different_addresses(fake: Fake) -> None:
    environment = fake.environment(Script())
    names = [f"many{number}" for number in range(12)]

    def start(name: str) -> Result:
        return fake.cli.run("run", "-d", "--name", name, "--from", IMAGE, environment=environment)

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(start, names))
    assert [result.status for result in results] == [0] * 12, "\n".join(r.describe() for r in results if r.status)
    listed = [json.loads(line) for line in fake.cli.ok("ls", "--format", "json").splitlines()]
    assert len({item["ip-address"] for item in listed}) == 12
    fake.cli.ok("kill", *names)


def test_stop_waits_for_a_machine_that_is_being_started(fake: Fake) -> None:
    environment = {**fake.cli.environment(), **fake.environment(Script(ready_after_s=3))}
    argv = fake.cli._argv(["run", "-d", "--name", "young", "--from", IMAGE, "--network", "none"])
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as starting:
        deadline = time.monotonic() + 120
        while "starting" not in fake.cli.ok("ls", "-a", "--format", "json"):
            assert starting.poll() is None and time.monotonic() < deadline
        assert fake.cli.ok("stop", "young") == "young\n"
        stdout, stderr = starting.communicate(timeout=120)
        assert (starting.returncode, len(stdout)) == (0, 21), stderr
    shown = fake.cli.json("inspect", "young")["State"]
    # In order: the guest's own code for its end by the stop signal.
    assert (shown["Status"], shown["ExitCode"]) == ("stopped", 143)
    fake.cli.ok("rm", "-v", "young")
