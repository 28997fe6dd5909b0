"""The packet filter rules beside those of CNI plugins: published ports through a closed FORWARD chain, and what plugins leave."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from firebuild.errors import NetworkError
from firebuild.host import process
from firebuild.host.deadline import Deadline
from firebuild.names import MachineId, PortMapping

_WAIT = ("-w", "30")
_PROGRAMS = {4: "iptables", 6: "ip6tables"}
# libcni's FormatChainName and portmap's own: "CNI-", "CNI-DN-", "CNI-SN-" and a hash.
_OWN_CHAIN = re.compile(r"-j (CNI-(?:DN-|SN-)?[0-9a-f]{16,})")
_DNAT = re.compile(r"-A (?P<chain>\S+) .*-j DNAT --to-destination (?P<target>\S+)")
_JUMP_ID = re.compile(r'-A \S+ .*id: \\?"(?P<id>[^"\\]+)\\?".* -j (?P<chain>\S+)')


def accept_published(machine_id: MachineId, addresses: Sequence[str], deadline: Deadline) -> None:
    """Let connections to a machine's published ports pass FORWARD, whatever its policy is (Docker's is DROP).

    The firewall plugin accepts what comes from the machine and the answers to it, but no new connection to it. Only
    connections whose destination was translated match, so nothing but published ports is opened. Raises ProcessError.
    """
    _insert("FORWARD", _accept_rules(machine_id, addresses), deadline)


def remove_accept_published(machine_id: MachineId, addresses: Sequence[str], deadline: Deadline) -> None:
    """Undo accept_published; absent rules are fine. Raises ProcessError, NetworkError."""
    _remove("FORWARD", _accept_rules(machine_id, addresses), deadline)


def accept_questions(machine_id: MachineId, addresses: Sequence[str], server: str, deadline: Deadline) -> None:
    """Let a machine ask the name server at `server`, an address of this host, whatever the policy of INPUT is. Raises ProcessError."""
    _insert("INPUT", _question_rules(machine_id, addresses, server), deadline)


def remove_accept_questions(machine_id: MachineId, addresses: Sequence[str], server: str, deadline: Deadline) -> None:
    """Undo accept_questions; absent rules are fine. Raises ProcessError, NetworkError."""
    _remove("INPUT", _question_rules(machine_id, addresses, server), deadline)


def _question_rules(machine_id: MachineId, addresses: Sequence[str], server: str) -> Iterator[tuple[str, list[str]]]:
    to = ipaddress.ip_address(server)
    for cidr in addresses:
        address = ipaddress.ip_interface(cidr).ip
        for protocol in ("udp", "tcp") if address.version == to.version else ():
            rule = ["-s", str(address), "-d", str(to), "-p", protocol, "--dport", "53"]
            rule += ["-m", "comment", "--comment", f'firebuild id: "{machine_id}"', "-j", "ACCEPT"]
            yield _PROGRAMS[to.version], rule


def _insert(chain: str, rules: Iterator[tuple[str, list[str]]], deadline: Deadline) -> None:
    for program, rule in rules:
        process.run([program, *_WAIT, "-I", chain, *rule], timeout_s=deadline.check())


def _remove(chain: str, rules: Iterator[tuple[str, list[str]]], deadline: Deadline) -> None:
    for program, rule in rules:
        if process.find_program(program) is None:
            continue  # Without the program no rule can have been made.
        done = process.run([program, *_WAIT, "-D", chain, *rule], timeout_s=deadline.check(), check=False)
        if done.returncode != 0:
            still = process.run([program, *_WAIT, "-C", chain, *rule], timeout_s=deadline.check(), check=False)
            if still.returncode == 0:
                raise process.failure(done)


def _accept_rules(machine_id: MachineId, addresses: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for cidr in addresses:
        address = ipaddress.ip_interface(cidr).ip
        rule = ["-d", str(address), "-m", "conntrack", "--ctstate", "DNAT"]
        rule += ["-m", "comment", "--comment", f'firebuild id: "{machine_id}"', "-j", "ACCEPT"]
        yield _PROGRAMS[address.version], rule


def list_translated_ports(deadline: Deadline) -> list[tuple[PortMapping, str]]:
    """Every host port that a DNAT rule takes, with who took it (a machine or container id, else a chain's name)."""
    found: list[tuple[PortMapping, str]] = []
    for program in _PROGRAMS.values():
        if process.find_program(program) is None:
            continue
        rules = _list_rules(program, "nat", deadline)
        owners = {match["chain"]: match["id"] for match in map(_JUMP_ID.match, rules) if match}
        for rule in rules:
            port = parse_dnat_rule(rule)
            match = _DNAT.match(rule)
            if port is not None and match is not None:
                found.append((port, owners.get(match["chain"], match["chain"])))
    return found


def parse_dnat_rule(rule: str) -> PortMapping | None:
    """The port that a rule of `iptables -S` translates, or None. Ranges and negations are passed over."""
    match = _DNAT.match(rule)
    if match is None:
        return None
    words = rule.split()
    options = {word: words[index + 1] for index, word in enumerate(words[:-1]) if word.startswith("-")}
    port, protocol = options.get("--dport", ""), options.get("-p", "")
    target_port = match["target"].rpartition(":")[2]
    if not port.isdigit() or protocol not in ("tcp", "udp"):
        return None
    guest_port = int(target_port) if target_port.isdigit() else int(port)
    return PortMapping(options.get("-d", "").partition("/")[0], int(port), guest_port, protocol)


def sweep_rules(machine_id: MachineId, deadline: Deadline) -> None:
    """Remove all rules and chains that CNI plugins marked with a machine's id.

    Plugins cannot undo masquerading once the namespace is gone, or when they were killed half-way (bridge 1.1.1 reads the
    addresses off the interface). One transaction per table. Raises ProcessError, NetworkError.
    """
    for program in _PROGRAMS.values():
        if process.find_program(program) is None:
            continue
        for table in ("nat", "filter"):
            script = plan_sweep(_list_rules(program, table, deadline), table, machine_id)
            if script:
                argv = [f"{program}-restore", *_WAIT, "--noflush"]
                process.run(argv, stdin=script.encode(), timeout_s=deadline.check())


def plan_sweep(rules: Sequence[str], table: str, machine_id: MachineId) -> str:
    """The iptables-restore(8) script that removes a machine's marked rules and their chains; empty if there are none."""
    marked = [rule for rule in rules if f'id: \\"{machine_id}\\"' in rule or f'id: "{machine_id}"' in rule]
    chains = sorted({match[1] for match in map(_OWN_CHAIN.search, marked) if match})
    lines = [f"-D {rule[3:]}" for rule in marked if rule.startswith("-A ") and rule.split()[1] not in chains]
    lines += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains]
    return "\n".join([f"*{table}", *lines, "COMMIT", ""]) if lines else ""


def _list_rules(program: str, table: str, deadline: Deadline) -> list[str]:
    done = process.run([program, *_WAIT, "-t", table, "-S"], timeout_s=deadline.check(), check=False)
    if done.returncode != 0:
        failure = process.failure(done)
        raise NetworkError(
            f"the packet filter's table `{table}` cannot be read: {failure.message}", details=failure.details
        )
    return done.stdout.decode("utf-8", "replace").splitlines()
