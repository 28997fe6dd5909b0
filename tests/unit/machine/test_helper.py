"""What the helper of an ended machine is told: its files, and nothing that would act."""

from __future__ import annotations

from firebuild.machine.helper import plan_helper
from firebuild.machine.metadata import plan_boot_document
from firebuild.machine.spec import DriveSpec, MachineSpec, MountSpec, NetworkJoin, parse_restart_policy
from firebuild.names import new_machine_id, parse_port_mappings


def test_a_helper_has_the_disks_and_does_nothing() -> None:
    drives = [
        DriveSpec("rootfs", "/r", True), DriveSpec("upper", "/u", False), DriveSpec("volume0", "/v", False),
        DriveSpec("disk0", "/d", False),
    ]  # fmt: skip
    spec = MachineSpec(
        id=new_machine_id(), name="web", kind="run", hostname="web", kernel="k", cpus=1, memory_mib=128, network="machines",
        init="system", drives=drives, ports=parse_port_mappings("80:80"), joins=[NetworkJoin("machines")], tty=True, stdin=True,
        restart=parse_restart_policy("always"), mounts=[MountSpec("volume0", "/data", volume="v")], sync_back=True, auto_remove=True,
    )  # fmt: skip
    helper = plan_helper(spec)
    assert (helper.kind, helper.networks, helper.ports, helper.sync_back, helper.auto_remove) == (
        "helper",
        [],
        [],
        False,
        False,
    )
    assert helper.id != spec.id and helper.name != spec.name
    document = plan_boot_document(helper, [])
    assert document["root"] == {"mode": "overlay", "lower": "vda", "upper": "vdb", "read_only": False}
    assert [(mount["drive"], mount["target"]) for mount in document["mounts"]] == [("vdc", "/data")]
    told = (document["kind"], document["init"], document["start_entrypoint"], document["tty"], document["stdin"])
    assert told == ("run", "direct", False, False, False)
    assert document["restart"]["policy"] == "no" and document["health"] is None and document["mmds"] is None
