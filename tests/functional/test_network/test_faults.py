"""Plugins that fail, hang, lie and vanish, and kills at every step: named errors, and nothing left in the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from firebuild.errors import (
    CniError,
    ConflictError,
    DeadlineError,
    FirebuildError,
    MissingProgramError,
    NetworkError,
)
from firebuild.host.deadline import Deadline
from firebuild.host.marked import find_marked_processes
from firebuild.host.watch import wait_for_path
from firebuild.names import MachineId, parse_port_mappings
from firebuild.network import cni
from firebuild.network.attach import attach_network, detach_network, list_attachments
from tests.support.network_guest import ip

from .conftest import Host

PORTS = parse_port_mappings("6399:6379")
ERROR = '{"cniVersion": "1.0.0", "code": 107, "msg": "no more widgets", "details": "ask the widget maker"}'
FAILURES = {
    "error": (f"echo '{ERROR}'; exit 1", CniError, r"no more widgets \(code 107\)"),
    "error and success": (f"echo '{ERROR}'", CniError, "exited with status 0 but printed an error"),
    "garbage": ("echo Segmentation fault; exit 1", CniError, r'exited with status 1 and printed: "Segmentation fault"'),
    "silent": ("exit 3", CniError, "exited with status 3 and printed nothing"),
    "result and failure": ("pass_on; exit 1", CniError, "exited with status 1 but printed what is not an error"),
    "killed": ("kill -KILL $$", CniError, "was killed by signal 9"),
    "hang": ("exec sleep 1000", DeadlineError, "did not finish"),
    "deaf": ("trap '' TERM; while :; do sleep 1000; done", DeadlineError, "did not finish"),
    "endless": ("exec yes '{\"cniVersion\": '", CniError, r"`faulty` printed more than \d+ bytes"),
    "endless log": ("exec yes >&2", CniError, r"`faulty` printed more than \d+ bytes"),
    "child holds the output": ("sleep 1000 & exit 0", DeadlineError, "did not finish"),
}


def give(address: str) -> str:
    """A plugin that tells of this address."""
    ips = [{"address": address, "gateway": "192.168.127.1"}]
    return f"echo '{json.dumps({'cniVersion': '1.0.0', 'ips': ips})}'"


ADD_ONLY = {
    "garbage and success": ("echo all is well", CniError, "printed no JSON object"),
    "nothing and success": (":", CniError, "printed no JSON object"),
    "a list": ("echo '[]'", CniError, "printed no JSON object"),
    "other version": ("""echo '{"cniVersion": "0.4.0"}'""", CniError, "another `cniVersion`"),
    "no address": ("""echo '{"cniVersion": "1.0.0"}'""", FirebuildError, "gave the machine no IP address"),
    "bad address": ("""echo '{"ips": [{"address": "ten"}]}'""", FirebuildError, "malformed result"),
    "foreign address": (give("10.66.0.5/24"), FirebuildError, "10.66.0.5, which is in none of its subnets"),
    "the bridge's address": (give("192.168.127.1/24"), FirebuildError, "192.168.127.1, which is the gateway's"),
    "the network's address": (give("192.168.127.0/24"), FirebuildError, "192.168.127.0, which is no machine's"),
    "everybody's address": (give("192.168.127.255/24"), FirebuildError, "192.168.127.255, which is no machine's"),
    "loopback": (give("127.0.0.1/8"), FirebuildError, "127.0.0.1, which is no machine's"),
    "bad interface": (
        """echo '{"ips": [{"address": "10.0.0.1/8", "interface": 9}]}'""",
        FirebuildError,
        "malformed result",
    ),
}


@pytest.fixture(autouse=True)
def short_plugin_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    # The bundled plugins finish in a tenth of a second; only those that hang get here.
    monkeypatch.setattr(cni, "PLUGIN_TIMEOUT_S", 6.0)


@pytest.mark.parametrize("failure", [*FAILURES, *ADD_ONLY])
def test_add_fails(host: Host, failure: str) -> None:
    before = host.warm_up()
    script, kind, message = (FAILURES | ADD_ONLY)[failure]
    host.write_faulty_network()
    host.write_plugin("faulty", on_add=script)
    machine_id = host.new_id()
    with pytest.raises(kind, match=message) as caught:
        host.attach("faulty", machine_id=machine_id, ports=PORTS)
    assert isinstance(caught.value, FirebuildError)
    assert "the network `faulty`" in caught.value.message
    if kind is not FirebuildError:
        assert "`faulty`" in caught.value.message.partition("plugin")[2]
    if failure == "error":
        assert isinstance(caught.value, CniError)
        assert caught.value.cni_code == 107
        assert caught.value.details == "ask the widget maker"
    assert list_attachments(host.settings) == []
    assert host.snapshot() == before
    assert find_marked_processes("CNI_CONTAINERID", machine_id) == []
    # The same request works once the plugin does.
    host.write_plugin("faulty")
    host.attach("faulty", machine_id=machine_id, ports=PORTS)
    host.detach(machine_id)
    assert host.snapshot() == before


@pytest.mark.parametrize("failure", FAILURES)
def test_del_fails(host: Host, failure: str) -> None:
    before = host.warm_up()
    script, kind, message = FAILURES[failure]
    host.write_faulty_network()
    host.write_plugin("faulty", on_del=script)
    machine_id = host.attach("faulty", ports=PORTS).machine_id
    for _ in range(2):
        with pytest.raises(kind, match=message) as caught:
            host.detach(machine_id)
        assert isinstance(caught.value, FirebuildError)
        assert "the network `faulty`" in caught.value.message
        assert list_attachments(host.settings) == [machine_id]
        assert find_marked_processes("CNI_CONTAINERID", machine_id) == []
    # The others' DEL was not held up.
    assert "6399" not in subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
    host.write_plugin("faulty")
    host.detach(machine_id)
    assert host.snapshot() == before


def test_an_address_of_another_machine(host: Host) -> None:
    before = host.warm_up()
    host.write_faulty_network()
    host.write_plugin("faulty")
    first = host.attach("faulty")
    host.write_plugin("faulty", on_add=give(first.addresses[0]))
    with pytest.raises(NetworkError, match=f"which is that of the machine `{first.machine_id}`"):
        host.attach("faulty")
    host.write_plugin("faulty")
    host.detach(first.machine_id)
    assert host.snapshot() == before


def test_success_without_an_interface(host: Host) -> None:
    host.write_network("empty", [{"type": "faulty"}])
    host.write_plugin("faulty", on_add=give("10.66.0.5/24"))
    with pytest.raises(NetworkError, match="`empty`: its plugins tell of success, but made no interface `eth0`"):
        host.attach("empty")
    assert list_attachments(host.settings) == []


def test_a_subnet_that_the_host_has_elsewhere(host: Host) -> None:
    before = host.snapshot()
    ip("route", "add", "192.168.127.0/25", "dev", "wan0")
    with pytest.raises(
        ConflictError, match=r"`192\.168\.127\.0/24` of the network `machines` .* route to `wan0`"
    ) as caught:
        host.attach()
    assert "net.d/machines.conflist" in str(caught.value.hint)
    ip("route", "del", "192.168.127.0/25", "dev", "wan0")
    assert host.snapshot() == before


def test_add_and_del_fail(host: Host) -> None:
    before = host.warm_up()
    host.write_faulty_network()
    host.write_plugin("faulty", on_add="exit 3", on_del="exit 4")
    machine_id = host.new_id()
    with pytest.raises(CniError, match="exited with status 3") as caught:
        host.attach("faulty", machine_id=machine_id)
    assert "exited with status 4" in str(caught.value.details)
    assert "its record is kept" in str(caught.value.details)
    assert list_attachments(host.settings) == [machine_id]
    host.write_plugin("faulty")
    host.detach(machine_id)
    assert host.snapshot() == before


def test_the_first_plugin_fails_half_way(host: Host) -> None:
    """bridge: 1.1.1 itself fails on the first DEL after an ADD that did not get as far as masquerading."""
    plugins = host.bundled_plugins("machines")
    plugins[0]["ipam"]["routes"] = [{"dst": "0.0.0.0/0"}]
    host.write_network("clash", plugins)
    before = host.warm_up()
    with pytest.raises(CniError, match="`bridge` failed on ADD: failed to add route") as caught:
        host.attach("clash")
    assert caught.value.details is None
    assert list_attachments(host.settings) == []
    assert host.snapshot() == before


def test_a_plugin_that_cannot_run(host: Host) -> None:
    before = host.warm_up()
    host.write_faulty_network()
    (host.plugins / "faulty").write_bytes(b"\x7fELF and no more")
    (host.plugins / "faulty").chmod(0o755)
    machine_id = host.new_id()
    with pytest.raises(CniError, match=r"`faulty` failed on ADD: .* cannot be run"):
        host.attach("faulty", machine_id=machine_id)
    assert list_attachments(host.settings) == [machine_id]
    host.write_plugin("faulty")
    host.detach(machine_id)
    assert host.snapshot() == before


def test_a_plugin_that_was_removed(host: Host) -> None:
    before = host.warm_up()
    host.write_faulty_network()
    host.write_plugin("faulty")
    machine_id = host.attach("faulty").machine_id
    (host.plugins / "faulty").unlink()
    with pytest.raises(MissingProgramError, match="the CNI plugin `faulty`"):
        host.detach(machine_id)
    assert list_attachments(host.settings) == [machine_id]
    host.write_plugin("faulty")
    host.detach(machine_id)
    assert host.snapshot() == before


def test_the_configuration_was_changed_or_removed(host: Host) -> None:
    before = host.warm_up()
    host.write_faulty_network()
    host.write_plugin("faulty", on_del='echo done >> "$0.log"')
    machine_id = host.attach("faulty", ports=PORTS).machine_id
    (host.folder / "net.d" / "faulty.conflist").unlink()
    host.detach(machine_id)
    assert (host.plugins / "faulty.log").read_text() == "done\n"
    assert host.snapshot() == before


def test_the_namespace_is_gone(host: Host) -> None:
    before = host.warm_up()
    attachment = host.attach(ports=PORTS)
    ip("netns", "delete", attachment.netns)
    host.detach(attachment.machine_id)
    assert host.snapshot() == before


def test_the_interface_is_gone(host: Host) -> None:
    before = host.warm_up()
    attachment = host.attach(ports=PORTS)
    ip("-n", attachment.netns, "link", "delete", "eth0")
    host.detach(attachment.machine_id)
    assert host.snapshot() == before


def test_after_a_reboot(host: Host) -> None:
    before = host.snapshot()
    attachment = host.attach(ports=PORTS)
    # What a reboot takes: namespaces, links, rules. What it leaves: records and leases.
    ip("netns", "delete", attachment.netns)
    ip("link", "delete", "machines0")
    for table in ("nat", "filter"):
        for action in ("-F", "-X"):
            subprocess.run(["iptables", "-t", table, action], check=True)
    assert host.snapshot()["files"] > before["files"]
    host.detach(attachment.machine_id)
    assert host.snapshot()["files"] == before["files"]
    assert host.snapshot()["links"] == before["links"]


# In the order in which attach and detach come by: (module attribute, which call, before or after it).
KILLS = [
    *[("attach.records.save_record", 1, when) for when in ("before", "after")],
    *[("attach.netns.create_netns", 1, when) for when in ("before", "after")],
    *[("attach.cni.add_plugin", number, when) for number in (1, 2, 3) for when in ("before", "after")],
    *[("attach.resolver.add_names", 1, when) for when in ("before", "after")],
    *[("attach.rules.accept_questions", 1, when) for when in ("before", "after")],
    *[("attach.fence.raise_fence", 1, when) for when in ("before", "after")],
    *[("attach.tap.join_tap", 1, when) for when in ("before", "after")],
    *[("attach.rules.accept_published", 1, when) for when in ("before", "after")],
    *[("attach.records.save_record", 2, when) for when in ("before", "after")],
    *[("attach.records.delete_progress", 1, "after")],
    *[("detach.cni.delete_plugin", number, when) for number in (1, 2, 3) for when in ("before", "after")],
    *[("detach.rules.remove_accept_published", 1, when) for when in ("before", "after")],
    *[("detach.resolver.remove_names", 1, when) for when in ("before", "after")],
    *[("detach.fence.lower_fence", 1, when) for when in ("before", "after")],
    *[("detach.netns.delete_netns", 1, when) for when in ("before", "after")],
    *[("detach.records.delete_record", 1, when) for when in ("before", "after")],
]
VICTIM = """
import json, os, signal, sys
import firebuild.network.attach as attach
from pathlib import Path
from firebuild.host.deadline import Deadline
from firebuild.names import parse_port_mappings
bin_dirs, conf_dirs, (cache_dir, names_dir) = [tuple(map(Path, part)) for part in json.loads(sys.argv[1])]
settings = attach.NetworkSettings(bin_dirs, conf_dirs, cache_dir, names_dir=names_dir)
machine_id, network, point, number, when = sys.argv[2:]
verb, module, function = point.split(".") if point else ("", "", "")
def attach_it():
    ports = parse_port_mappings("6399:6379")
    for order, name in enumerate(network.split(",")):
        attach.attach_network(settings, machine_id=machine_id, network=name, number=order, ports=() if order else ports, names=["one"],
                              deadline=Deadline(100, "attach"))
