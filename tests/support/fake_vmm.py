"""A scripted stand-in for `firecracker`: its API socket, its vsock socket, and a guest that behaves as the script says.

Run as a program with Firecracker's arguments. `write_fake_vmm` makes an executable with a script of its own.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import stat
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

REQUEST, REPLY, ERROR, EVENT, STDIN, STDOUT, DATA, EXIT = 0x01, 0x02, 0x03, 0x04, 0x10, 0x11, 0x13, 0x14
_LONG_S = 86400.0
# Of a snapshot, whatever the machine's size.
MEMORY_BYTES = 64 << 10


@dataclass
class Script:
    """What the stand-in does. `refuse`: "PUT /boot-source" → fault_message. `push`: raw bytes (hex) sent in place of `ready`.

    `health`: status, code and output of checks, one after the other, one a second."""

    die_at_start: bool = False
    no_socket: bool = False
    refuse: dict[str, str] = field(default_factory=dict)
    ready: bool = True
    ready_after_s: float = 0.0
    failed: str = ""
    push: str = ""
    output: str = ""
    exit_after_s: float | None = None
    exit_code: int = 0
    ignore_stop: bool = False
    console: str = "fake kernel: booting\n"
    end_on_signal: int = 0
    # What every path of the guest is, and the tar that any `copy-out` gives, in hex; `-` behind it: the stream is cut off.
    path_kind: str = "directory"
    copy_out: str = ""
    health: list[tuple[str, int, str]] = field(default_factory=list)
    # What `--version` says; whether it has a seccomp filter; whether it says what it can do with its drives, and where it is.
    version: str = "Firecracker v1.17.0"
    seccomp: bool = False
    probe: bool = False
    # "PUT /boot-source" → what is wrong with its answer: die, close, hang, drip, garbage, not-json, 503, huge.
    answers: dict[str, str] = field(default_factory=dict)
    # How many processes it makes, and how much memory it takes (MiB), once its guest is ready.
    forks: int = 0
    hog_mib: int = 0
    attach: str = ""
    """What happens to who attaches: "echo" (input comes back as output; its end is the entrypoint's, with exit_code), "fail",
    "break" (a frame that is none), or nothing: the op is not known."""


def write_fake_vmm(path: Path, script: Script) -> Path:
    """An executable that behaves as `script` says, for FIREBUILD_BINARY_FIRECRACKER."""
    text = shlex.quote(json.dumps(asdict(script)))
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I {__file__} {text} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class FakeGuest:
    """The guest's side: pushes what happens, answers the control port."""

    def __init__(self, script: Script, uds: str) -> None:
        self.script = script
        self.uds = uds
        self.push: socket.socket | None = None

    def connect(self) -> socket.socket:
        push = self.push = socket.socket(socket.AF_UNIX)
        push.connect(f"{self.uds}_1025")
        request = {"op": "boot", "protocol": 1, "version": "fake", "kernel": "0.0.0-fake", "boot_id": "00"}
        self.send(push, REQUEST, request)
        kind, _ = receive(push)
        assert kind == REPLY
        return push

    def boot(self) -> None:
        push = self.connect()
        self.send(push, EVENT, {"event": "step", "name": "fake step"})
        if self.script.push:
            push.sendall(bytes.fromhex(self.script.push))
            return
        if self.script.failed:
            self.send(push, EVENT, {"event": "failed", "code": "not-found", "message": self.script.failed})
            os._exit(0)
        if not self.script.ready:
            return
        time.sleep(self.script.ready_after_s)
        self.send(push, EVENT, {"event": "ready", "uptime_ms": 1, "entrypoint_pid": 1})
        self.take()
        output = self.script.output + (probe(_Handler.files) if self.script.probe else "")
        if output:
            self.send_bytes(push, STDOUT, output.encode())
        for streak, (status, code, output) in enumerate(self.script.health):
            result = {"code": code, "duration_ms": 20, "output": output}
            self.send(push, EVENT, {"event": "health", "status": status, "failing_streak": streak, "result": result})
            time.sleep(1)
        if self.script.exit_after_s is not None:
            time.sleep(self.script.exit_after_s)
            self.end(self.script.exit_code)

    def take(self) -> None:
        """Processes, told how many came to be; then memory."""
        count = 0
        try:
            for _ in range(self.script.forks):
                if os.fork() == 0:
                    time.sleep(_LONG_S)
                count += 1
        except OSError as error:
            assert self.push is not None
            self.send_bytes(self.push, STDOUT, f"{count} processes: {error.strerror}\n".encode())
        held = [b"\1" * (1 << 20) for _ in range(self.script.hog_mib)]
        assert len(held) == self.script.hog_mib

    def end(self, code: int) -> None:
        assert self.push is not None
        self.send(self.push, EXIT, {"code": code, "signal": None})
        self.push.shutdown(socket.SHUT_WR)
        os._exit(0)

    def send(self, stream: socket.socket, kind: int, value: object) -> None:
        self.send_bytes(stream, kind, json.dumps(value).encode())

    def send_bytes(self, stream: socket.socket, kind: int, payload: bytes) -> None:
        stream.sendall((len(payload) + 1).to_bytes(4, "big") + bytes((kind,)) + payload)

    def attach(self, stream: socket.socket) -> None:
        self.send(stream, REPLY, {"tty": False, "stdin": True})
        if self.script.attach == "fail":
            self.send(stream, ERROR, {"code": "not-found", "message": "no such program: /bin/app"})
            assert self.push is not None
            self.send(self.push, EVENT, {"event": "failed", "code": "not-found", "message": "no such program"})
            self.end(127)
        if self.script.attach == "break":
            stream.sendall(b"\xff" * 64)
            return
        while (frame := receive(stream))[1]:
            assert frame[0] == STDIN
            self.send_bytes(stream, STDOUT, b"echo " + frame[1])
        self.send(stream, EXIT, {"code": self.script.exit_code, "signal": None})
        self.end(self.script.exit_code)

    def serve_control(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.uds)
        listener.listen()
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=self.answer, args=(stream,), daemon=True).start()

    def answer(self, stream: socket.socket) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += stream.recv(1)
        stream.sendall(b"OK 1073741824\n")
        _, payload = receive(stream)
        request = json.loads(payload)
        op = request["op"]
        if op == "hello":
            self.send(stream, REPLY, {"protocol": 1, "version": "fake", "features": []})
        elif op in ("stop", "poweroff"):
            self.send(stream, REPLY, {})
            if not self.script.ignore_stop:
                self.end(143)
        elif op == "signal":
            assert self.push is not None
            self.send(stream, REPLY, {})
            self.send_bytes(self.push, STDOUT, b"signal %d\n" % request["signal"])
            if request["signal"] == self.script.end_on_signal:
                self.end(128 + request["signal"])
        elif op in ("clock", "continue"):
            self.send(stream, REPLY, {})
        elif op == "pause-for-snapshot":
            self.send(stream, REPLY, {"held_by": "signals"})
        elif op == "resume":
            self.connect()
            self.send(stream, REPLY, {"steps": []})
            assert self.push is not None
            self.send(self.push, EVENT, {"event": "ready", "uptime_ms": 1, "entrypoint_pid": 1})
        elif op == "attach" and self.script.attach:
            self.attach(stream)
        elif op == "restart-policy":
            assert self.push is not None
            self.send_bytes(self.push, STDOUT, f"{request['policy']} {request['most']}\n".encode())
            self.send(stream, REPLY, {})
        elif op == "processes":
            one = {"pid": 1, "ppid": 0, "user": "ro\not", "state": "S", "cpu_ms": 61000, "elapsed_ms": 3600000}
            self.send(
                stream, REPLY, {"processes": [{**one, "memory_kib": 2048, "command": "app\x1b[2J"}], "more": True}
            )
        elif op == "exec" and request.get("detach"):
            self.send(stream, REPLY, {"pid": 7})
        elif op == "exec":
            self.send(stream, REPLY, {"pid": 7})
            self.send_bytes(stream, STDOUT, b"fake output\n")
            self.send(stream, EXIT, {"code": 3, "signal": None})
        elif op == "path-stat":
            kind = self.script.path_kind
            self.send(stream, REPLY, {"kind": kind, "size": 0, "real_path": request["path"], "real_kind": kind})
        elif op == "copy-out":
            self.send(stream, REPLY, {"name": "/../../evil", "kind": "file"})
            self.send_bytes(stream, DATA, bytes.fromhex(self.script.copy_out.rstrip("-")))
            if self.script.copy_out.endswith("-"):
                stream.close()
                return
            self.send_bytes(stream, DATA, b"")
        else:
            self.send(stream, ERROR, {"code": "unsupported-op", "message": f"a fake guest has no {op}"})
        stream.close()


