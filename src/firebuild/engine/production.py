"""Whether this host and these settings are fit for strangers' guests, item by item."""

from __future__ import annotations

from pathlib import Path

from firebuild.config.settings import parse_id_range, split_words
from firebuild.engine.core import Engine
from firebuild.errors import FirebuildError
from firebuild.host.deadline import Deadline
from firebuild.host.kvm import HostKind, HostMode
from firebuild.host.production import Item, examine_kernel, examine_paths, examine_users
from firebuild.machine.state import State
from firebuild.machine.supervisor import CONSOLE_LIMIT_BYTES
from firebuild.vmm.api import open_api

_ANSWER_S = 5.0


def examine_production(engine: Engine, mode: HostMode) -> list[Item]:
    """All items; nothing is changed."""
    settings = engine.settings
    first, last = parse_id_range(settings.jailer_ids)
    programs = [Path(text) for text in (settings.vmm_binary, settings.binary_jailer) if text]
    return [
        _virtualization(mode),
        _jailer(engine),
        examine_paths([engine.layout.run, engine.layout.state, Path("/run/netns"), *programs]),
        examine_users(first, last),
        _limits(engine),
        _metadata(engine),
        Item("console logs", True, f"at most {2 * CONSOLE_LIMIT_BYTES >> 20} MiB of each machine"),
        _answers(engine),
        *examine_kernel(),
    ]


def _virtualization(mode: HostMode) -> Item:
    if mode.kind is HostKind.KVM and mode.usable:
        return Item("virtualization", True, mode.reason)
    return Item("virtualization", False, mode.reason, "use a host with hardware virtualization, and /dev/kvm")


def _jailer(engine: Engine) -> Item:
    try:
        choice = engine.machines.vmm.choose()
    except FirebuildError as error:
        return Item("jailer", False, str(error), error.hint)
    if choice.jailed is not None:
        return Item("jailer", True, f"{choice.jailed.jailer} starts {choice.jailed.firecracker}")
    if choice.program is not None:
        return Item(
            "jailer",
            False,
            f"`{choice.program}` is started without one",
            "give --binary-firecracker and --binary-jailer",
        )
    return Item(
        "jailer",
        False,
        "machines run on the emulator, which has no jailer",
        "firebuild firecracker install, on a host with KVM",
    )


def _limits(engine: Engine) -> Item:
    limits = engine.machines.vmm.limits
    given = {
        "--vmm-memory-max": engine.machines.vmm.memory_max[1],
        "--vmm-cpu-max": limits.cpu_us,
        "--vmm-pids-max": limits.pids,
    }
    missing = [name for name, value in given.items() if not value]
    if not missing:
        return Item("limits", True, "memory, processors and processes of each VMM")
    return Item("limits", False, f"not set: {', '.join(missing)}", "set them in the profile")


def _metadata(engine: Engine) -> Item:
    if "metadata" in split_words(engine.settings.machine_allow):
        return Item(
            "metadata service", False, "machines may reach the host's", "take `metadata` out of --machine-allow"
        )
    return Item("metadata service", True, "the fence keeps machines from the host's 169.254.169.254")


def _answers(engine: Engine) -> Item:
    """VMMs that do not answer: a deadlock in a signal handler is possible, and the guide wants somebody who looks."""
    silent, asked = [], 0
    for record in engine.machines.records.list_all(kind=None):
        if record.effective_state not in (State.RUNNING, State.PAUSED):
            continue
        asked += 1
        try:
            with open_api(
                engine.layout.machine(record.spec.id).api_socket, Deadline(_ANSWER_S, "asking the VMM")
            ) as api:
                api.get_version()
        except (FirebuildError, OSError):
            silent.append(record.spec.name)
    if silent:
        return Item("vmms answer", False, f"no answer of {', '.join(silent)}", f"firebuild kill {' '.join(silent)}")
    return Item("vmms answer", True, f"all {asked} that run")