def detach_it():
    attach.detach_network(settings, machine_id, deadline=Deadline(100, "detach"))
def arm():
    home = getattr(attach, module)
    original, calls = getattr(home, function), []
    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == int(number) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if len(calls) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(home, function, wrapped)
if verb != "detach":
    if point: arm()
    attach_it()
elif number:
    attach_it()
    arm()
    detach_it()
"""


def start_victim(
    host: Host, machine_id: MachineId, network: str, point: str, number: int, when: str
) -> subprocess.Popen[bytes]:
    folders = (host.settings.bin_dirs, host.settings.conf_dirs, (host.settings.cache_dir, host.names))
    settings = json.dumps([[str(path) for path in part] for part in folders])
    argv = [sys.executable, "-c", VICTIM, settings, machine_id, network, point, str(number), when]
    return subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": "src"})


@pytest.mark.parametrize(("point", "number", "when"), KILLS)
def test_killed_between_any_two_steps(host: Host, point: str, number: int, when: str) -> None:
    before = host.warm_up()
    machine_id = host.new_id()
    with start_victim(host, machine_id, "machines", point, number, when) as victim:
        assert victim.wait(100) == -signal.SIGKILL
    host.detach(machine_id)
    assert host.snapshot() == before
    assert list_attachments(host.settings) == []


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_killed_while_a_plugin_hangs(host: Host, command: str) -> None:
    before = host.warm_up()
    host.write_faulty_network()
    hang = 'touch "$0.hangs"; sleep 1000'
    host.write_plugin("faulty", **{f"on_{command.lower()}": hang})
    machine_id = host.new_id()
    point, number = ("", 0) if command == "ADD" else ("detach.records.delete_record", 1)
    with start_victim(host, machine_id, "faulty", point, number, "before") as victim:
        assert wait_for_path(
            host.plugins / "faulty.hangs", Deadline(100, "the plugin"), alive=lambda: victim.poll() is None
        )
        victim.kill()
    orphans = find_marked_processes("CNI_CONTAINERID", machine_id)
    assert len(orphans) == 2  # the shell and its sleep
    assert list_attachments(host.settings) == [machine_id]
    host.write_plugin("faulty")
    host.detach(machine_id)
    assert find_marked_processes("CNI_CONTAINERID", machine_id) == []
    assert host.snapshot() == before


def test_a_full_disk_for_the_record(host: Host) -> None:
    """The record cannot be written: nothing is done."""
    before = host.warm_up()
    shutil.rmtree(host.settings.cache_dir)
    host.settings.cache_dir.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=7", "tmpfs", host.settings.cache_dir], check=True)
    try:
        with pytest.raises(FirebuildError, match="no space left"):
            host.attach(ports=PORTS)
        assert list_attachments(host.settings) == []
    finally:
        subprocess.run(["umount", host.settings.cache_dir], check=True)
    assert {kind: lines for kind, lines in host.snapshot().items() if kind != "mounts"} == {
        kind: lines for kind, lines in before.items() if kind != "mounts"
    }


def test_the_deadline_has_passed(host: Host) -> None:
    before = host.warm_up()
    with pytest.raises(DeadlineError, match="the attach took longer"):
        attach_network(host.settings, machine_id=host.new_id(), network="machines", deadline=Deadline(0, "the attach"))
    machine_id = host.attach().machine_id
    with pytest.raises(DeadlineError, match="the detach took longer"):
        detach_network(host.settings, machine_id, deadline=Deadline(0, "the detach"))
    assert list_attachments(host.settings) == [machine_id]
    host.detach(machine_id)
    assert host.snapshot() == before


def test_a_bare_namespace_file_is_replaced(host: Host) -> None:
    """A crash inside create_netns leaves a file on which nothing is mounted."""
    before = host.warm_up()
    attachment = host.attach()
    ip("netns", "delete", attachment.netns)
    Path(attachment.netns_path).touch()
    host.detach(attachment.machine_id)
    assert host.snapshot() == before
