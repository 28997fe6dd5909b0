"""A guest without a VMM: a namespace whose kernel plays the guest's, its network card pumped to and from a machine's tap."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from functools import partial

from firebuild.host.netns import create_netns, delete_netns, run_in_netns
from firebuild.network.attach import Attachment

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02 | 0x04  # checksums, TSO for IPv4 and IPv6: what Firecracker and QEMU switch on
_FRAME_MAX = 70_000


def open_tap(name: str) -> int:
    """Open a tap in the calling thread's namespace as a VMM does; made if it is not there."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS)
    return descriptor


def ip(*arguments: str) -> str:
    """Run ip(8); its output."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def start_guest(*attachments: Attachment) -> Iterator[str]:
    """Play the guest of a machine's attachments; yields the namespace that stands for the inside of the guest."""
    name = f"fg-{attachments[0].machine_id}"
    create_netns(name)
    stop_read, stop_write = os.pipe()
    ends: list[int] = []
    try:
        ip("-n", name, "link", "set", "lo", "up")
        for attachment in attachments:
            ends.append(run_in_netns(attachment.netns, partial(open_tap, attachment.tap)))
            ends.append(run_in_netns(name, partial(open_tap, attachment.interface)))
            card = ("dev", attachment.interface)
            ip("-n", name, "link", "set", *card, "address", attachment.mac, "mtu", str(attachment.mtu), "up")
            for address in attachment.addresses:
                ip("-n", name, "address", "add", address, *card, *(["nodad"] if ":" in address else []))
            for gateway in filter(None, (attachment.gateway, attachment.gateway6)) if attachment.number == 0 else ():
                ip("-n", name, "route", "add", "default", "via", gateway)
        pump = threading.Thread(target=_pump, args=(ends, stop_read), daemon=True)
        pump.start()
        try:
            yield name
        finally:
            os.write(stop_write, b"x")
            pump.join()
    finally:
        for descriptor in (*ends, stop_read, stop_write):
            os.close(descriptor)
        delete_netns(name)


def _pump(ends: Sequence[int], stop: int) -> None:
    targets = {end: ends[index ^ 1] for index, end in enumerate(ends)}
    while True:
        ready, _, _ = select.select([*ends, stop], [], [])
        if stop in ready:
            return
        for source in ready:
            with contextlib.suppress(BlockingIOError, OSError):  # a frame that a link cannot take is lost, as on a wire
                os.write(targets[source], os.read(source, _FRAME_MAX))


@contextlib.contextmanager
def serve(namespace: str | None, port: int, *, address: str = "", kind: str = "tcp") -> Iterator[None]:
    """A server in a namespace (None: where the caller is) that tells each client which address it came from."""

    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        if kind == "tcp":
            server.listen()
        return server

    server = listen() if namespace is None else run_in_netns(namespace, listen)

    def answer() -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                try:
                    if kind == "udp":
                        data, peer = server.recvfrom(2048)
                        if not data:
                            return  # shut down
                        server.sendto(peer[0].encode(), peer)
                        continue
                    client, peer = server.accept()
                except (OSError, ValueError):
                    return
                with client:
                    client.sendall(peer[0].encode() + b"\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(timeout=5)


def ask(namespace: str | None, address: str, port: int, *, timeout_s: float = 20.0, kind: str = "tcp") -> str:
    """Connect from a namespace (None: where the caller is); what the server of `serve` said. Raises OSError."""

    def connect() -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as client:
            client.settimeout(timeout_s)
            client.connect((address, port))
            if kind == "udp":
                client.send(b"?")
            return client.recv(100).decode().strip()

    return connect() if namespace is None else run_in_netns(namespace, connect)


def ping(address: str, *, timeout_s: float = 20.0) -> bool:
    """Whether an IPv4 address answers an echo request (RFC 792) from the caller's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as probe:
        probe.settimeout(timeout_s)
        probe.connect((address, 0))
        body = struct.pack(">BBHHH", 8, 0, 0, 0x4642, 1)
        total = sum(struct.unpack(">4H", body))
        probe.send(struct.pack(">BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, 0x4642, 1))
        try:
            while True:
                answer = probe.recv(200)
                if answer[(answer[0] & 15) * 4] == 0:
                    return True
        except OSError:
            return False


def resolve(
    namespace: str | None, server: str, name: str, *, version: int = 4, timeout_s: float = 20.0
) -> list[str] | None:
    """The addresses that a name server tells for a name (RFC 1035, over UDP), sorted; None where it knows no such name. Raises OSError."""
    kind = 1 if version == 4 else 28
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"
    question = struct.pack(">HHHHHH", 0x4642, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">HH", kind, 1)

    def ask_it() -> bytes:
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout_s)
            client.connect((server, 53))
            client.send(question)
            return client.recv(4096)

    answer = ask_it() if namespace is None else run_in_netns(namespace, ask_it)
    flags, _, count = struct.unpack_from(">HHH", answer, 2)
    if flags & 0xF == 3:
        return None
    if flags & 0xF:
        raise OSError(f"the name server answered with code {flags & 0xF}")
    found: list[str] = []
    offset = len(question)
    for _ in range(count):
        # The name is a pointer of two bytes in dnsmasq's answers.
        given, _, _, length = struct.unpack_from(">HHIH", answer, offset + 2)
        data = answer[offset + 12 : offset + 12 + length]
        if given == kind:
            found.append(socket.inet_ntop(socket.AF_INET if version == 4 else socket.AF_INET6, data))
        offset += 12 + length
    return sorted(found)
