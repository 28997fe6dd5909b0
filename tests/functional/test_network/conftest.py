"""Network tests run in a namespace that plays the host: real plugins, rules and bridges, and none of them the real host's."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from firebuild.host.deadline import Deadline
from firebuild.host.netns import create_netns, delete_netns
from firebuild.layout import get_bundled
from firebuild.names import MachineId, new_machine_id, parse_port_mappings
from firebuild.network.attach import Attachment, NetworkSettings, attach_network, detach_network
from tests.support import ledger
from tests.support.network_guest import ip

BIN_DIRS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
_CLONE_NEWNET = 0x40000000


@dataclass
class Host:
    """A pretended host: `outside` is a namespace that plays another host on its network, at `OUTSIDE`."""

    folder: Path
    outside: str
    ids: list[MachineId] = field(default_factory=list)

    ADDRESS = "198.51.100.1"
    OUTSIDE = "198.51.100.2"

    @property
    def plugins(self) -> Path:
        """A folder for plugins of the test's own; it comes first."""
        return self.folder / "plugins"

    @property
    def names(self) -> Path:
        """Where the resolvers of its networks are: they are not root, and tests' folders are closed."""
        return Path("/run") / f"firebuild-names-{self.outside}"

    @property
    def settings(self) -> NetworkSettings:
        """The user's folder holds firebuild's own two conflists, with IPAM files below the test's folder."""
        return NetworkSettings(
            bin_dirs=(self.plugins, *BIN_DIRS),
            conf_dirs=(self.folder / "net.d",),
            cache_dir=self.folder / "state" / "cni",
            own_dir=self.folder / "state" / "networks",
            names_dir=self.names,
        )

    def write_network(self, name: str, plugins: list[dict[str, Any]], version: str = "1.0.0") -> None:
        """Write a conflist."""
        document = {"cniVersion": version, "name": name, "plugins": plugins}
        (self.folder / "net.d" / f"{name}.conflist").write_text(json.dumps(document))

    def bundled_plugins(self, name: str) -> list[dict[str, Any]]:
        """The plugins of a shipped conflist, with the IPAM files below the test's folder."""
        plugins: list[dict[str, Any]] = json.loads((get_bundled("conflists") / f"{name}.conflist").read_text())[
            "plugins"
        ]
        plugins[0]["ipam"]["dataDir"] = str(self.folder / "ipam")
        return plugins

    def write_plugin(self, name: str, *, on_add: str = "pass_on", on_del: str = ":") -> None:
        """Write a plugin in shell. `pass_on` prints the result of the plugin before it, as a plugin with nothing to add does."""
        python = 'import json, sys; print(json.dumps(json.load(sys.stdin)["prevResult"]))'
        path = self.plugins / name
        path.write_text(
            f"#!/bin/sh\npass_on() {{ '{sys.executable}' -c '{python}'; }}\n"
            f'case "$CNI_COMMAND" in\nADD) {on_add}\n;;\nDEL) {on_del}\n;;\nesac\n'
        )
        path.chmod(0o755)

    def write_faulty_network(self) -> None:
        """A network `faulty`: as `machines`, with a plugin `faulty` of the test's own at its end."""
        self.write_network("faulty", [*self.bundled_plugins("machines"), {"type": "faulty"}])

    def warm_up(self, *networks: str) -> dict[str, frozenset[str]]:
        """Attach and detach once, so that what a network keeps for good is there; the ledger then."""
        for network in networks or ("machines",):
            ports = [] if network == "machine-builds" else parse_port_mappings("6398:80")
            self.detach(self.attach(network, ports=ports).machine_id)
        return self.snapshot()

    def new_id(self) -> MachineId:
        """A machine id whose namespace the ledger looks for."""
        self.ids.append(new_machine_id())
        return self.ids[-1]

    def attach(self, network: str = "machines", **options: Any) -> Attachment:
        """attach_network with a fresh id and a generous deadline."""
        machine_id = options.pop("machine_id", None) or self.new_id()
        deadline = options.pop("deadline", None) or Deadline(120, "the test's attach")
        return attach_network(self.settings, machine_id=machine_id, network=network, deadline=deadline, **options)

    def detach(self, machine_id: MachineId) -> None:
        """detach_network with a generous deadline."""
        detach_network(self.settings, machine_id, deadline=Deadline(120, "the test's detach"))

    def snapshot(self) -> dict[str, frozenset[str]]:
        """The ledger of this pretended host; of the namespaces only the test's own machines'."""
        watch = ledger.Watch(self.folder / "state", self.folder / "run", folders=(self.folder / "ipam",))
        snapshot = ledger.take_snapshot(watch)
        for kind in ("processes", "loop devices"):
            del snapshot[kind]  # the real host's, and other people's
        for kind in ("namespaces", "mounts"):
            snapshot[kind] = frozenset(line for line in snapshot[kind] if any(one in line for one in self.ids))
        return snapshot


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A fresh pretended host, entered by the test's thread; warmed up, so that what networks keep is there already."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    outside = f"fo-{new_machine_id()}"
    create_netns(outside)
    assert libc.unshare(_CLONE_NEWNET) == 0
    try:
        _connect_outside(outside)
        made = Host(tmp_path, outside)
        for folder in ("net.d", "plugins", "state", "run", "ipam"):
            (tmp_path / folder).mkdir()
        for name in ("machines", "machine-builds"):
            made.write_network(name, made.bundled_plugins(name))
        yield made
        for machine_id in made.ids:
            made.detach(machine_id)
    finally:
        assert libc.setns(here, _CLONE_NEWNET) == 0
        os.close(here)
        delete_netns(outside)
        assert list(Path("/run").glob(f"firebuild-names-{outside}/*")) == []
        shutil.rmtree(f"/run/firebuild-names-{outside}", ignore_errors=True)


def _connect_outside(outside: str) -> None:
    # Link-local addresses come when they like, and would make ledgers differ by their routes.
    Path("/proc/sys/net/ipv6/conf/default/addr_gen_mode").write_text("1")
    # So do routes to addresses that are first looked at for duplicates.
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
    ip("link", "set", "lo", "up")
    ip("link", "add", "wan0", "type", "veth", "peer", "name", "eth0", "netns", outside)
    ip("address", "add", f"{Host.ADDRESS}/24", "dev", "wan0")
    ip("link", "set", "wan0", "up")
    ip("-n", outside, "link", "set", "lo", "up")
    ip("-n", outside, "address", "add", f"{Host.OUTSIDE}/24", "dev", "eth0")
    ip("-n", outside, "link", "set", "eth0", "up")
