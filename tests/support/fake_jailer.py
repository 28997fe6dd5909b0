"""A stand-in for Firecracker's jailer: it takes the same arguments and really jails, so that a scripted VMM runs jailed.

What the real one does and this one too: its folders, the copy of the program, limits, control group, mount namespace with
pivot_root, device nodes, network and PID namespace, user. Beside that it binds in what a Python program needs.
`FAULTS`, its first argument, names what it leaves out: groups, netns, limits, user.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import shutil
import stat
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
_NEWNS, _NEWNET, _NEWPID = 0x00020000, 0x40000000, 0x20000000
_RDONLY, _REMOUNT, _BIND, _REC, _SLAVE = 1, 32, 4096, 16384, 1 << 19
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_LIBC = ctypes.CDLL(None, use_errno=True)


def write_fake_jailer(path: Path, *faults: str, version: str = "1.17.0") -> Path:
    """An executable that jails, but for what `faults` name, for FIREBUILD_BINARY_JAILER."""
    words = [sys.executable, "-I", str(Path(__file__)), ",".join(faults), version]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(source: str, target: str, flags: int) -> None:
    _check(_LIBC.mount(source.encode(), target.encode(), None, flags, None))


def _parse(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    own, rest = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    values: dict[str, list[str]] = {}
    position = 0
    while position < len(own):
        name = own[position].removeprefix("--")
        if name in ("new-pid-ns", "daemonize"):
            values[name] = []
            position += 1
        else:
            values.setdefault(name, []).append(own[position + 1])
            position += 2
    return values, rest


def _bind_python(root: Path) -> None:
    for place in dict.fromkeys(("/bin", "/lib", "/lib64", "/usr", sys.base_prefix, str(ROOT))):
        source, target = Path(place), root / place.lstrip("/")
        if target.exists() or target.is_symlink() or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
            continue
        target.mkdir()
        _mount(place, str(target), _BIND)
        _mount("", str(target), _BIND | _REMOUNT | _RDONLY)


def _enter(root: Path) -> None:
    _check(_LIBC.unshare(_NEWNS))
    _mount("", "/", _SLAVE | _REC)
    _mount(str(root), str(root), _BIND | _REC)
    _bind_python(root)
    os.chdir(root)
    os.mkdir("old_root", 0o600)
    _check(_LIBC.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"old_root"))
    os.chdir("/")
    _check(_LIBC.umount2(b"old_root", 2))
    os.rmdir("old_root")
    os.chroot(".")


def _limit(values: dict[str, list[str]]) -> None:
    kinds = {"no-file": resource.RLIMIT_NOFILE, "fsize": resource.RLIMIT_FSIZE}
    for each in values.get("resource-limit", ()):
        name, _, number = each.partition("=")
        resource.setrlimit(kinds[name], (int(number), int(number)))


def main(faults: list[str], version: str, words: list[str]) -> NoReturn:
    """Jail, and execute the program as the user."""
    if words == ["--version"]:
        print(f"Jailer v{version}")
        sys.exit(0)
    values, rest = _parse(words)
    (vmm_id,), (program,), (uid,), (gid,) = (values[name] for name in ("id", "exec-file", "uid", "gid"))
    name = os.path.basename(os.path.realpath(program))
    root = Path(os.path.realpath(values["chroot-base-dir"][0]), name, vmm_id, "root")
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, root / name)
    os.chown(root / name, int(uid), int(gid))
    if "netns" in values and "netns" not in faults:
        with open(values["netns"][0], "rb") as namespace:
            _check(_LIBC.setns(namespace.fileno(), _NEWNET))
    if "limits" not in faults:
        _limit(values)
    _enter(root)
    for folder in ("/", "/dev", "/dev/net", "/run"):
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o700)
        os.chown(folder, int(uid), int(gid))
    for path, major, minor in (("/dev/net/tun", 10, 200), ("/dev/kvm", 10, 232), ("/dev/urandom", 1, 9)):
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
        os.chown(path, int(uid), int(gid))
    if "new-pid-ns" in values:
        _check(_LIBC.unshare(_NEWPID))
        child = os.fork()
        if child:
            Path(f"/{name}.pid").write_text(str(child))
            os._exit(0)
        os.setsid()
    os.setgroups([0] if "groups" in faults else [])
    os.setgid(0 if "user" in faults else int(gid))
    os.setuid(0 if "user" in faults else int(uid))
    os.execv(f"/{name}", [name, "--id", vmm_id, "--start-time-us", "0", "--start-time-cpu-us", "0", *rest])


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2], sys.argv[3:])
