"""The leak ledger: what a host holds that a machine could leave behind, as sets of lines that can be compared.

It shares no code with firebuild, so that firebuild cannot hide its own leak. What networks share between machines and keep
on purpose (their bridges, the CNI plugins' permanent chains) is told apart by name here, in one place.

As a program: `python -m tests.support.ledger save FILE --state DIR --run DIR`, later `compare FILE --state DIR --run DIR`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Snapshot = Mapping[str, frozenset[str]]

PROGRAMS = ("firecracker-emulator", "dnsmasq", "firebuild-supervisor", "qemu-system-", "firecracker", "jailer")
SHARED_BRIDGES = ("builds0", "machines0")
# host-local IPAM keeps these two beside its leases (CNI plugins, host-local, backend/disk).
SHARED_FILES = re.compile(r"^(lock|\.lock|last_reserved_ip\.\d+)$")
# Chains that the portmap, firewall and bridge plugins make once per host; a machine's own chains have a hash in their names.
SHARED_CHAINS = ("CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ", "CNI-FORWARD", "CNI-ADMIN")
NETFILTER_TABLES = ("filter", "nat", "mangle", "raw", "security")
FENCE_TABLE, FENCE_SHARED_SETS = "firebuild", ("bridges", "internals", "same", "servers4", "servers6")
SHARED_NFT_TABLES = ("cni_hostport", "cni_plugins_masquerade")
NAMES_FOLDER = Path("/run/firebuild-names")
IDS_FOLDER = Path("/run/firebuild-ids")
IPAM_FOLDER = Path("/var/lib/cni/networks")
SETTLE_S = 15.0


@dataclass(frozen=True)
class Watch:
    """What a snapshot looks at beside the whole host: one firebuild's state and run folders, and further folders."""

    state: Path
    run: Path
    folders: tuple[Path, ...] = field(default=(IPAM_FOLDER, NAMES_FOLDER, IDS_FOLDER))

    def find_files(self) -> Iterator[str]:
        """What may not be left when no machine is; images, kernels and caches may stay."""
        for folder in (self.state / "machines", self.run):
            skeleton = (self.run / "m", self.run / "n")
            yield from (str(path) for path in _below(folder) if path not in skeleton)
        for folder in (self.state / "store" / "ingest", self.state / "cni", *self.folders):
            yield from (
                str(path) for path in _below(folder) if not path.is_dir() and not SHARED_FILES.search(path.name)
            )


def take_snapshot(watch: Watch) -> dict[str, frozenset[str]]:
    """The ledger now: a set of lines for each kind of thing."""
    return {
        "processes": frozenset(find_processes(watch)),
        "namespaces": frozenset(list_folder(Path("/run/netns"))),
        "links": frozenset(find_links()),
        "addresses": frozenset(find_addresses()),
        "routes": frozenset(find_routes()),
        "policy rules": frozenset(find_policy_rules()),
        "iptables": frozenset(line for program in ("iptables", "ip6tables") for line in find_iptables(program)),
        "nftables": frozenset(find_nftables()),
        "mounts": frozenset(find_mounts(Path("/proc/self/mountinfo").read_text())),
        "loop devices": frozenset(find_loop_devices(watch)),
        "files": frozenset(watch.find_files()),
        "control groups": frozenset(find_groups()),
    }


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """What is there after and was not before, as lines `kind: thing`. What was there and is gone is no leak."""
    return [f"{kind}: {line}" for kind in after for line in sorted(after[kind] - before.get(kind, frozenset()))]


def settle(before: Snapshot, watch: Watch, *, timeout_s: float = SETTLE_S) -> list[str]:
    """The difference once it is empty, or as it still is after `timeout_s`: a supervisor may be at its last lines."""
    end = time.monotonic() + timeout_s
    while (left := difference(before, take_snapshot(watch))) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def list_folder(folder: Path) -> list[str]:
    """The names in a folder, none if there is no such folder."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def find_groups() -> Iterator[str]:
    """Control groups of machines: what lies below firebuild's own group, in whichever hierarchies there are."""
    for parent in Path("/sys/fs/cgroup").glob("**/firebuild"):
        yield from (str(path) for path in parent.iterdir() if path.is_dir())


def find_processes(watch: Watch) -> Iterator[str]:
    """Processes that belong to the watched state: a VMM's program, or one whose arguments name its folders."""
    markers = (str(watch.state), str(watch.run))
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
        except OSError:
            continue  # it ended meanwhile
        line = " ".join(argv)
        program = Path(argv[0]).name
        of_state = any(marker in line for marker in markers)
        # The CLI itself and a test's own helpers name the folders too; what matters is what outlives them.
        if "tests.support.ledger" in line or not line:
            continue
        if of_state or (
            program.startswith(PROGRAMS) and not _names_another_state(line, markers) and _is_of_our_namespace(entry)
        ):
            yield f"{entry.name} {line[:300]}"


