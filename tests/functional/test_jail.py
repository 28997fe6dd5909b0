"""What keeps a VMM apart: a jailer that really jails, control groups, users; with a scripted stand-in for the VMM."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.host.cgroups import find_hierarchies
from tests.support.cli import Cli
from tests.support.fake_jailer import write_fake_jailer
from tests.support.fake_machines import FIRST_ID, IMAGE, Jails
from tests.support.fake_vmm import Script, write_fake_vmm
from tests.support.processes import runs

needs_groups = pytest.mark.skipif(find_hierarchies() is None, reason="this host shows no control groups")


@pytest.fixture
def jails(firebuild_cli: Cli, tmp_path: Path) -> Iterator[Jails]:
    yield Jails(firebuild_cli, tmp_path)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in lines)}


def _lines(text: str, words: int) -> list[list[str]]:
    return [line.split(" ", words) for line in text.splitlines()]


def test_a_jailed_machine_from_its_start_to_its_end_and_again(jails: Jails) -> None:
    started = jails.jailed("-d", "--name", "one", probe=True, network="machines")
    assert started.status == 0, started.describe()
    machine_id, pid = started.stdout.strip(), jails.vmm_pid("one")
    status = _status(pid)
    ids = " ".join([str(FIRST_ID)] * 4)
    shown = {key: status[key] for key in ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp")}
    assert shown == {"Uid": ids, "Gid": ids, "Groups": "", "NoNewPrivs": "1", "Seccomp": "2"}
    assert status["NSpid"].split()[-1] == "1"
    for namespace in ("mnt", "pid", "net"):
        assert os.stat(f"/proc/{pid}/ns/{namespace}").st_ino != os.stat(f"/proc/self/ns/{namespace}").st_ino
    (root,) = (jails.cli.run_folder / "m" / machine_id).glob("j/firecracker/*/root")
    # Nothing is mounted where the host sees it, and nothing but the VMM's own things is the VMM's.
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
    assert (root.parent.stat().st_uid, (root / "fb").stat().st_uid, root.stat().st_uid) == (0, 0, FIRST_ID)
    assert stat.S_IMODE((root / "v.sock_1025").stat().st_mode) == 0o600
    told = {" ".join(words[:2]): words[2] for words in _lines(jails.cli.ok("logs", "one"), 2)[1:]}
    assert jails.cli.ok("logs", "one").startswith(f"uid {FIRST_ID} pid 1 root ")
    assert [told[f"{name} rb"] for name in ("kernel", "initramfs", "rootfs", "upper")] == ["ok"] * 4
    assert told["upper r+b"] == "ok"
    mounts = {words[4]: words[5].split(",")[0] for words in _lines(Path(f"/proc/{pid}/mountinfo").read_text(), 6)}
    assert mounts["/fb/drive-upper"] == "rw"
    for name in ("kernel", "initramfs", "rootfs"):
        assert told[f"{name} r+b"] in ("Permission denied", "Read-only file system")
        assert mounts[f"/fb/{'drive-' if name == 'rootfs' else ''}{name}"] == "ro"
    assert jails.cli.run("exec", "one", "--", "anything").status == 3
    upper = jails.cli.state / "machines" / machine_id / "upper.ext4"
    assert upper.stat().st_uid == FIRST_ID
    jails.cli.ok("pause", "one")
    jails.cli.ok("resume", "one")
    jails.cli.ok("stop", "one")
    assert (upper.stat().st_uid, stat.S_IMODE(upper.stat().st_mode)) == (0, 0o600)
    assert jails.claims() == []
    jails.cli.ok("start", "one", environment=jails.environment(Script(seccomp=True)))
    assert _status(jails.vmm_pid("one"))["Uid"] == ids
    second = jails.jailed("-d", "--name", "two")
    assert second.status == 0, second.describe()
    assert _status(jails.vmm_pid("two"))["Uid"].split()[0] == str(FIRST_ID + 1)
    jails.cli.ok("rm", "-f", "one", "two")


@pytest.mark.parametrize(
    ("faults", "script", "words"),
    [
        (("user",), {"seccomp": True}, f"its users are [0, 0, 0, 0] and not {FIRST_ID}; its groups are [0, 0, 0, 0]"),
        (("groups",), {"seccomp": True}, "it has the further groups [0]"),
        (("limits",), {"seccomp": True}, "its limit `Max open files` is"),
        ((), {"seccomp": False}, "threads have no seccomp filter"),
        ((), {"seccomp": True, "refuse": {"PUT /boot-source": "no such kernel"}}, "refused PUT /boot-source"),
        ((), {"seccomp": True, "die_at_start": True}, "ended before its API was there"),
    ],
    ids=["user", "groups", "limits", "seccomp", "refuses", "dies"],
)
def test_a_vmm_that_is_not_kept_apart_is_killed(
    jails: Jails, faults: tuple[str, ...], script: dict[str, object], words: str
) -> None:
    jails.faults = faults
    result = jails.run("-d", "--name", "m", "--boot-timeout", "20", script=Script(**script))  # type: ignore[arg-type]
    assert result.status == 125, result.describe()
    assert words in result.stderr, result.describe()
    assert jails.cli.ok("ls", "-a", "-q") == ""
    assert jails.claims() == []


def test_a_vmm_in_the_hosts_network_is_killed(jails: Jails) -> None:
    jails.faults = ("netns",)
    result = jails.jailed("-d", "--name", "m", network="machines")
    assert "it is in the host's net namespace; it is not in the network namespace `/run/netns/" in result.stderr
    assert jails.cli.ok("ls", "-a", "-q") == ""


def test_programs_that_will_not_do_are_refused_before_anything_exists(jails: Jails, tmp_path: Path) -> None:
    good = jails.environment(Script(seccomp=True))
    other = tmp_path / "other-jailer"
    foreign = tmp_path / "firecracker-foreign"
    head = bytearray(Path("/proc/self/exe").read_bytes()[:64])
    head[18:20] = b"\x08\x00"
    foreign.write_bytes(head)
    foreign.chmod(0o755)
    named = write_fake_vmm(tmp_path / "vmm", Script())
    no_one = write_fake_vmm(tmp_path / "firecracker-none", Script(version="QEMU emulator"))
    cases = {
        "is the jailer of Firecracker 1.16.1, and": {
            "FIREBUILD_BINARY_JAILER": str(write_fake_jailer(other, version="1.16.1"))
        },
        "is a program for another processor": {"FIREBUILD_BINARY_FIRECRACKER": str(foreign)},
        "the jailer wants `firecracker` in that name": {"FIREBUILD_BINARY_FIRECRACKER": str(named)},
        "is not a Firecracker that works": {"FIREBUILD_BINARY_FIRECRACKER": str(no_one)},
        "is not the Jailer that works": {"FIREBUILD_BINARY_JAILER": "/bin/true"},
        "--binary-jailer: `/nonexistent` cannot be read": {"FIREBUILD_BINARY_JAILER": "/nonexistent"},
    }
    for words, changes in cases.items():
        command = ("run", "-d", "--from", IMAGE, "--network", "none")
        result = jails.cli.run(*command, environment={**good, **changes})
        assert result.status == 125, result.describe()
        assert words in result.stderr, result.describe()
    assert not list((jails.cli.state / "machines").iterdir())
    assert jails.claims() == []


def test_a_range_of_users_that_is_used_up(jails: Jails) -> None:
    jails.more = {"FIREBUILD_JAILER_IDS": f"{FIRST_ID}-{FIRST_ID}"}
    assert jails.jailed("-d", "--name", "one").status == 0
    result = jails.jailed("-d", "--name", "two")
    assert f"all 1 user ids for VMMs, {FIRST_ID} to {FIRST_ID}, are in use" in result.stderr, result.describe()
    jails.cli.ok("kill", "one")
    assert jails.jailed("-d", "--name", "two").status == 0
    jails.cli.ok("rm", "-f", "one", "two")


def test_kill_nine_of_the_supervisor_and_of_the_command(jails: Jails) -> None:
    started = jails.jailed("-d", "--name", "one")
    assert started.status == 0, started.describe()
    pid = jails.vmm_pid("one")
    supervisor = int(_status(pid)["PPid"])
    os.kill(supervisor, signal.SIGKILL)
    assert [line for line in jails.cli.ok("purge").splitlines() if line] == ["one"]
    assert not runs(pid)
    # A command that dies while its VMM is being started: the supervisor ends it, and the next command mends the rest.
    environment = {**jails.cli.environment(), **jails.environment(Script(seccomp=True, ready=False))}
    command = jails.cli._argv(["run", "-d", "--name", "two", "--from", IMAGE, "--network", "none"])
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        from firebuild.host.deadline import Deadline
        from firebuild.host.watch import wait_for_path

        machines = jails.cli.run_folder / "m"
        while not list(machines.glob("*/v.sock")):
            wait_for_path(machines, Deadline(30, "the jail"))
    finally:
        process.kill()
        process.wait()
    jails.cli.run("purge")
    assert jails.claims() == []


@needs_groups
def test_a_jailed_machine_that_no_record_names_is_swept(jails: Jails) -> None:
    """Its supervisor is dead and its database gone: the VMM is found by its control group."""
    assert jails.jailed("-d", "--name", "one").status == 0
    pid = jails.vmm_pid("one")
    os.kill(int(_status(pid)["PPid"]), signal.SIGKILL)
    for file in jails.cli.state.glob("firebuild.db*"):
        file.unlink()
    assert runs(pid)
    jails.cli.ok("purge")
    assert not runs(pid)
    assert jails.claims() == []


def test_a_chroot_base_on_a_file_system_without_programs_and_devices(jails: Jails) -> None:
    folder = jails.cli.run_folder / "base"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev,noexec,nosuid,mode=711", "tmpfs", str(folder)], check=True)
    try:
        jails.more = {"FIREBUILD_RUN": str(folder)}
        result = jails.jailed("-d", "--rm", "--name", "one", exit_after_s=0.5)
        assert result.status == 0, result.describe()
        jails.cli.run("wait", "one", environment=jails.more)
        jails.cli.run("rm", "-f", "one", environment=jails.more)
        jails.cli.run("purge", environment=jails.more)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def test_disks_of_the_users_are_lent_and_given_back(jails: Jails) -> None:
    shared, own, readable = (jails.folder / name for name in ("shared", "own", "readable"))
    for path, mode in ((shared, 0o600), (own, 0o640), (readable, 0o644)):
        path.write_bytes(b"x" * 4096)
        path.chmod(mode)
    os.chown(own, 1234, 1235)
    disks = [word for text in (f"{own}", f"{shared}:ro", f"{readable}:ro") for word in ("--disk", text)]
    started = jails.jailed("-d", "--name", "one", *disks, probe=True)
    assert started.status == 0, started.describe()
    told = {" ".join(words[:2]): words[2] for words in _lines(jails.cli.ok("logs", "one"), 2)[1:]}
    assert [told[f"disk{number} rb"] for number in range(3)] == ["ok"] * 3
    assert told["disk0 r+b"] == "ok"
    assert "ok" not in (told["disk1 r+b"], told["disk2 r+b"])
    # What only its owner may read is copied; the others are the files themselves.
    (copy,) = (jails.cli.state / "machines" / started.stdout.strip()).glob("private-*")
    assert copy.read_bytes() == shared.read_bytes()
    assert own.stat().st_uid == FIRST_ID
    assert (shared.stat().st_uid, readable.stat().st_uid) == (0, 0)
    jails.cli.ok("kill", "one")
    status = own.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 1235, 0o640)
    assert not copy.exists()
    jails.cli.ok("rm", "one")


def test_a_block_device_has_a_node_in_the_jail(jails: Jails) -> None:
    backing = jails.folder / "backing"
    backing.write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"this host has no loop devices: {made.stderr}")
    device = Path(made.stdout.strip())
    try:
        before = os.stat(device)
        for mode, writable in (("", True), (":ro", False)):
            started = jails.jailed("-d", "--name", "one", "--disk", f"{device}{mode}", probe=True)
            assert started.status == 0, started.describe()
            told = {" ".join(words[:2]): words[2] for words in _lines(jails.cli.ok("logs", "one"), 2)[1:]}
            assert (told["disk0 rb"], told["disk0 r+b"] == "ok") == ("ok", writable)
            assert (os.stat(device).st_uid, os.stat(device).st_mode) == (before.st_uid, before.st_mode)
            jails.cli.ok("rm", "-f", "one")
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


@needs_groups
def test_limits_hold_for_jailed_and_other_vmms(jails: Jails, tmp_path: Path) -> None:
    hierarchies = find_hierarchies()
    assert hierarchies is not None
    limits = ("--vmm-memory-max", "+64m", "--vmm-pids-max", "64", "--vmm-cpu-max", "1.5")
    assert jails.jailed("-d", "--name", "one", *limits).status == 0
    command = ("run", "-d", "--name", "two", "--from", IMAGE, "--network", "none", *limits)
    other = write_fake_vmm(tmp_path / "vmm", Script())
    jails.cli.ok(*command, environment={"FIREBUILD_BINARY_FIRECRACKER": str(other)})
    files = {
        1: {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpu": "cpu.cfs_quota_us"},
        2: {"memory": "memory.max", "pids": "pids.max", "cpu": "cpu.max"},
    }[hierarchies.version]
    for name in ("one", "two"):
        machine_id, pid = jails.cli.json("inspect", name)["VMMID"], jails.vmm_pid(name)
        wanted = {"memory": str((256 + 64) << 20), "pids": "64", "cpu": "150000"}
        for controller, file in files.items():
            group = Path(hierarchies.mounts[controller]) / "firebuild" / machine_id
            assert (group / file).read_text().split()[0] == wanted[controller]
            assert str(pid) in (group / "cgroup.procs").read_text().split()
        jailer = jails.cli.json("inspect", name)["Configs"]["Jailer"]
        assert jailer["Limits"] == {"Memory": (256 + 64) << 20, "NanoCpus": 1500000000, "PidsLimit": 64}
        assert jailer["UID"] == jailer["GID"] == (FIRST_ID if name == "one" else None)
    jails.cli.ok("rm", "-f", "one", "two")


@needs_groups
def test_a_vmm_that_takes_more_than_it_may(jails: Jails) -> None:
    """Whoever is in its group ends with it, processes that nobody knows of too: the ledger looks for them."""
    hog = jails.jailed("-d", "--name", "hog", "-m", "64", "--vmm-memory-max", "+64m", hog_mib=1024)
    assert hog.status == 0, hog.describe()
    jails.cli.run("wait", "hog")
    state = jails.cli.json("inspect", "hog")["State"]
    assert (state["Status"], state["Reason"]) == ("failed", "out of memory: the VMM wanted more than --vmm-memory-max")
    forker = jails.jailed("-d", "--name", "forker", "--vmm-pids-max", "20", forks=50)
    assert forker.status == 0, forker.describe()
    jails.cli.await_output("forker", "Resource temporarily unavailable")
    assert int(jails.cli.ok("logs", "forker").split()[0]) < 20
    jails.cli.ok("rm", "-f", "hog", "forker")


def test_doctor_measures_what_production_wants(jails: Jails) -> None:
    def examine(**changes: str) -> tuple[int, dict[str, tuple[str, str]]]:
        environment = {**jails.environment(Script()), **changes}
        result = jails.cli.run("doctor", "--production", "--format", "json", environment=environment)
        checks = json.loads(result.stdout)["checks"]
        items = {check["name"].removeprefix("production: "): (check["status"], check["found"]) for check in checks}
        return result.status, items

    status, items = examine()
    assert status == int(any(state in ("unfit", "missing") for state, _ in items.values()))
    assert items["jailer"][0] == "ok" and str(jails.folder / "jailer") in items["jailer"][1]
    assert items["limits"] == ("unfit", "not set: --vmm-memory-max, --vmm-cpu-max, --vmm-pids-max")
    jails.folder.chmod(0o777)
    status, items = examine(
        FIREBUILD_VMM_MEMORY_MAX="+64m", FIREBUILD_VMM_CPU_MAX="1", FIREBUILD_VMM_PIDS_MAX="9",
        FIREBUILD_MACHINE_ALLOW="metadata", FIREBUILD_BINARY_JAILER="", FIREBUILD_JAILER_IDS="60000-70000",
    )  # fmt: skip
    assert status == 1
    assert items["paths"] == ("unfit", f"`{jails.folder}` may be changed by others (mode 777)")
    assert items["jailer"][0] == items["users"][0] == items["metadata service"][0] == "unfit"
    assert "nobody" in items["users"][1]
    assert items["limits"][0] == "ok"


def test_limits_that_cannot_be_are_refused(jails: Jails) -> None:
    refused = jails.jailed("-d", "--vmm-memory-max", "100m")
    assert "--vmm-memory-max is 100 MiB" in refused.stderr and "has a guest of 256 MiB" in refused.stderr
    if find_hierarchies() is not None:
        # No kernel takes so many.
        refused = jails.jailed("-d", "--vmm-pids-max", str(10**18))
        assert "the limit `1000000000000000000` cannot be set in" in refused.stderr, refused.describe()
    assert jails.cli.ok("ls", "-a", "-q") == ""
