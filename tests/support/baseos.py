"""What tests of base operating systems start from: Debian's packages as a registry's image, and that registry as docker.io's mirror."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.registry import start_registry

# What the shipped Dockerfile installs, so that its own installation finds everything there.
PACKAGES = ("dbus", "openssh-server", "sudo", "systemd-sysv")


def ensure_tree(cache: Path, suite: str, timeout_s: float, packages: Sequence[str] = PACKAGES) -> Path:
    """A Debian tree with these packages as a tar, bootstrapped once for each recipe and kept in `cache`."""
    command = [
        "mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", f"--include={','.join(packages)}",
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*", "--aptopt=Acquire::Languages \"none\"",
        "--aptopt=Acquire::Retries \"3\"",
        "--customize-hook=rm -f \"$1/etc/hostname\" \"$1/etc/resolv.conf\" && touch \"$1/etc/resolv.conf\"",
    ]  # fmt: skip
    recipe = hashlib.sha256("\n".join(command).encode()).hexdigest()[:16]
    file = cache / f"{suite}-system-{recipe}.tar"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        # A name of its own until it is whole.
        partial = cache / f"partial-{os.getpid()}.tar"
        try:
            done = subprocess.run([*command, suite, partial], capture_output=True, text=True, timeout=timeout_s)
            assert done.returncode == 0, done.stderr
            partial.rename(file)
        finally:
            partial.unlink(missing_ok=True)
    return file


@contextmanager
def start_mirror(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A registry, and the environment in which it is asked in place of docker.io."""
    with start_registry(folder / "registry") as port:
        # Where containers-registries.conf(5) has a user's own file.
        file = folder / ".config" / "containers" / "registries.conf"
        file.parent.mkdir(parents=True)
        file.write_text(
            f'[[registry]]\nprefix = "docker.io"\nlocation = "127.0.0.1:{port}"\ninsecure = true\n', encoding="utf-8"
        )
        yield port, {"HOME": str(folder)}
