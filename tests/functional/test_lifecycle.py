"""What becomes of machines after their start: again, paused, signalled, renamed, over a reboot; with a scripted stand-in for the VMM."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import Cli, find_free_port
from tests.support.fake_machines import IMAGE, Fake
from tests.support.fake_vmm import Script


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def _shown(fake: Fake, name: str) -> dict[str, object]:
    state: dict[str, object] = fake.cli.json("inspect", name)["State"]
    return state


def _change_record(cli: Cli, name: str, **changes: object) -> None:
    database = sqlite3.connect(cli.state / "firebuild.db")
    with database:
        (text,) = database.execute("SELECT record FROM machines WHERE name = ?", (name,)).fetchone()
        text = json.dumps({**json.loads(text), **changes})
        database.execute("UPDATE machines SET record = ? WHERE name = ?", (text, name))
    database.close()


def _progress(cli: Cli, name: str) -> dict[str, dict[str, int]]:
    database = sqlite3.connect(cli.state / "firebuild.db")
    (text,) = database.execute("SELECT record FROM machines WHERE name = ?", (name,)).fetchone()
    database.close()
    progress: dict[str, dict[str, int]] = json.loads(text)
    return progress


def test_an_ended_machine_starts_again_with_its_disk_and_logs(fake: Fake) -> None:
    port = find_free_port()
    script = Script(output="hello\n")
    environment = fake.environment(script)
    fake.cli.ok("run", "-d", "--name", "again", "--from", IMAGE, "-p", f"127.0.0.1:{port}:80", environment=environment)
    shown = fake.cli.json("inspect", "again")
    (disk,) = [Path(drive["PathOnHost"]) for drive in shown["Drivers"] if not drive["IsReadOnly"]]
    before = os.stat(disk).st_ino
    assert fake.cli.ok("port", "again") == f"80/tcp -> 127.0.0.1:{port}\n"
    assert fake.cli.ok("port", "again", "80") == f"127.0.0.1:{port}\n"
    assert "does not publish the port 81/tcp" in fake.cli.refused("port", "again", "81").stderr
    fake.cli.ok("stop", "again")
    assert fake.cli.ok("port", "again") == ""
    assert fake.cli.ok("start", "again", environment=environment) == "again\n"
    assert fake.state("again") == "running"
    assert fake.cli.json("inspect", "again")["VMMID"] == shown["VMMID"]
    assert os.stat(disk).st_ino == before
    assert fake.cli.ok("port", "again") == f"80/tcp -> 127.0.0.1:{port}\n"
    assert fake.cli.ok("start", "again", environment=environment) == "again\n", "one that runs is fine"
    assert fake.cli.ok("restart", "again", environment=environment) == "again\n"
    fake.cli.ok("kill", "again")
    assert fake.cli.ok("logs", "again") == "hello\n" * 3
    assert fake.cli.ok("logs", "--console", "again") == "fake kernel: booting\n"
    assert _shown(fake, "again")["ExitCode"] == 143


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script(die_at_start=True), "the VMM of m ended before its API was there"),
        (Script(ready=False), "was not ready within 4 s"),
    ],
    ids=["dies", "never-ready"],
)
def test_a_start_that_fails_keeps_the_machine(fake: Fake, script: Script, words: str) -> None:
    fake.run("-d", "--name", "m", "--boot-timeout", "4", script=Script(output="first\n"))
    fake.cli.ok("stop", "m")
    refused = fake.cli.refused("start", "m", environment=fake.environment(script))
    assert words in refused.stderr
    shown = _shown(fake, "m")
    assert shown["Status"] == "failed"
    assert words in str(shown["Reason"])
    fake.cli.ok("start", "m", environment=fake.environment(Script(output="second\n")))
    fake.cli.ok("kill", "m")
    assert fake.cli.ok("logs", "m") == "first\nsecond\n"


@pytest.mark.parametrize("delay_s", [0.3, 0.6, 1.0])
def test_a_start_that_is_killed_keeps_the_machine(fake: Fake, delay_s: float) -> None:
    fake.run("-d", "--name", "m")
    fake.cli.ok("stop", "m")
    environment = {**fake.cli.environment(), **fake.environment(Script(ready=False))}
    process = subprocess.Popen(fake.cli._argv(["start", "m"]), env=environment, stdout=subprocess.PIPE)
    try:
        process.communicate(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 60
    while fake.state("m") not in ("stopped", "failed") and time.monotonic() < deadline:
        fake.cli.run("start", "no-such-machine")
    fake.cli.ok("start", "m", environment=fake.environment(Script()))
    assert fake.state("m") == "running"


def test_a_paused_machine_refuses_what_needs_it_and_can_be_stopped(fake: Fake) -> None:
    fake.run("-d", "--name", "p")
    assert fake.cli.ok("pause", "p") == "p\n"
    assert fake.state("p") == "paused"
    assert "is paused, not running" in fake.cli.refused("pause", "p").stderr
    assert "firebuild resume p" in fake.cli.refused("exec", "p", "true").stderr
    assert "firebuild resume p" in fake.cli.refused("start", "p").stderr
    assert fake.cli.ok("unpause", "p") == "p\n"
    assert fake.state("p") == "running"
    assert "is running, not paused" in fake.cli.refused("resume", "p").stderr
    fake.cli.ok("pause", "p")
    fake.cli.ok("stop", "p")
    assert (_shown(fake, "p")["Status"], _shown(fake, "p")["ExitCode"]) == ("stopped", 143)
    assert "is stopped, not running" in fake.cli.refused("pause", "p").stderr


def test_signals_reach_the_entrypoint_and_kill_ends_it(fake: Fake) -> None:
    fake.run("-d", "--name", "s", script=Script(end_on_signal=12))
    fake.cli.ok("kill", "-s", "USR1", "s")
    assert fake.state("s") == "running"
    assert "`NOSUCH` is not a signal" in fake.cli.refused("kill", "-s", "NOSUCH", "s").stderr
    fake.cli.ok("kill", "--signal", "SIGUSR2", "s")
    assert fake.cli.ok("wait", "s") == "140\n"
    assert fake.cli.ok("logs", "s") == "signal 10\nsignal 12\n"
    assert "is stopped" in fake.cli.refused("kill", "-s", "TERM", "s").stderr
    fake.run("-d", "--name", "k")
    fake.cli.ok("kill", "-s", "KILL", "k")
    assert fake.cli.ok("wait", "s", "k") == "140\n137\n"


def test_wait_sees_the_end_and_the_code_of_a_removed_machine(fake: Fake) -> None:
    fake.run("-d", "--name", "w", "--rm", script=Script(exit_after_s=1.5, exit_code=7))
    assert fake.cli.ok("wait", "w") == "7\n"
    assert "there is no machine `w`" in fake.cli.refused("wait", "w").stderr


def test_rename(fake: Fake) -> None:
    fake.run("-d", "--name", "old")
    fake.run("-d", "--name", "taken")
    fake.cli.ok("rename", "old", "new")
    fake.cli.started.append("new")
    assert fake.cli.json("inspect", "new")["Name"] == "new"
    assert "there is no machine `old`" in fake.cli.refused("inspect", "old").stderr
    assert "the name `taken` is taken" in fake.cli.refused("rename", "new", "taken").stderr
    assert "is not a machine name" in fake.cli.refused("rename", "new", "a/b").stderr
    fake.cli.ok("kill", "new", "taken")


def test_a_reboot_of_the_host_stops_machines_and_start_brings_them_back(fake: Fake) -> None:
    environment = fake.environment(Script())
    fake.cli.ok("run", "-d", "--name", "r", "--from", IMAGE, environment=environment)
    identity = _progress(fake.cli, "r")["supervisor"]
    os.kill(identity["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while fake.state("r") != "lost" and time.monotonic() < deadline:
        pass
    # The machine's processes are some others' numbers now: this one must not be hit.
    other = subprocess.Popen(["/bin/sleep", "600"])
    try:
        fields = Path(f"/proc/{other.pid}/stat").read_text().rsplit(")", 1)[1].split()
        stranger = {"pid": other.pid, "start_time": int(fields[19])}
        _change_record(fake.cli, "r", boot_id="another-boot", supervisor=stranger, vmm=stranger)
        shown = _shown(fake, "r")
        assert (shown["Status"], shown["Reason"]) == ("stopped", "host reboot")
        assert re.search(r"\br\b.*stopped \(host reboot\)", fake.cli.ok("ls", "-a"))
        assert fake.cli.ok("start", "r", environment=environment) == "r\n"
        assert fake.state("r") == "running"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    fake.cli.ok("kill", "r")


def test_ls_and_inspect_as_the_original_and_docker_show_them(fake: Fake) -> None:
    first = fake.run("-d", "--name", "web", "--label", "tier=front", "--label", "x").stdout.strip()
    second = fake.run("-d", "--name", "db").stdout.strip()
    fake.cli.ok("stop", "db")
    listed = fake.cli.run("ls", "--log-as-json")
    (line,) = (listed.stdout + listed.stderr).splitlines()
    item = json.loads(line)
    assert (item["id"], item["running"], item["image"]) == (first, True, IMAGE)
    assert {"pid", "started", "ip-address"} <= set(item)
    for filters, ids in {
        ("status=stopped",): [second], ("name=^w",): [first], ("label=tier=front", "label=nope"): [first],
        ("label=x", "name=db"): [], ("exited=143",): [second], ("image=test/app",): [first], (f"id={first[:5]}",): [first],
    }.items():  # fmt: skip
        words = [word for text in filters for word in ("--filter", text)]
        assert fake.cli.ok("ls", "-q", *words).split() == ids, filters
    assert fake.cli.ok("ls", "-q", "-l").split() == [second]
    assert fake.cli.ok("ls", "-q", "-n", "5", "-f", "before=db").split() == [first]
    template = "{{.ID}} {{.Names}} {{.Status}} {{.Labels}}"
    assert fake.cli.ok("ls", "-a", "--format", template).splitlines() == [
        f"{first} web running tier=front,x=", f"{second} db stopped (143) "
    ]  # fmt: skip
    assert "is not a state" in fake.cli.refused("ls", "-f", "status=odd").stderr
    assert "did you mean `label`?" in fake.cli.refused("ls", "-f", "labels=x").stderr
    shown = fake.cli.ok("inspect", "web", "--vmm-id", "db", "--format", "{{.Name}} {{.State.Status}}")
    assert shown.splitlines() == ["web running", "db stopped"]
    document = fake.cli.json("inspect", "--vmm-id", first)
    assert set(document) >= {
        "Type", "VMMID", "Pid", "StartedAtUTC", "RunCache", "Rootfs", "CNI", "Drivers", "Configs", "NetworkInterfaces"
    }  # fmt: skip
    assert document["Rootfs"]["Image"] == {"Org": "test", "Image": "app", "Version": "1"}
    assert document["Rootfs"]["EntrypointInfo"]["Cmd"] == ["/bin/app"]
    refused = fake.cli.refused("inspect", "nope", "--log-as-json")
    assert json.loads(refused.stderr)["@message"] == "there is no machine `nope`"


def test_run_takes_cidfile_stop_signal_stop_timeout_and_the_originals_flags(fake: Fake, tmp_path: Path) -> None:
    cidfile = tmp_path / "id"
    started = fake.run(
        "-d", "--name", "m", "--cidfile", str(cidfile), "--stop-signal", "USR1", "--stop-timeout", "1", "--cpu-template",
        "T2", "--ht-enabled", "--log-firecracker-http-calls", "--netns", "/run/x",
        script=Script(ignore_stop=True),
    )  # fmt: skip
    assert started.status == 0, started.describe()
    assert cidfile.read_text() == started.stdout.strip()
    assert "note: --ht-enabled has no effect" in started.stderr
    assert '"cpu_template":"T2"' in started.stderr, started.describe()
    refused = fake.run("-d", "--root-drive-partuuid", "x")
    assert refused.status == 125 and "--root-drive-partuuid does not go" in refused.stderr, refused.describe()
    again = fake.run("-d", "--cidfile", str(cidfile))
    assert again.status == 125
    assert "exists already" in again.stderr
    fake.cli.ok("stop", "m")
    assert _shown(fake, "m")["ExitCode"] == 137, "force after the second that it asked for"
    assert fake.cli.json("inspect", "m")["Configs"]["RunConfig"]["EntrypointInfo"]["StopSignal"] == "USR1"
    cidfile.unlink()
    assert fake.run("-d", "--cidfile", str(cidfile), script=Script(die_at_start=True)).status == 125
    assert not cidfile.exists()
    assert "is not a signal" in fake.run("-d", "--stop-signal", "odd").stderr


def test_logs_of_a_part(fake: Fake) -> None:
    fake.run("-d", "--name", "talker", script=Script(output="one\ntwo\nthree\n"))
    fake.cli.await_output("talker", "three")
    times = [line.split()[0] for line in fake.cli.ok("logs", "-t", "talker").splitlines()]
    assert fake.cli.ok("logs", "--until", "1h", "talker") == ""
    assert fake.cli.ok("logs", "--since", "1h30m", "--until", times[-1].replace("Z", "+00:00"), "talker")
    with fake.cli.start("logs", "-f", "--tail", "2", "talker") as process:
        fake.cli.ok("kill", "-s", "USR1", "talker")
        fake.cli.ok("kill", "talker")
        stdout, _ = process.communicate(timeout=120)
    # The signal's line may be one of the last two already.
    assert stdout.endswith("three\nsignal 10\n")
    assert "one\n" not in stdout
    assert fake.cli.ok("logs", "--tail", "1", "--console", "talker") == "fake kernel: booting\n"
    assert "does not go with --console" in fake.cli.refused("logs", "--console", "-f", "talker").stderr
    assert "is neither a time nor an age" in fake.cli.refused("logs", "--since", "odd", "talker").stderr
    assert "is not a number of lines" in fake.cli.refused("logs", "--tail", "-1", "talker").stderr


def test_stats_shows_what_runs(fake: Fake) -> None:
    fake.run("-d", "--name", "busy")
    item = json.loads(fake.cli.ok("stats", "--no-stream", "--format", "json"))
    assert item["Name"] == "busy"
    assert re.fullmatch(r"[0-9.]+%", item["CPUPerc"])
    assert re.fullmatch(r"[0-9.]+MB / 268MB", item["MemUsage"])
    assert int(item["PIDs"]) >= 1
    assert "busy" in fake.cli.ok("stats", "--no-stream", "busy")
    fake.cli.ok("kill", "busy")
    assert "is stopped" in fake.cli.refused("stats", "--no-stream", "busy").stderr
    assert fake.cli.ok("stats", "--no-stream", "--format", "json") == ""


def test_the_foreground_passes_signals_on(fake: Fake) -> None:
    script = Script(output="hello\n", end_on_signal=int(signal.SIGUSR2))
    environment = {**fake.cli.environment(), **fake.environment(script)}
    argv = fake.cli._argv(["run", "--name", "fg", "--from", IMAGE, "--network", "none"])
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "hello\n"
    assert fake.cli.run("exec", "--vmm-id", "fg", "anything").status == 3
    assert "name a machine and a command" in fake.cli.refused("exec", "--vmm-id", "fg").stderr
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "signal 10\n"
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=120)
    assert process.returncode == 140
    assert fake.cli.ok("rm", "--vmm-id", "fg") == "fg\n"
