"""What a host can do to machines: frozen and reused processes, no descriptors, processes or watches left, a full, read-only or damaged
state, a clock that jumps. Each is one clear error or none, bounded, and nothing is lost or left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import IMAGE, Fake
from tests.support.fake_vmm import Script
from tests.support.full_disk import fill
from tests.support.ledger import Watch
from tests.support.processes import runs

ROOT = Path(__file__).parents[2]
RUN = ("run", "-d", "--name", "m", "--from", IMAGE, "--network", "none")


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def recorded(cli: Cli, name: str) -> dict[str, Any]:
    database = sqlite3.connect(cli.state / "firebuild.db")
    (text,) = database.execute("SELECT record FROM machines WHERE name = ?", (name,)).fetchone()
    database.close()
    record: dict[str, Any] = json.loads(text)
    return record


def under(cli: Cli, *prefix: str) -> Cli:
    """The same firebuild, its commands started by another program."""
    return Cli(cli.state, cli.run_folder, prefix=prefix, transcript=cli.transcript, started=cli.started)


def is_clean(fake: Fake) -> bool:
    """Whether no machine is there, in the records or in folders."""
    folders = [folder for folder in (fake.cli.state / "machines", fake.cli.run_folder / "m") if folder.exists()]
    return fake.cli.ok("ls", "-a", "-q") == "" and not any(any(folder.iterdir()) for folder in folders)


def test_a_frozen_vmm_is_ended_in_bounded_time(fake: Fake) -> None:
    """R6, T11: it answers nothing, neither the API nor the guest's stop."""
    fake.run("-d", "--name", "frozen")
    os.kill(recorded(fake.cli, "frozen")["vmm"]["pid"], signal.SIGSTOP)
    assert fake.state("frozen") == "running"
    fake.cli.ok("stop", "-t", "1", "frozen", timeout_s=60)
    shown = fake.cli.json("inspect", "frozen")["State"]
    assert (shown["Status"], shown["ExitCode"], shown["Reason"]) == ("stopped", 137, "killed")


def test_a_frozen_supervisor_with_a_dead_vmm_is_ended_in_bounded_time(fake: Fake) -> None:
    """R3: the VMM is a zombie that nobody waits for; its supervisor takes no request."""
    fake.run("-d", "--name", "zombie")
    processes = recorded(fake.cli, "zombie")
    os.kill(processes["supervisor"]["pid"], signal.SIGSTOP)
    os.kill(processes["vmm"]["pid"], signal.SIGKILL)
    fake.cli.ok("kill", "--signal", "KILL", "zombie", timeout_s=120)
    assert fake.state("zombie") in ("stopped", "lost", "failed")
    fake.cli.ok("rm", "zombie")


def test_the_supervisor_is_the_last_to_go_when_memory_runs_out(fake: Fake) -> None:
    """G2: the VMM is the kernel's choice before it, and its end by the kernel is a machine's end like another."""
    fake.run("-d", "--name", "m")
    processes = recorded(fake.cli, "m")
    scores = {
        name: int(Path(f"/proc/{processes[name]['pid']}/oom_score_adj").read_text()) for name in ("supervisor", "vmm")
    }
    # Without CAP_SYS_RESOURCE (bit 24, capabilities(7)) nobody can lower it.
    capabilities = re.search(r"CapEff:\s+(\w+)", Path("/proc/self/status").read_text())
    may_lower = capabilities is not None and int(capabilities[1], 16) >> 24 & 1
    assert scores["supervisor"] == (-900 if may_lower else 0)
    assert scores["vmm"] == 0
    os.kill(processes["vmm"]["pid"], signal.SIGKILL)
    assert fake.cli.run("wait", "m").status in (0, 1)
    assert fake.state("m") == "failed"


REUSE = """
import os, subprocess, sys, time
sys.path.insert(0, "src")
from firebuild.host.identity import find_identity, is_alive, kill_and_wait, send_signal, wait_gone
import signal
for _ in range(100):
    first = subprocess.Popen(["/bin/sleep", "600"])
    identity = find_identity(first.pid)
    first.kill(); first.wait()
    # Two processes of one number cannot have begun in one tick of the clock: a hundredth of a second.
    time.sleep(0.011)
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(identity.pid - 1))
    second = subprocess.Popen(["/bin/sleep", "600"])
    assert second.pid == identity.pid, (second.pid, identity)
    assert not is_alive(identity) and not send_signal(identity, signal.SIGKILL)
    assert wait_gone(identity, 0) and kill_and_wait(identity, grace_s=0)
    assert second.poll() is None
    second.kill(); second.wait()
print("unharmed")
"""


def test_a_reused_process_number_is_never_signalled() -> None:
    """R5: a hundred times, forced in a PID namespace."""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", REUSE],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "unharmed\n", done.stderr


@pytest.mark.parametrize("limit", [6, 8, 10, 12, 14, 17, 20])
def test_no_descriptors_left(fake: Fake, limit: int) -> None:
    """X1: a command is refused in words, and leaves nothing."""
    result = under(fake.cli, "prlimit", f"--nofile={limit}").run(*RUN, environment=fake.environment(Script()))
    if result.status:
        assert "Traceback" not in result.stderr and "fault of firebuild" not in result.stderr, result.describe()
        assert is_clean(fake)


