"""The documents that a guest is told: the seed's keys, strings all through, and their limits."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from firebuild.errors import UsageError
from firebuild.machine.metadata import parse_signal, plan_boot_document, plan_metadata
from firebuild.machine.spec import DriveSpec, Entrypoint, MachineSpec, RestartPolicy
from firebuild.names import MachineId
from firebuild.network.attach import Attachment

SPEC = MachineSpec(
    id=MachineId("wcabty1922gloailwrce"), name="one", kind="run", hostname="one", kernel="k", cpus=1, memory_mib=128,
    network="machines", image="combust-labs/consul:1.9.4", env={"A": "1"}, users={"alpine": "ssh-rsa x\n"},
    drives=[DriveSpec("rootfs", "/disks/x", True), DriveSpec("upper", "/m/upper", False)],
    entrypoint=Entrypoint(entrypoint=["/bin/consul"], cmd=["agent"], env={"B": "2"}, user="0:0"),
)  # fmt: skip


@pytest.fixture
def attachment() -> Attachment:
    return Attachment(
        machine_id=SPEC.id, network="machines", netns="fb-x", netns_path="/run/netns/fb-x", interface="eth0", tap="tap0",
        mac="b6:16:f2:3d:29:cf", addresses=["192.168.127.5/24", "fd00::5/64"], gateway="192.168.127.1", gateway6="fd00::1",
        mtu=1500, nameservers=["192.0.2.53"], search=["example"], options=[], host_interface="veth1", ports=[],
        cni_version="1.0.0",
    )  # fmt: skip


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [value]


def test_the_metadata_has_the_seeds_keys_and_only_strings(attachment: Attachment) -> None:
    document = plan_metadata(SPEC, [attachment])
    assert set(document) == {
        "VMMID", "ImageTag", "LocalHostname", "EntrypointJSON", "Env", "Users", "Drives", "Machine", "Network",
    }  # fmt: skip
    assert all(isinstance(leaf, str) for leaf in leaves(document))
    assert json.loads(document["EntrypointJSON"]) == {
        "Cmd": ["agent"], "EntryPoint": ["/bin/consul"], "Env": {"B": "2"}, "Shell": ["/bin/sh", "-c"], "User": "0:0",
        "Workdir": "/",
    }  # fmt: skip
    interface = document["Network"]["Interfaces"]["b6:16:f2:3d:29:cf"]
    assert (interface["IP"], interface["IPAddr"], interface["IPMask"]) == (
        "192.168.127.5",
        "192.168.127.5/24",
        "ffffff00",
    )
    assert document["Drives"]["1"]["IsReadOnly"] == "true"


def test_more_metadata_than_the_service_holds_is_refused() -> None:
    spec = msgspec.structs.replace(SPEC, env={"BIG": "x" * 60000})
    with pytest.raises(UsageError, match="the metadata service holds 51200"):
        plan_metadata(spec, [])


def test_with_mmds_the_boot_document_holds_no_metadata(attachment: Attachment) -> None:
    document = plan_boot_document(SPEC, [attachment])
    assert document["metadata"] is None
    assert document["mmds"] == {"address": "169.254.169.254", "interface": "eth0"}
    assert document["root"] == {"mode": "overlay", "lower": "vda", "upper": "vdb", "read_only": False}
    assert document["interfaces"][0]["gateway6"] == "fd00::1"


def test_without_mmds_the_same_object_comes_in_the_boot_document(attachment: Attachment) -> None:
    spec = msgspec.structs.replace(SPEC, mmds=False)
    document = plan_boot_document(spec, [attachment])
    assert document["mmds"] is None
    assert document["metadata"] == plan_metadata(spec, [attachment])


def test_a_build_machine_has_neither_root_nor_metadata() -> None:
    document = plan_boot_document(msgspec.structs.replace(SPEC, kind="build"), [])
    assert (document["root"], document["metadata"], document["mmds"]) == (None, None, None)
    assert document["start_entrypoint"] is False


@pytest.mark.parametrize(("text", "number"), [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN", 34)])
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "SIGNOPE", "0", "65", "-1"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_signal(text)


def test_the_boot_document_says_who_is_pid_1(attachment: Attachment) -> None:
    assert plan_boot_document(SPEC, [attachment])["init"] == "direct"
    assert plan_boot_document(msgspec.structs.replace(SPEC, init="system"), [attachment])["init"] == "system"


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (RestartPolicy(), {"policy": "no", "most": None}),
        (RestartPolicy("on-failure", 3), {"policy": "on-failure", "most": 3}),
        (RestartPolicy("unless-stopped"), {"policy": "always", "most": None}),
    ],
)
def test_the_boot_document_says_when_the_entrypoint_is_started_again(policy: RestartPolicy, told: object) -> None:
    assert plan_boot_document(msgspec.structs.replace(SPEC, restart=policy), [])["restart"] == told


def test_of_several_networks_the_first_way_out_is_the_default_route(attachment: Attachment) -> None:
    inner = msgspec.structs.replace(
        attachment, network="inner", interface="eth0", mac="b6:00:00:00:00:01", gateway=None, gateway6=None,
        nameservers=["10.0.0.1"],
    )  # fmt: skip
    second = msgspec.structs.replace(attachment, interface="eth1", number=1)
    third = msgspec.structs.replace(attachment, interface="eth2", mac="b6:00:00:00:00:02", gateway="10.7.0.1", number=2)
    document = plan_boot_document(SPEC, [inner, second, third])
    assert [(each["name"], each["gateway"], each.get("gateway6")) for each in document["interfaces"]] == [
        ("eth0", None, None), ("eth1", "192.168.127.1", "fd00::1"), ("eth2", None, None),
    ]  # fmt: skip
    assert document["dns"]["nameservers"] == ["192.0.2.53"]
    interfaces = plan_metadata(SPEC, [inner, second])["Network"]["Interfaces"]
    assert {mac: facts["CniNetworkName"] for mac, facts in interfaces.items()} == {
        "b6:00:00:00:00:01": "inner", "b6:16:f2:3d:29:cf": "machines",
    }  # fmt: skip


def test_networks_without_a_way_out_are_asked_for_names_first(attachment: Attachment) -> None:
    way_out = msgspec.structs.replace(attachment, nameservers=["192.168.127.1"], resolver="192.168.127.1")
    inner = [
        msgspec.structs.replace(
            attachment, number=number, gateway=None, gateway6=None, nameservers=[f"10.0.0.{number}"], resolver=f"10.0.0.{number}"
        )
        for number in (1, 2, 3)
    ]  # fmt: skip
    assert plan_boot_document(SPEC, [way_out, *inner])["dns"]["nameservers"] == [
        "10.0.0.1",
        "10.0.0.2",
        "192.168.127.1",
    ]
    assert plan_boot_document(SPEC, inner[:1])["dns"]["nameservers"] == ["10.0.0.1"]
