"""CNI's garbage collection: plugins told which attachments there are, so that they clear away what belongs to no other.

For networks of CNI 1.1.0, which knows the command GC; what firebuild made it takes down from its records, whatever the version.
A network that others attach to as well says `disableGC` (CNI specification 1.1.0, sections 1 and 2), and is left alone.
"""

from __future__ import annotations

from pathlib import Path

from firebuild.errors import FirebuildError
from firebuild.host import netns
from firebuild.host.deadline import Deadline
from firebuild.host.locks import hold_lock
from firebuild.network import cni, records
from firebuild.network.conflist import Network, NetworkSettings, list_networks

# As many as a machine has networks: what is kept for one whose record somebody else has.
_INTERFACES = tuple(f"eth{number}" for number in range(8))
_PREFIX = "fb-"


def collect_garbage(settings: NetworkSettings, deadline: Deadline) -> list[FirebuildError]:
    """Ask the plugins of every network that collects; the failures. Nobody's attachments are swept: neither those of other
    profiles that keep their records here, nor those of profiles whose machines' namespaces this host has."""
    failures: list[FirebuildError] = []
    for network in list_networks(settings):
        if not network.collects:
            continue
        try:
            records.ensure_folders(settings, network.name)
            lock = records.lock_path(settings, network.name)
            with hold_lock(lock, f"the network `{network.name}`", deadline=deadline):
                # A record that cannot be read may be anybody's: then nothing is collected.
                valid = _find_valid(settings, network)
                failures += _collect(settings, network, valid, deadline)
        except FirebuildError as error:
            failures.append(error)
    return failures


def _collect(
    settings: NetworkSettings, network: Network, valid: list[tuple[str, str]], deadline: Deadline
) -> list[FirebuildError]:
    failures: list[FirebuildError] = []
    for plugin in network.plugins:
        try:
            cni.collect_plugin(settings.bin_dirs, network.name, network.cni_version, plugin, valid, deadline)
        except FirebuildError as error:
            failures.append(error)
    return failures


def _find_valid(settings: NetworkSettings, network: Network) -> list[tuple[str, str]]:
    """Container ids and interfaces that may be attached. Raises NetworkError."""
    valid: set[tuple[str, str]] = set()
    for key in records.list_records(settings):
        record = records.find_record(settings, key)
        if record is not None and record.network == network.name:
            valid.add((record.machine_id, record.interface))
    unknown = {key.partition(".")[0] for key in records.list_halves(settings)} | _list_namespaces()
    known = {machine_id for machine_id, _ in valid}
    valid |= {(machine_id, name) for machine_id in unknown - known for name in _INTERFACES}
    return sorted(valid)


def _list_namespaces() -> set[str]:
    folder: Path = netns.netns_path(_PREFIX).parent
    return {path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*")}
