"""Guests that are held, go on, and become other machines, step by step: direct, beside systemd, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from firebuild.errors import GuestError
from firebuild.guest.control import GuestProcess, request_processes
from firebuild.host.deadline import Deadline
from tests.support.baseos import ensure_tree
from tests.support.cli import BUILD_TIMEOUT_S, COMMAND_TIMEOUT_S, Cli
from tests.support.clones import Guest
from tests.vm.conftest import BASE, CACHE, SharedState

COUNT = "i=0; while :; do i=$((i+1)); echo $i >/next; mv /next /count; sleep 0.02; done"
OTHER = "z" * 20
IDENTITY = "cat /etc/machine-id /proc/sys/kernel/random/boot_id"
# It looks twice at what the entrypoint writes all the time.
HOOK = """#!/bin/sh
first=$(cat /count); i=0; while [ $i -lt 300 ]; do i=$((i+1)); done
echo "$FIREBUILD_ID $FIREBUILD_HOSTNAME $FIREBUILD_PREVIOUS_ID" $(($(cat /count) - first)) $(cat /etc/machine-id) >>/hooked
"""


@pytest.fixture
def guest(cli: Cli) -> Iterator[Guest]:
    cli.ok("run", "-d", "--name", "resume1", "--from", BASE, "--", "sh", "-c", COUNT)
    yield Guest.of(cli, "resume1")


def counted(guest: Guest) -> bool:
    """Whether the entrypoint goes on."""
    first = int(guest.sh("cat /count"))
    return any(int(guest.sh("cat /count")) > first for _ in range(50))


def test_held_and_made_another(guest: Guest) -> None:
    first = check_held(guest)
    check_another(guest, first)
    check_refusals(guest)
    check_a_hook_that_fails(guest)


def check_held(guest: Guest) -> list[str]:
    """Held twice, let go once; its identity, which is the same as before."""
    look = f"{IDENTITY}; ls /sys/fs/cgroup | sort"
    before = guest.sh(look)
    # A process that a user has stopped stays so.
    guest.sh("sleep 1000 & kill -STOP $!; echo $! >/stopped")
    assert (guest.pause(), guest.pause()) == ("groups", "groups")
    # Who goes on has started another `sleep` by then.
    seen = [process.pid for process in find_processes(guest)]
    assert all([process.pid for process in find_processes(guest)] == seen for _ in range(10))
    guest.go_on()
    assert counted(guest) and guest.sh(look) == before
    assert guest.sh("cut -d' ' -f3 /proc/$(cat /stopped)/stat") == "T\n"
    with pytest.raises(GuestError, match="not held"):
        guest.go_on()
    return before.split()[:2]


def check_another(guest: Guest, first: list[str]) -> None:
    """Each step, in its order, and back again."""
    write_hook(guest, "20-look", HOOK)
    write_hook(guest, "10-first", "#!/bin/sh\necho first >/hooked\n")
    write_hook(guest, "30-not.dpkg-old", "#!/bin/sh\nexit 1\n")
    metadata = {
        "LocalHostname": "other.example.org",
        "Env": {"COLOUR": "blue"},
        "Users": {"root": {"SSHKeys": "key\n"}},
    }
    document = guest.document(id=OTHER, mmds=None, metadata=metadata)
    document["dns"] = {"nameservers": ["10.250.9.1"], "search": [], "options": []}
    [interface] = document["interfaces"]
    interface["mac"] = interface["mac"][:-2] + ("00" if interface["mac"][-2:] != "00" else "01")
    interface["addresses"] = ["10.250.9.9/24", *interface["addresses"]]
    guest.sh("date -s 1999-12-31")
    steps = [step.name for step in guest.resume(document)]
    assert steps[0] == "random-pool" and steps[-1] == "go-on" and steps.index("hooks") > steps.index("ssh-host-keys")
    assert abs(int(guest.sh("date +%s")) - time.time()) < 3600
    assert guest.sh("cat /sys/class/net/eth0/address") == interface["mac"] + "\n"
    assert "10.250.9.9" in guest.sh("cat /proc/net/fib_trie")
    files = guest.sh(
        "hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf /root/.ssh/authorized_keys; . /etc/profile.d/run-env.sh; echo $COLOUR"
    )
    assert files.startswith("other.example.org\nother.example.org\n") and files.endswith("\nkey\nblue\n"), files
    assert "10.250.9.9\tother.example.org other\n" in files and "nameserver 10.250.9.1\n" in files
    after = guest.sh(IDENTITY).split()
    assert not set(after) & set(first)
    assert guest.sh("cat /hooked") == f"first\n{OTHER} other.example.org {guest.id} 0 {after[0]}\n"
    assert counted(guest) and guest.cli.json("inspect", guest.name)["State"]["Status"] == "running"

    # The first one once more, by its metadata service: nothing is left of the other.
    guest.resume(guest.document())
    assert guest.sh(IDENTITY).split()[0] == first[0] and "10.250" not in guest.sh("cat /proc/net/fib_trie")
    files = guest.sh("hostname; cat /etc/profile.d/run-env.sh; ls /root/.ssh")
    assert files.startswith(f"{guest.name}\n") and "blue" not in files and "authorized_keys" not in files


def check_refusals(guest: Guest) -> None:
    """What it cannot become is refused before anything is done."""
    for word, change in (
        ("interfaces", {"interfaces": []}),
        ("terminal", {"tty": True}),
        ("volumes", {"mounts": [{"drive": "vdc", "target": "/data", "read_only": False, "seed": False}]}),
    ):
        with pytest.raises(GuestError, match=word):
            guest.resume(guest.document(**change))
    assert counted(guest)


def check_a_hook_that_fails(guest: Guest) -> None:
    """It keeps all from going on, and says why. The guest can be stopped as it is."""
    write_hook(guest, "15-fails", "#!/bin/sh\necho no licence for $FIREBUILD_ID >&2\nexit 3\n")
    with pytest.raises(GuestError, match=r"15-fails ended with 3: no licence for z{20}$") as failed:
        guest.resume(guest.document(id=OTHER))
    assert failed.value.guest_code == "hook-failed"
    seen = [process.pid for process in find_processes(guest)]
    assert all([process.pid for process in find_processes(guest)] == seen for _ in range(10))
    guest.cli.ok("stop", guest.name)
    assert guest.cli.json("inspect", guest.name)["State"]["ExitCode"] == 137


def write_hook(guest: Guest, name: str, text: str) -> None:
    folder = "/etc/firebuild/resume.d"
    guest.sh(f"mkdir -p {folder}; cat >{folder}/{name} <<'END'\n{text}END\nchmod 755 {folder}/{name}")


def find_processes(guest: Guest) -> list[GuestProcess]:
    """All but PID 1."""
    return request_processes(guest.vsock, Deadline(COMMAND_TIMEOUT_S, "processes")).processes[1:]


def test_a_machine_with_a_read_only_root(cli: Cli) -> None:
    cli.ok("run", "-d", "--read-only", "--name", "resume2", "--from", BASE, "--", "sleep", "infinity")
    guest = Guest.of(cli, "resume2")
    before = guest.sh(IDENTITY).split()
    guest.resume(guest.document(id=OTHER))
    assert not set(guest.sh(IDENTITY).split()) & set(before)
    assert cli.run("exec", "-u", "root", "resume2", "--", "touch", "/x").status == 1
    cli.ok("kill", "resume2")


@pytest.fixture(scope="module")
def systemd(shared_state: SharedState) -> str:
    """An image with systemd and an SSH server."""
    tree = ensure_tree(CACHE, "bookworm", BUILD_TIMEOUT_S)
    shared_state.cli().ok("image", "import", tree, "tests/systemd:1", timeout_s=BUILD_TIMEOUT_S)
    return "tests/systemd:1"


def test_beside_systemd(cli: Cli, systemd: str) -> None:
    cli.ok("run", "-d", "--name", "resume3", "--init", "system", "--from", systemd, "--", "sh", "-c", COUNT)
    guest = Guest.of(cli, "resume3")
    before = guest.sh(IDENTITY).split()
    keys = guest.sh("cat /etc/ssh/*_key.pub").splitlines()
    assert len(keys) == 3
    assert guest.pause() == "groups"
    guest.go_on()
    write_hook(guest, "20-look", HOOK)
    guest.resume(guest.document(id=OTHER))
    assert not set(guest.sh(IDENTITY).split()) & set(before)
    new = guest.sh("cat /etc/ssh/*_key.pub").splitlines()
    # One of RSA takes ten seconds and more without hardware virtualization: it comes later.
    assert len(new) in (2, 3) and not set(new) & set(keys)
    served = guest.sh("ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null").split()[-1]
    assert served in "\n".join(new), "the server that runs has the new keys"
    assert guest.sh("cat /hooked").split()[:4] == [OTHER, "resume3", guest.id, "0"]
    assert (
        guest.sh("until test -e /etc/ssh/ssh_host_rsa_key.pub; do sleep 0.2; done; cat /etc/ssh/*rsa_key.pub").strip()
        not in keys
    )
    assert counted(guest) and guest.sh("cat /proc/1/comm; cat /proc/self/cgroup") == "systemd\n0::/init.scope\n"
    # Its service reads the document anew; the machine ends as ever.
    assert OTHER in guest.sh("cat /run/firebuild/boot.json")
    cli.ok("stop", "resume3")
