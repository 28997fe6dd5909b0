"""Names of machines: a dnsmasq for each bridge, there while a machine on it has a name, whichever profile it is of.

State, in a folder of the host's that a reboot clears: `<bridge>/names/<machine id>` (a hosts(5) file for each machine),
`config.json`, `pid`, `log`. All of it is changed under the lock `<bridge>.lock`. dnsmasq reads the names again at SIGHUP.
"""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from firebuild.errors import DeadlineError, FirebuildError, NetworkError
from firebuild.host import process
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, remove_tree, write_atomic
from firebuild.host.identity import ProcessIdentity, find_identity, is_alive, kill_and_wait, send_signal
from firebuild.host.locks import hold_lock
from firebuild.host.marked import find_marked_processes
from firebuild.host.watch import wait_for_path

PROGRAM = "dnsmasq"
_MARK = "FIREBUILD_RESOLVER"
_READY_S = 20.0
_LOCK_S = 60.0
_LOG_SHOWN = 500
_LOG_MAX = 1 << 20


class Resolver(msgspec.Struct, frozen=True):
    """What one dnsmasq is started with. `listen`: the host's address on the bridge. `upstream`: who is asked for other
    names; None: as the host's resolv.conf says. `closed`: nobody is asked."""

    bridge: str
    listen: str
    upstream: list[str] | None = None
    closed: bool = False


def add_names(
    folder: Path, resolver: Resolver, machine_id: str, addresses: Sequence[str], names: Sequence[str]
) -> str | None:
    """Make a machine known by names on its bridge; None, or a sentence that says why there is no resolver. Raises HostError."""
    if process.find_program(PROGRAM) is None:
        return "machines do not find each other by name: dnsmasq is not installed; run: apt-get install dnsmasq-base"
    place = folder / resolver.bridge
    with _hold(folder, resolver.bridge):
        try:
            (place / "names").mkdir(mode=0o755, parents=True, exist_ok=True)
            # dnsmasq is not root when it reads them.
            folder.chmod(0o755)
            place.chmod(0o755)
        except OSError as error:
            raise map_os_error(error, f"making the folder `{place}`") from error
        lines = [f"{ipaddress.ip_interface(each).ip} {' '.join(names)}\n" for each in addresses]
        write_atomic(place / "names" / machine_id, "".join(lines).encode(), mode=0o644)
        write_atomic(place / "config.json", msgspec.json.encode(resolver))
        try:
            _refresh(place, resolver)
        except FirebuildError as error:
            (place / "names" / machine_id).unlink(missing_ok=True)
            _settle(place, resolver)
            return f"machines do not find each other by name: {error.message}"
    return None


def change_names(folder: Path, machine_id: str, plan: Callable[[str], Sequence[str]]) -> None:
    """Make a machine known by other names wherever it has any. `plan`: its names by an address. Raises NetworkError, HostError."""
    for place in _list_places(folder):
        file = place / "names" / machine_id
        if not file.exists():
            continue
        with _hold(folder, place.name):
            try:
                addresses = [line.split()[0] for line in file.read_text().splitlines()]
            except FileNotFoundError:
                continue  # It has ended meanwhile.
            lines = [f"{address} {' '.join(plan(address))}\n" for address in addresses]
            write_atomic(file, "".join(lines).encode(), mode=0o644)
            _settle(place, _load(place))


def remove_names(folder: Path, machine_id: str) -> None:
    """Forget a machine's names on every bridge; a resolver without names ends. Absent is fine. Raises NetworkError, HostError."""
    for place in _list_places(folder):
        if (place / "names" / machine_id).exists():
            with _hold(folder, place.name):
                (place / "names" / machine_id).unlink(missing_ok=True)
                _settle(place, _load(place))


def repair_resolvers(folder: Path) -> list[str]:
    """Start again what should run and does not, end what should not; a sentence for each."""
    repaired: list[str] = []
    for place in _list_places(folder):
        if _find_process(place) is not None and _has_names(place):
            continue
        with _hold(folder, place.name):
            if _find_process(place) is None or not _has_names(place):
                _settle(place, _load(place))
                repaired.append(f"name resolver of the bridge {place.name}: repaired")
    return repaired