def probe(files: dict[str, str]) -> str:
    """What this process can do with the files it was given, a line each, and where it is."""
    lines = [f"uid {os.getuid()} pid {os.getpid()} root {' '.join(sorted(os.listdir('/')))}"]
    for name, path in files.items():
        for mode in ("rb", "r+b"):
            try:
                open(path, mode).close()
                lines.append(f"{name} {mode} ok")
            except OSError as error:
                lines.append(f"{name} {mode} {error.strerror}")
    return "".join(f"{line}\n" for line in lines)


def install_filter() -> None:
    """A seccomp filter that allows everything (seccomp(2)): one BPF instruction, RET ALLOW."""
    import ctypes
    import struct

    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000), 8)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction)), 16)
    if ctypes.CDLL(None, use_errno=True).prctl(22, 2, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def receive(stream: socket.socket) -> tuple[int, bytes]:
    """One frame."""
    header = receive_bytes(stream, 5)
    return header[4], receive_bytes(stream, int.from_bytes(header[:4], "big") - 1)


def receive_bytes(stream: socket.socket, size: int) -> bytes:
    """As many bytes; ends this thread where the stream ends before."""
    data = b""
    while len(data) < size:
        chunk = stream.recv(size - len(data))
        if not chunk:
            sys.exit()
        data += chunk
    return data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script
    uds = ""
    files: dict[str, str] = {}  # noqa: RUF012

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        how = self.script.answers.get(f"{self.command} {self.path}")
        if how is not None:
            self.answer_badly(how)
            return
        fault = self.script.refuse.get(f"PUT {self.path}")
        if fault:
            self.reply(400, {"fault_message": fault})
            return
        if "drive_id" in body:
            self.files[body["drive_id"]] = body["path_on_host"]
        if self.path == "/boot-source":
            self.files.update(kernel=body["kernel_image_path"], initramfs=body["initrd_path"])
        if self.path == "/vsock":
            type(self).uds = body["uds_path"]
        if self.path == "/actions" and body.get("action_type") == "InstanceStart":
            guest = FakeGuest(self.script, self.uds)
            for task in (guest.serve_control, guest.boot):
                threading.Thread(target=task, daemon=True).start()
        if self.path == "/snapshot/create":
            Path(body["snapshot_path"]).write_bytes(b"state")
            Path(body["mem_file_path"]).write_bytes(b"memory".ljust(MEMORY_BYTES, b"\0"))
        if self.path == "/snapshot/load":
            type(self).uds = body["vsock_override"]["uds_path"]
            threading.Thread(target=FakeGuest(self.script, self.uds).serve_control, daemon=True).start()
        self.reply(204, None)

    do_PATCH = do_PUT

    def do_GET(self) -> None:
        self.reply(200, {"firecracker_version": self.script.version.rpartition("v")[2]})

    def answer_badly(self, how: str) -> None:
        self.close_connection = True
        if how == "die":
            os._exit(134)
        elif how == "hang":
            time.sleep(_LONG_S)
        elif how == "drip":
            for byte in b"HTTP/1.1 204 " + b"x" * 60_000:
                self.wfile.write(bytes((byte,)))
                self.wfile.flush()
                time.sleep(0.2)
        elif how == "garbage":
            self.wfile.write(b"\x00\xff\x1b[2Jnonsense\r\n" * 10)
        elif how == "not-json":
            self.reply_bytes(200, b"<html>hello</html>")
        elif how == "503":
            self.reply(503, {"fault_message": "Too many\x1b[2J open connections."})
        elif how == "huge":
            self.reply_bytes(200, b"[" * (3 << 20))

    def reply(self, status: int, value: object) -> None:
        self.reply_bytes(status, b"" if value is None else json.dumps(value).encode())

    def reply_bytes(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if data:
            self.wfile.write(data)


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


def main(arguments: list[str]) -> None:
    """Serve until killed, or until the script ends it."""
    script = Script(**json.loads(arguments[0]))
    _Handler.script = script
    if "--version" in arguments:
        print(script.version)
        return
    if script.seccomp:
        install_filter()
    print(script.console, end="", flush=True)
    if "--log-path" in arguments:
        with open(arguments[arguments.index("--log-path") + 1], "a") as log:
            log.write("fake vmm: it runs\n")
    if script.die_at_start:
        print("fake vmm: told to die", file=sys.stderr)
        sys.exit(9)
    if script.no_socket:
        time.sleep(_LONG_S)
    _Server(arguments[arguments.index("--api-sock") + 1], _Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
