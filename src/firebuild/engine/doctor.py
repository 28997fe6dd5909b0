"""What this host offers: each thing that firebuild needs, found or not, with the command that mends it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from firebuild.engine.core import Engine
from firebuild.errors import FirebuildError
from firebuild.host.files import free_bytes
from firebuild.host.kvm import HostKind, HostMode, find_host_mode
from firebuild.host.process import PACKAGES, find_program
from firebuild.layout import find_bundled

_LOW_SPACE_BYTES = 4 << 30
_PLUGINS = ("bridge", "host-local", "firewall", "portmap", "loopback")


class Check(msgspec.Struct, frozen=True):
    """One thing looked at. `status`: ok, warning, missing, or unfit (for production); `mend`: the command that mends it."""

    name: str
    status: str
    found: str
    mend: str | None = None


class HostReport(msgspec.Struct, frozen=True):
    """All that was found. `fit`: nothing that is needed is missing or unfit; `chosen`: how machines will run."""

    checks: list[Check]
    mode: str
    chosen: str
    fit: bool


def examine_host(engine: Engine, *, production: bool = False) -> HostReport:
    """Look at everything; nothing is changed. `production`: also at what strangers' guests want of a host."""
    mode = find_host_mode()
    checks = [
        Check("root", "ok", "running as root")
        if os.geteuid() == 0
        else Check("root", "missing", "not running as root", "run firebuild with sudo"),
        Check("virtualization", "ok" if mode.kind is HostKind.KVM else "warning", f"{mode.kind}: {mode.reason}"),
        _device("tun", Path("/dev/net/tun"), "modprobe tun"),
        *_firecracker(engine, mode),
        _program("qemu", "qemu-system-x86_64"),
        *(_program(name, name) for name in ("mke2fs", "e2fsck", "iptables", "nft", "skopeo")),
        _resolver(),
        _plugins(engine),
        *_bundled(),
        _kernel(engine),
        _space(engine),
    ]
    if production:
        checks += _production(engine, mode)
    if _is_firecracker_chosen(engine):
        chosen = "Firecracker in its jailer"
    elif mode.kind is HostKind.KVM and mode.usable:
        chosen = "the emulator with hardware acceleration (KVM)"
    else:
        chosen = "the emulator on a software CPU (TCG): every guest runs, slower than on KVM"
    fit = all(check.status not in ("missing", "unfit") for check in checks)
    return HostReport(checks, str(mode.kind), chosen, fit)


def _is_firecracker_chosen(engine: Engine) -> bool:
    try:
        return engine.machines.vmm.choose().jailed is not None
    except FirebuildError:
        return False


def _production(engine: Engine, mode: HostMode) -> list[Check]:
    """What the host does not tell is a warning."""
    from firebuild.engine.production import examine_production

    words = {True: "ok", False: "unfit", None: "warning"}
    items = examine_production(engine, mode)
    return [Check(f"production: {item.name}", words[item.good], item.found, item.mend) for item in items]


def _device(name: str, path: Path, mend: str) -> Check:
    if path.exists():
        return Check(name, "ok", str(path))
    return Check(name, "missing", f"{path} does not exist", mend)


def _resolver() -> Check:
    path = find_program("dnsmasq")
    if path is not None:
        return Check("dnsmasq", "ok", path)
    said = "`dnsmasq` is not installed: machines do not find each other by name"
    return Check("dnsmasq", "warning", said, _install(PACKAGES["dnsmasq"]))


def _program(name: str, program: str) -> Check:
    path = find_program(program)
    if path is not None:
        return Check(name, "ok", path)
    return Check(name, "missing", f"`{program}` is not installed", _install(PACKAGES.get(program, program)))


def _firecracker(engine: Engine, mode: HostMode) -> list[Check]:
    """Where Firecracker's guests could run: whether it is there, and else how to get it."""
    if mode.kind is not HostKind.KVM or not mode.usable:
        return []
    from firebuild.engine.firecracker import list_firecrackers

    if installed := list_firecrackers(engine):
        return [Check("firecracker", "ok", ", ".join(str(one.firecracker) for one in installed))]
    return [Check("firecracker", "warning", "not installed", "firebuild firecracker install")]


def _install(package: str) -> str:
    return f"apt-get install --no-install-recommends {package}"


def _plugins(engine: Engine) -> Check:
    folders = engine.networks.bin_dirs
    missing = [name for name in _PLUGINS if not any((folder / name).exists() for folder in folders)]
    if not missing:
        return Check("cni plugins", "ok", ", ".join(str(folder) for folder in folders if (folder / "bridge").exists()))
    return Check("cni plugins", "missing", f"not found: {', '.join(missing)}", _install("containernetworking-plugins"))


def _bundled() -> list[Check]:
    checks = []
    for name in ("vminit", "firebuild-supervisor"):
        path = find_bundled(name)
        if path is None:
            checks.append(Check(name, "missing", "not part of this installation", "./dev guest (in a source checkout)"))
        else:
            checks.append(Check(name, "ok", str(path)))
    return checks


def _kernel(engine: Engine) -> Check:
    try:
        kernels = engine.kernels.list()
    except FirebuildError as error:
        return Check("kernel", "missing", str(error), "firebuild kernel pull")
    if not kernels:
        return Check("kernel", "warning", "none stored yet", "firebuild kernel pull")
    return Check("kernel", "ok", ", ".join(kernel.name for kernel in kernels))


def _space(engine: Engine) -> Check:
    folder = engine.layout.state
    while not folder.exists():
        folder = folder.parent
    free = free_bytes(folder)
    text = f"{free / 1e9:.1f} GB free below {engine.layout.state}"
    if free >= _LOW_SPACE_BYTES:
        return Check("disk space", "ok", text)
    return Check("disk space", "warning", text, "firebuild purge, or set FIREBUILD_STATE to a larger file system")
