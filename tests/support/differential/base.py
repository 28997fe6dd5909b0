"""The base image of all cases: a static busybox, a few users, links and files with attributes, as one tar. Both import the same bytes."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.support.differential.case import CONTEXT_MTIME_S

BUSYBOX = Path("/bin/busybox")
FOLDERS = (
    "dev",
    "proc",
    "sys",
    "bin",
    "etc",
    "usr",
    "usr/bin",
    "usr/lib",
    "var",
    "var/lib",
    "opt",
    "opt/deep",
    "opt/deep/inner",
    "home",
    "srv",
)
LINKS = {
    "lib": "usr/lib",
    "usr/lib64": "lib",
    "absolute": "/var/lib",
    "up": "../../../srv",
    "dangling": "nowhere/at/all",
    "etc/link-to-file": "motd",
    "chain1": "chain2",
    "chain2": "srv",
}
PASSWD = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:2:d:/:/bin/sh\napp:x:1000:1001:a:/home/app:/bin/sh\n"
GROUP = "root:x:0:\nbin:x:2:app\nstaff:x:50:app\nappgroup:x:1001:\n"
FILES = {
    "etc/passwd": (PASSWD, 0o644),
    "etc/group": (GROUP, 0o644),
    "etc/motd": ("welcome\n", 0o644),
    "etc/hosts": ("127.0.0.1 localhost\n", 0o644),
    "etc/resolv.conf": ("", 0o644),
    "opt/deep/one": ("1\n", 0o600),
    "opt/deep/inner/two": ("2\n", 0o644),
    "srv/kept": ("kept\n", 0o644),
    "usr/lib/libc": ("c\n", 0o755),
}

# busybox has no tool for extended attributes: setattr FILE NAME HEX
SETATTR = r"""
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
int main(int count, char **words) {
    unsigned char value[64];
    size_t size = strlen(words[3]) / 2;
    if (count != 4 || size > sizeof value) return 2;
    for (size_t i = 0; i < size; i++) sscanf(words[3] + 2 * i, "%2hhx", value + i);
    if (setxattr(words[1], words[2], value, size, 0)) { perror(words[1]); return 1; }
    return 0;
}
"""
# vfs_cap_data, version 2 (linux/capability.h): CAP_NET_BIND_SERVICE permitted and effective.
NET_BIND_SERVICE = "0100000200040000000000000000000000000000"


def make_base(folder: Path) -> Path:
    """The base image's tar, written into `folder`."""
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    path = folder / "base.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, kind: bytes, mode: int, content: bytes = b"", target: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime, info.size, info.linkname = (
                kind,
                mode,
                CONTEXT_MTIME_S,
                len(content),
                target,
            )
            archive.addfile(info, io.BytesIO(content))

        for name in FOLDERS:
            add(name, tarfile.DIRTYPE, 0o755)
        add("root", tarfile.DIRTYPE, 0o700)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        add("bin/busybox", tarfile.REGTYPE, 0o755, BUSYBOX.read_bytes())
        add("bin/setattr", tarfile.REGTYPE, 0o755, _compile(folder))
        for name in applets:
            if name != "busybox":
                add(f"bin/{name}", tarfile.SYMTYPE, 0o777, target="busybox")
        for name, target in LINKS.items():
            add(name, tarfile.SYMTYPE, 0o777, target=target)
        for name, (content, mode) in FILES.items():
            add(name, tarfile.REGTYPE, mode, content.encode())
        add("srv/same", tarfile.LNKTYPE, 0o644, target="srv/kept")
    return path


def _compile(folder: Path) -> bytes:
    compiler = shutil.which("gcc")
    assert compiler, "gcc is missing; run: ./dev setup"
    (folder / "setattr.c").write_text(SETATTR)
    subprocess.run([compiler, "-static", "-Os", "-s", "-o", folder / "setattr", folder / "setattr.c"], check=True)
    return (folder / "setattr").read_bytes()