@pytest.mark.parametrize(
    ("calls", "fault", "word"),
    [
        ("inotify_init1", "EMFILE", "inotify"),
        ("inotify_add_watch", "ENOSPC", "watch"),
        ("?vfork,?clone,?clone3,?fork", "EAGAIN", "temporarily unavailable"),
        ("?vfork,?clone,?clone3,?fork", "ENOMEM", "cannot allocate memory"),
        ("pipe2", "EMFILE", "open files"),
        ("socket", "ENFILE", "open files in system"),
        ("flock", "ENOLCK", "no locks available"),
    ],
    ids=["inotify instances", "inotify watches", "processes", "memory", "descriptors", "all descriptors", "locks"],
)
def test_the_kernel_refuses(fake: Fake, calls: str, fault: str, word: str) -> None:
    """X1: each pool, from the first use on."""
    tracing = ("strace", "-qqq", "-o", "/dev/null", "-e", f"inject={calls}:error={fault}")
    result = under(fake.cli, *tracing).run(*RUN, environment=fake.environment(Script()))
    assert result.status == 125, result.describe()
    assert "Traceback" not in result.stderr, result.describe()
    assert word in result.stderr.lower(), result.describe()
    assert is_clean(fake)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_and_a_read_only_state(ledger: None, private_folders: Watch, tmp_path: Path) -> None:
    """X1, R8: what runs goes on, can be stopped and removed; what is new is refused."""
    folder = private_folders.state / "disk"
    with mounted(folder, "256m"):
        cli = Cli(folder / "state", private_folders.run)
        cli.state.mkdir(mode=0o711)
        fake = Fake(cli, tmp_path)
        for name in ("first", "second"):
            assert fake.run("-d", "--name", name, script=Script(output="hello\n")).status == 0
            end = time.monotonic() + 120
            while cli.ok("logs", name) != "hello\n":
                assert time.monotonic() < end
        filler = fill(folder)
        refused = fake.run("-d", "--name", "third")
        assert refused.status == 125 and "space" in refused.stderr, refused.describe()
        done = cli.run("exec", "second", "--", "anything")
        assert (done.status, done.stdout) == (3, "fake output\n"), done.describe()
        assert fake.state("second") == "running" and cli.ok("ls", "-q").count("\n") == 2
        assert cli.ok("logs", "second") == "hello\n"
        cli.ok("stop", "first")
        assert fake.state("first") in ("stopped", "lost")
        cli.ok("rm", "first")
        filler.unlink()

        bind = f'mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}; exec "$@"'
        read_only = under(cli, "unshare", "--mount", "sh", "-c", bind, "sh")
        for command in (("stop", "second"), RUN, ("purge",)):
            refused = read_only.refused(*command, environment=fake.environment(Script()))
            assert "read-only" in refused.stderr.lower(), refused.describe()
        assert fake.state("second") == "running"
        cli.ok("stop", "second")
        cli.ok("rm", "second")
        assert is_clean(fake)
        assert cli.run("fsck").status == 0


def test_a_damaged_database_is_named_and_what_it_forgot_is_swept(fake: Fake) -> None:
    """C1, S6: with the file moved away as the hint says, no VMM runs on without a record."""
    fake.cli.ok("run", "-d", "--name", "m", "--from", IMAGE, environment=fake.environment(Script()))
    processes = recorded(fake.cli, "m")
    database = fake.cli.state / "firebuild.db"
    saved = database.with_name("saved")
    subprocess.run([sys.executable, "-c", CHECKPOINT, database], check=True)
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    shutil.copy(database, saved)
    database.write_bytes(b"SQLite format 3\0" + b"damaged " * 2000)
    for command in (("ls",), ("stop", "m"), ("purge",)):
        refused = fake.cli.refused(*command)
        assert "firebuild.db` is damaged" in refused.stderr and "move it away" in refused.stderr, refused.describe()
    database.unlink()
    fake.cli.ok("purge")
    assert is_clean(fake)
    for process in processes["supervisor"]["pid"], processes["vmm"]["pid"]:
        assert not runs(process)
    saved.unlink()


CHECKPOINT = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as database:
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
database.close()
"""


def test_a_record_that_does_not_parse_is_named(fake: Fake) -> None:
    fake.run("-d", "--name", "odd")
    database = sqlite3.connect(fake.cli.state / "firebuild.db")
    (text,) = database.execute("SELECT record FROM machines").fetchone()
    try:
        for bad in ("{", "[]", '{"supervisor": 7}'):
            with database:
                database.execute("UPDATE machines SET record = ?", (bad,))
            refused = fake.cli.refused("ls")
            assert "the record of the machine odd" in refused.stderr and "move the database away" in refused.stderr
    finally:
        with database:
            database.execute("UPDATE machines SET record = ?", (text,))
        database.close()
    fake.cli.ok("kill", "odd")


@pytest.mark.parametrize("days", [1, -1], ids=["ahead", "back"])
def test_a_clock_that_jumps(fake: Fake, tmp_path: Path, days: int) -> None:
    """H3: commands whose clocks are a day apart, in both orders."""
    folder = tmp_path / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import time\nreal, real_ns = time.time, time.time_ns\n"
        f"time.time = lambda: real() + {days * 86400}\ntime.time_ns = lambda: real_ns() + {days * 86400 * 10**9}\n"
    )
    jumped = {**fake.environment(Script(output="hello\n")), "PYTHONPATH": str(folder)}
    fake.cli.ok(*RUN, environment=jumped)
    assert fake.state("m") == "running"
    assert fake.cli.ok("purge") == ""
    assert fake.state("m") == "running"
    fake.cli.ok("gc")
    fake.cli.ok("stop", "m", environment=jumped)
    fake.cli.ok("start", "m", environment=fake.environment(Script(output="hello\n")))
    fake.cli.ok("ls", environment=jumped)
    fake.cli.ok("stop", "m")
    assert fake.cli.ok("logs", "m") == "hello\nhello\n"
    assert fake.state("m") == "stopped"