def _is_of_our_namespace(process: Path) -> bool:
    """Whether a process is of our PID namespace: those of one below are visible here, and somebody else's tests."""
    try:
        return (process / "ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
    except OSError:
        return False  # it ended meanwhile


def _names_another_state(line: str, markers: tuple[str, ...]) -> bool:
    """Whether a VMM's arguments name absolute paths, none of them ours: another firebuild's, or somebody's own QEMU."""
    return bool(re.search(r"/(?:run|var|tmp)/", line)) and not any(marker in line for marker in markers)


def _ip(*arguments: str) -> list[dict[str, Any]]:
    output = subprocess.run(["ip", "-j", *arguments], check=True, capture_output=True, text=True).stdout
    return json.loads(output) if output.strip() else []


def find_links() -> Iterator[str]:
    """Host links, by name, kind and master; not their counters, states or MAC addresses, which change by themselves."""
    for link in _ip("-d", "link"):
        if link["ifname"] not in SHARED_BRIDGES:
            kind = link.get("linkinfo", {}).get("info_kind", link.get("link_type"))
            yield f"{link['ifname']} kind={kind} master={link.get('master')}"


def find_addresses() -> Iterator[str]:
    """Addresses of the host's links."""
    for link in _ip("address"):
        if link["ifname"] not in SHARED_BRIDGES:
            for address in link.get("addr_info", ()):
                yield f"{link['ifname']} {address.get('local')}/{address.get('prefixlen')}"


def find_routes() -> Iterator[str]:
    """Routes of all tables and both families."""
    for family in ("-4", "-6"):
        for route in _ip(family, "route", "show", "table", "all"):
            # Anycast routes come of themselves, with each address, when the host begins to route IPv6.
            if route.get("dev") not in SHARED_BRIDGES and route.get("type") != "anycast":
                keys = ("type", "dst", "gateway", "dev", "table")
                yield family + " " + " ".join(f"{key}={route[key]}" for key in keys if key in route)


def find_policy_rules() -> Iterator[str]:
    """Policy routing rules of both families."""
    for family in ("-4", "-6"):
        for rule in _ip(family, "rule"):
            yield family + " " + json.dumps(rule, sort_keys=True)


def find_iptables(program: str) -> list[str]:
    """The rules of `iptables-save` or `ip6tables-save`, without comments, counters and what the CNI plugins share."""
    result = subprocess.run([f"{program}-save"], capture_output=True, text=True)
    return [f"{program} {line}" for line in normalise_iptables(result.stdout.splitlines())]


def normalise_iptables(lines: Iterable[str]) -> Iterator[str]:
    """`table line` for each chain and rule that is not shared."""
    table = ""
    for line in lines:
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            if name not in SHARED_CHAINS and policy == "-":
                yield f"{table} chain {name}"
        elif line.startswith("-A") and not _is_shared_rule(line):
            yield f"{table} {line}"


def _is_shared_rule(line: str) -> bool:
    """A rule that only leads into, out of or through permanent chains and names no machine's address, port or chain."""
    words = line.split()
    target = words[words.index("-j") + 1] if "-j" in words else ""
    in_shared = words[1] in SHARED_CHAINS or target in SHARED_CHAINS
    personal = re.search(r"\d+\.\d+\.\d+\.\d+(?!/8\b)|--dport|--dports|CNI-DN-|CNI-[0-9a-f]{12}", line)
    return in_shared and personal is None


def find_nftables() -> Iterator[str]:
    """nftables objects without handles and counters; the tables that iptables-nft shows are left to find_iptables."""
    result = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, text=True)
    if result.returncode == 0 and result.stdout.strip():
        yield from normalise_nftables(json.loads(result.stdout)["nftables"])


def normalise_nftables(objects: Iterable[dict[str, dict[str, Any]]]) -> Iterator[str]:
    """A line for each object of `nft -j list ruleset` (libnftables-json(5))."""
    for holder in objects:
        for kind, value in holder.items():
            table = value.get("table", value.get("name", ""))
            if kind == "metainfo" or (value.get("family") in ("ip", "ip6") and table in NETFILTER_TABLES):
                continue
            if kind in ("table", "chain") and table in SHARED_NFT_TABLES:
                continue
            if table == FENCE_TABLE:
                # Its frame stays, and what it knows of bridges that stay.
                shared = kind != "set" or value["name"] in FENCE_SHARED_SETS
                for element in () if shared else value.get("elem", ()):
                    yield f"element {value['name']} {json.dumps(_without_counters(element), sort_keys=True)}"
                continue
            yield f"{kind} {json.dumps(_without_counters(value), sort_keys=True)}"


def _without_counters(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_counters(item) for key, item in value.items() if key not in ("handle", "counter")}
    if isinstance(value, list):
        return [_without_counters(item) for item in value]
    return value


def find_mounts(mountinfo: str) -> Iterator[str]:
    """Mount points with their file system (proc_pid_mountinfo(5), fields 5 and 9); /run/netns itself is a shared one."""
    for line in mountinfo.splitlines():
        fields = line.split()
        point, kind = fields[4], fields[fields.index("-") + 1]
        if point != "/run/netns":
            yield f"{point} {kind}"


def find_loop_devices(watch: Watch) -> Iterator[str]:
    """Loop devices over files of the watched state, and their files: the devices are the whole host's, others' tests use them too."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = backing.read_text().strip()
        except OSError:
            continue  # detached meanwhile
        if file.startswith((f"{watch.state}/", f"{watch.run}/")):
            yield f"{backing.parent.parent.name} {file}"


def _below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.is_dir() else []


def main(arguments: list[str]) -> int:
    """Save a snapshot, or compare with a saved one. Returns the exit status: 1 when something was left."""
    parser = argparse.ArgumentParser(prog="ledger", description=__doc__)
    parser.add_argument("action", choices=("save", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    options = parser.parse_args(arguments)
    watch = Watch(options.state, options.run)
    if options.action == "save":
        options.file.write_text(json.dumps({kind: sorted(lines) for kind, lines in take_snapshot(watch).items()}))
        return 0
    before = {kind: frozenset(lines) for kind, lines in json.loads(options.file.read_text()).items()}
    left = settle(before, watch)
    for line in left:
        sys.stderr.write(f"left behind: {line}\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
