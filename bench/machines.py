"""What machines cost beside their VMMs: the list of a thousand, a create and a destroy, and a supervisor's memory.

The VMM is a scripted stand-in, so nothing of a guest is in the figures. Start-up times are ratios to a bare interpreter's, taken in
turn with it in one run. A life, create and destroy, is measured twice: as a program that uses the library has it, where the
processor time is that of every process but the VMM; and as the three commands `run`, `kill`, `rm`, where it is that of the commands,
an interpreter each. Needs root; it works in a state of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from firebuild.engine.machines import RunRequest, end_machine, remove, run_machine
from firebuild.machine.spec import NetworkJoin
from tests.support.cli import PROGRAM, Cli
from tests.support.fake_machines import IMAGE, Fake
from tests.support.fake_vmm import Script

LISTED = 1000
_PR_SET_CHILD_SUBREAPER = 36


def wall(argv: list[str], environment: dict[str, str]) -> float:
    """Seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(argv, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def fill(cli: Cli, count: int) -> None:
    """Multiply the one ended machine's record."""
    database = sqlite3.connect(cli.state / "firebuild.db")
    columns = [row[1] for row in database.execute("PRAGMA table_info(machines)")]
    row = dict(zip(columns, database.execute("SELECT * FROM machines").fetchone(), strict=True))
    with database:
        for number in range(count - 1):
            machine_id, name = f"{number:020d}", f"listed{number}"
            spec = json.dumps({**json.loads(row["spec"]), "id": machine_id, "name": name})
            copy = {**row, "id": machine_id, "name": name, "spec": spec}
            database.execute(
                f"INSERT INTO machines ({','.join(columns)}) VALUES ({','.join('?' * len(columns))})",
                [copy[column] for column in columns],
            )
    database.close()


def measure_list(fake: Fake, rounds: int) -> None:
    """`ls` with a thousand machines against an interpreter that does nothing."""
    fake.run("-d", "--name", "one")
    fake.cli.ok("kill", "one")
    fill(fake.cli, LISTED)
    environment = fake.cli.environment()
    ours, bare = [], []
    for _ in range(rounds):
        ours.append(wall([str(PROGRAM), "ls", "-a"], environment))
        bare.append(wall([sys.executable, "-I", "-c", "pass"], environment))
    ratio = min(ours) / min(bare)
    print(
        f"ls of {LISTED} machines: {min(ours) * 1000:.0f} ms; bare interpreter {min(bare) * 1000:.0f} ms; ratio {ratio:.1f}"
    )
    database = sqlite3.connect(fake.cli.state / "firebuild.db")
    with database:
        database.execute("DELETE FROM machines WHERE name LIKE 'listed%'")
    database.close()
    fake.cli.ok("rm", "one")


def measure_library(fake: Fake, network: str, rounds: int) -> None:
    """Create and destroy by a program that lives on: the processor time of it, the supervisor and the plugins.

    What the VMM has used by the time it is killed is taken off. The first round warms up and does not count.
    """
    # Supervisors are daemons: with this they become our children when their parent goes, and their time is told to us.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    environment = {**fake.cli.environment(), **fake.environment(Script())}
    joins = () if network == "none" else (NetworkJoin(network),)
    used = []
    with Engine(load_settings(environment)[0]) as engine:
        for _ in range(rounds + 1):
            before = processor_s()
            record = run_machine(engine, RunRequest(image=IMAGE, name="m", networks=joins))
            assert record.progress.vmm is not None
            vmm_s = scheduled_s(record.progress.vmm.pid)
            end_machine(engine, "m", timeout_s=0)
            remove(engine, "m", force=False)
            with suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)
            used.append((processor_s() - before - vmm_s) * 1000)
    print(
        f"create and destroy on the network {network}: {statistics.median(used[1:]):.0f} ms of processor time beside the VMM"
    )


def processor_s() -> float:
    """Seconds of processor time that this process and its children that have ended have used."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def scheduled_s(pid: int) -> float:
    """Seconds of processor time of a running process, of all its threads (proc(5), schedstat)."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def measure_commands(fake: Fake, network: str, rounds: int) -> None:
    """run -d, kill and rm: the commands' processor time, and the supervisor's memory."""
    environment = fake.environment(Script())
    commands, memory = [], []
    for _ in range(rounds):
        before = os.times()
        fake.cli.ok("run", "-d", "--name", "m", "--from", IMAGE, "--network", network, environment=environment)
        supervisor = supervisor_of(fake.cli)
        memory.append(private_kib(supervisor))
        fake.cli.ok("kill", "m")
        fake.cli.ok("rm", "m")
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        commands.append(used * 1000)
    print(
        f"run, kill, rm on the network {network}: {statistics.median(commands):.0f} ms of processor time in commands; "
        f"supervisor {statistics.median(memory) / 1024:.1f} MiB resident beside the VMM"
    )


def supervisor_of(cli: Cli) -> int:
    """The one machine's supervisor."""
    database = sqlite3.connect(cli.state / "firebuild.db")
    (record,) = database.execute("SELECT record FROM machines").fetchone()
    database.close()
    pid: int = json.loads(record)["supervisor"]["pid"]
    return pid


def private_kib(pid: int) -> int:
    """KiB of a process that no other has: what one more of them costs (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def main() -> None:
    """List, life, memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with (
        tempfile.TemporaryDirectory(prefix="fbs-", dir="/var/tmp") as state,
        tempfile.TemporaryDirectory(prefix="fbt-", dir="/run") as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        for path in (state, run):
            Path(path).chmod(0o711)
        cli = Cli(Path(state), Path(run))
        fake = Fake(cli, Path(folder))
        try:
            measure_list(fake, rounds)
            for network in ("none", "machines"):
                measure_commands(fake, network, rounds)
                measure_library(fake, network, rounds)
        finally:
            cli.clean()


if __name__ == "__main__":
    main()