def _hold(folder: Path, bridge: str) -> AbstractContextManager[None]:
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise map_os_error(error, f"making the folder `{folder}`") from error
    deadline = Deadline(_LOCK_S, "waiting for the name resolver")
    return hold_lock(folder / f"{bridge}.lock", f"the name resolver of `{bridge}`", deadline=deadline)


def _list_places(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise map_os_error(error, f"reading the folder `{folder}`") from error


def _has_names(place: Path) -> bool:
    try:
        return any(path.name[0] != "." for path in (place / "names").iterdir())
    except FileNotFoundError:
        return False


def _load(place: Path) -> Resolver | None:
    try:
        return msgspec.json.decode((place / "config.json").read_bytes(), type=Resolver)
    except (OSError, msgspec.MsgspecError):
        return None  # A crash came before it was written: then no machine waits for an answer.


def _settle(place: Path, resolver: Resolver | None) -> None:
    """With names it runs and knows them; without, nothing of it is left. The lock is held."""
    if resolver is not None and _has_names(place):
        _refresh(place, resolver)
        return
    _end(place)
    remove_tree(place)
    place.with_name(f"{place.name}.lock").unlink(missing_ok=True)


def _refresh(place: Path, resolver: Resolver) -> None:
    running = _find_process(place)
    if running is not None and send_signal(running, signal.SIGHUP):
        return
    _end(place)
    _start(place, resolver)


def _find_process(place: Path) -> ProcessIdentity | None:
    """The process of the pid file, if it is this resolver's: another one has not its mark."""
    try:
        identity = msgspec.json.decode((place / "process.json").read_bytes(), type=ProcessIdentity)
    except (OSError, msgspec.MsgspecError):
        return None
    return identity if is_alive(identity) else None


def _end(place: Path) -> None:
    """End every process that was started for this place, known or not."""
    for found in find_marked_processes(_MARK, str(place)):
        if not kill_and_wait(found, grace_s=2):
            raise NetworkError(f"the name resolver {found.pid} of `{place.name}` does not end")
    (place / "process.json").unlink(missing_ok=True)


def _start(place: Path, resolver: Resolver) -> None:
    ready, log = place / "pid", place / "log"
    ready.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    argv = [
        PROGRAM, "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", f"--pid-file={ready}", "--log-facility=/dev/null",
        "--bind-interfaces", f"--listen-address={resolver.listen}", "--except-interface=lo",
        f"--addn-hosts={place / 'names'}", "--cache-size=1000", "--dns-forward-max=300",
        *_plan_upstream(resolver),
    ]  # fmt: skip
    child = process.start_detached(argv, log=log, environment={_MARK: str(place)})
    # Its end is not ours to wait for: it outlives us.
    identity = find_identity(child.pid)
    deadline = Deadline(_READY_S, "starting the name resolver")
    try:
        # It writes this file once it listens.
        started = identity is not None and wait_for_path(ready, deadline, alive=lambda: child.poll() is None)
    except DeadlineError:
        started = False
    if not started or identity is None:
        said = _read_log(log)
        child.kill()
        child.wait()
        raise NetworkError(f"dnsmasq does not start on {resolver.listen}: {said or 'it said nothing'}")
    child.returncode = 0  # Popen must not warn that it still runs.
    write_atomic(place / "process.json", msgspec.json.encode(identity))


def _plan_upstream(resolver: Resolver) -> list[str]:
    if resolver.closed:
        # What it does not know it refuses, and does not deny: machines in several networks then ask their next server.
        return ["--no-resolv"]
    if resolver.upstream is None:
        return ["--domain-needed", "--bogus-priv", "--resolv-file=/etc/resolv.conf"]
    return ["--domain-needed", "--bogus-priv", "--no-resolv", *(f"--server={server}" for server in resolver.upstream)]


def _read_log(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            text = file.read(_LOG_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
    return " ".join(text.split())[-_LOG_SHOWN:]
