"""CNI's GC: what plugins are told is there, of all profiles that there are, and when they are not asked at all."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from firebuild.host.deadline import Deadline
from firebuild.host.netns import create_netns, delete_netns
from firebuild.network import records
from firebuild.network.garbage import collect_garbage
from firebuild.network.records import Record

from .conftest import Host

VALID = "cni.dev/valid-attachments"


def collect(host: Host) -> list[str]:
    failures = collect_garbage(host.settings, Deadline(60, "the test's collection"))
    return [failure.message for failure in failures]


def write_collector(host: Host, *, then: str = ":") -> None:
    path = host.plugins / "collector"
    path.write_text(f'#!/bin/sh\n[ "$CNI_COMMAND" = GC ] || exit 0\ncat >>{host.folder}/told\n{then}\n')
    path.chmod(0o755)


def take_told(host: Host) -> list[dict[str, Any]]:
    """The configurations that the plugin got since the last look."""
    path = host.folder / "told"
    text = path.read_text() if path.exists() else ""
    path.unlink(missing_ok=True)
    return [json.loads(line) for line in text.replace("}{", "}\n{").splitlines()]


def write_record(host: Host, network: str, number: int = 0) -> str:
    """A record as another profile's command leaves it, which keeps its records in the same folder."""
    machine_id = host.new_id()
    records.ensure_folders(host.settings, network)
    plugins = [{"type": "collector"}]
    record = Record(machine_id, network, "1.1.0", plugins, f"fb-{machine_id}", [], [], "", number=number)
    records.save_record(host.settings, record)
    return machine_id


def test_nobodys_attachments_are_swept(host: Host) -> None:
    write_collector(host)
    host.write_network("new", [{"type": "collector", "key": "value"}], version="1.1.0")
    host.write_network("old", [{"type": "collector"}], version="1.0.0")
    mine, theirs, other = write_record(host, "new"), write_record(host, "new", number=2), write_record(host, "old")
    # A machine of a profile that keeps its records elsewhere.
    elsewhere = host.new_id()
    create_netns(f"fb-{elsewhere}")
    try:
        assert collect(host) == []
    finally:
        delete_netns(f"fb-{elsewhere}")
    (told,) = take_told(host)
    assert (told["name"], told["cniVersion"], told["type"], told["key"]) == ("new", "1.1.0", "collector", "value")
    valid = {(entry["containerID"], entry["ifname"]) for entry in told[VALID]}
    assert {(mine, "eth0"), (theirs, "eth2"), (elsewhere, "eth0"), (elsewhere, "eth7")} <= valid
    assert not {entry for entry in valid if entry[0] == other} and (mine, "eth1") not in valid


def test_when_nothing_is_collected(host: Host) -> None:
    write_collector(host, then="exit 3")
    host.write_network("new", [{"type": "collector"}], version="1.1.0")
    machine_id = write_record(host, "new")
    (failure,) = collect(host)
    assert "the network `new`: the CNI plugin `collector` failed on GC: it exited with status 3" in failure
    assert len(take_told(host)) == 1

    # Whose a damaged record is nobody knows.
    path = host.settings.cache_dir / "attachments" / f"{machine_id}.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    (failure,) = collect(host)
    assert "cannot be read" in failure and take_told(host) == []
    path.write_bytes(whole)

    # Others attach to it too.
    shared = host.folder / "net.d" / "new.conflist"
    shared.write_bytes(msgspec.json.encode({**json.loads(shared.read_text()), "disableGC": True}))
    assert collect(host) == [] and take_told(host) == []
