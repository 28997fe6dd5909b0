"""How much firebuild adds to a boot: cold `run -d` to the first PING, against a bare QEMU boot of the same kernel and root.

Both end with the same redis answering through a published port. The rounds of the two alternate in one run, so that a busy
host is busy for both; the least time of each counts. Needs root, a state with the redis example (`./dev bench` prepares it),
and busybox-static for the bare guest's init.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE = "examples/redis:7"
MEMORY_MIB = 256
PORT = 6398
ANSWER_TIMEOUT_S = 300.0
FIREBUILD = Path(sys.executable).with_name("firebuild")
BUSYBOX = Path("/bin/busybox")
KERNEL_ARGS = "console=ttyS0 reboot=k panic=1 quiet cryptomgr.notests random.trust_cpu=on"

# The least that brings the same root up: modules, the shared disk under a writable layer, one address, the server.
INIT = """#!/busybox sh
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
for module in $(/busybox cat /modules/order); do /busybox insmod /modules/$module; done
while [ ! -b /dev/vda ]; do /busybox usleep 10000; done
/busybox mount -t ext4 -o ro /dev/vda /lower
/busybox mount -t tmpfs tmpfs /upper
/busybox mkdir /upper/upper /upper/work
/busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work overlay /new
/busybox mount --move /proc /new/proc
/busybox mount --move /dev /new/dev
/busybox ip link set lo up
/busybox ip addr add 10.0.2.15/24 dev eth0
/busybox ip link set eth0 up
/busybox ip route add default via 10.0.2.2
cd /new
exec /busybox chroot /new /usr/bin/setpriv --reuid=redis --regid=redis --init-groups redis-server /etc/redis/redis.conf
"""


def main(arguments: list[str]) -> int:
    """Run the rounds and print the one line."""
    parser = argparse.ArgumentParser(prog="cold_run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--state", type=Path, default=Path(os.environ.get("FIREBUILD_STATE", "/var/lib/firebuild")))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="firebuild-bench-") as scratch:
        kernel, initramfs, disk = prepare_bare(options.state, Path(scratch))
        bare, whole = [], []
        for _ in range(options.rounds):
            bare.append(measure_bare(kernel, initramfs, disk))
            whole.append(measure_run())
    ratio = min(whole) / min(bare)
    sys.stdout.write(
        f"cold run -d to first PING: {min(whole):.2f} s; bare QEMU boot to first PING: {min(bare):.2f} s; "
        f"ratio {ratio:.2f} (least of {options.rounds} alternating rounds)\n"
    )
    return 0


def prepare_bare(state: Path, scratch: Path) -> tuple[Path, Path, Path]:
    """The kernel, an initramfs of our own with the kernel's modules, and the image's disk."""
    name = subprocess.run([FIREBUILD, "kernel", "ls", "-q"], check=True, capture_output=True, text=True).stdout.split()[
        0
    ]
    kernel = state / "kernels" / name
    disk = (state / "rootfs" / "examples" / "redis" / "7" / "rootfs").resolve(strict=True)
    initramfs = scratch / "initramfs"
    initramfs.write_bytes(b"".join(make_initramfs(kernel / "modules.tar")))
    return kernel / "vmlinux", initramfs, disk


def make_initramfs(modules: Path) -> Iterator[bytes]:
    """A newc cpio (Documentation/driver-api/early-userspace/buffer-format.rst) with busybox, the modules and INIT."""
    for folder in ("proc", "dev", "lower", "upper", "new", "modules"):
        yield cpio_entry(folder, 0o040755, b"")
    yield cpio_entry("busybox", 0o100755, BUSYBOX.read_bytes())
    yield cpio_entry("init", 0o100755, INIT.encode())
    order = []
    if modules.exists():
        with tarfile.open(modules) as archive:
            for member in archive:
                if (file := archive.extractfile(member)) is not None and member.name.endswith(".ko"):
                    order.append(Path(member.name).name)
                    yield cpio_entry(f"modules/{order[-1]}", 0o100644, file.read())
    yield cpio_entry("modules/order", 0o100644, "\n".join(order).encode())
    yield cpio_entry("TRAILER!!!", 0, b"")


def cpio_entry(name: str, mode: int, content: bytes) -> bytes:
    """One entry, name and content padded to four bytes."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return header + b"\0" * (-len(header) % 4) + content + b"\0" * (-len(content) % 4)


def host_khz() -> int:
    """The host's clock, which a guest under TCG cannot calibrate on a busy host."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return int(float(line.split(":")[1]) * 1000)
    return 2_000_000


@contextmanager
def bare_guest(kernel: Path, initramfs: Path, disk: Path) -> Iterator[None]:
    """QEMU with nothing around it: the same machine type, kernel, root disk and memory."""
    command = [
        "qemu-system-x86_64", "-M", "microvm,acpi=on", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", str(MEMORY_MIB), "-smp", "1",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "null",
        "-global", "virtio-mmio.force-legacy=false", "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", f"{KERNEL_ARGS} tsc_early_khz={host_khz()}",
        "-drive", f"id=root,file={disk},format=raw,if=none,readonly=on", "-device", "virtio-blk-device,drive=root",
        "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{PORT}-:6379", "-device", "virtio-net-device,netdev=net",
        "-device", "virtio-rng-device",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure_bare(kernel: Path, initramfs: Path, disk: Path) -> float:
    """Seconds from starting QEMU to the first PONG."""
    begin = time.monotonic()
    with bare_guest(kernel, initramfs, disk):
        await_pong(begin)
        return time.monotonic() - begin


def measure_run() -> float:
    """Seconds from starting `firebuild run -d` to the first PONG."""
    begin = time.monotonic()
    command = [str(FIREBUILD), "run", "-d", "--name", "bench1", "--from", IMAGE, "-p", f"127.0.0.1:{PORT}:6379"]
    subprocess.run([*command, "-m", str(MEMORY_MIB)], check=True, stdout=subprocess.DEVNULL)
    try:
        await_pong(begin)
        return time.monotonic() - begin
    finally:
        subprocess.run([FIREBUILD, "kill", "bench1"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([FIREBUILD, "rm", "bench1"], check=True, stdout=subprocess.DEVNULL)


def await_pong(begin: float) -> None:
    """Ask until redis answers. QEMU's own network accepts connections before the guest does, and then drops them."""
    while time.monotonic() - begin < ANSWER_TIMEOUT_S:
        try:
            with socket.create_connection(("127.0.0.1", PORT), timeout=0.5) as client:
                client.sendall(b"PING\r\n")
                if client.recv(7) == b"+PONG\r\n":
                    return
        except OSError:
            pass
        time.sleep(0.01)
    raise SystemExit(f"error: no PONG within {ANSWER_TIMEOUT_S:g} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
