"""The program `firecracker-emulator`: arguments, sockets, signals, the event loop, and the exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from firebuild.emulator import API_VERSION
from firebuild.emulator.api import Api, refuse
from firebuild.emulator.arguments import (
    DEFAULT_ID,
    DEFAULT_SOCKET,
    EXIT_GENERIC,
    EXIT_OK,
    PAYLOAD_MAX,
    ArgumentError,
    Arguments,
    help_text,
    parse_arguments,
)
from firebuild.emulator.faults import Fault, not_served, os_text
from firebuild.emulator.instance import Instance
from firebuild.emulator.log import Log
from firebuild.emulator.loop import READ, Loop
from firebuild.emulator.models import ConfigFile, MetricsConfig, parse_body, parse_json
from firebuild.emulator.runtime import LaunchOptions
from firebuild.emulator.server import HttpServer

VERSION_TEXT = (
    f"Firecracker v{API_VERSION}\n\nThis is firecracker-emulator: Firecracker's API on QEMU's microvm machine.\n"
)
_CONNECTIONS_MAX = 10
# As FcExitCode::SIGHUP.
_EXIT_HANGUP = 156


class _StartError(Exception):
    """The emulator cannot start; the text says why."""


class _Signals:
    """Catches what ends a program, and tells the loop."""

    def __init__(self, loop: Loop) -> None:
        self.caught: int | None = None
        self._loop = loop
        self._read, self._write = socket.socketpair()

    @contextlib.contextmanager
    def caught_signals(self) -> Iterator[None]:
        """While the block runs, SIGTERM, SIGINT and SIGHUP stop the loop."""
        for end in (self._read, self._write):
            end.setblocking(False)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._loop.watch(self._read.fileno(), READ, self._notice)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            self._loop.forget(self._read.fileno())
            self._read.close()
            self._write.close()

    def _notice(self, _: int) -> None:
        for number in self._read.recv(64):
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self.caught = self.caught or number
                self._loop.stop()


def main(argv: Sequence[str] | None = None) -> None:
    """Run, and exit with Firecracker's exit codes; a signal that ends it is its end, once all is cleaned up."""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    except ArgumentError as error:
        sys.stderr.write(f"Arguments parsing error: {error} \n\nFor more information try --help.\n")
        sys.exit(error.exit_code)
    if arguments.flags & {"version", "help"}:
        sys.stdout.write(VERSION_TEXT)
        if "help" in arguments.flags:
            sys.stdout.write(f"\n{help_text()}\n")
        sys.exit(EXIT_OK)
    status, number = _run(arguments)
    if number is not None and number != signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(status)


def _run(arguments: Arguments) -> tuple[int, int | None]:
    """The exit status, and the signal that ended it if any."""
    loop = Loop()
    log = Log(arguments.values.get("id", DEFAULT_ID))
    signals = _Signals(loop)
    statuses: list[int] = []

    def on_exit(status: int) -> None:
        statuses.append(status)
        loop.stop()

    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.caught_signals())
        try:
            _serve(arguments, loop, log, stack, on_exit)
            if not statuses:
                loop.run()
        except (Fault, _StartError) as error:
            log.error(str(error))
            sys.stderr.write(f"Error: {error}\n")
            statuses.append(EXIT_GENERIC)
    if signals.caught is not None and not statuses:
        log.info(f"Ended by {signal.Signals(signals.caught).name}.")
        return _EXIT_HANGUP if signals.caught == signal.SIGHUP else 128 + signals.caught, signals.caught
    status = statuses[0] if statuses else EXIT_GENERIC
    log.info(f"Firecracker exiting. exit_code={status}")
    return status, None


def _serve(arguments: Arguments, loop: Loop, log: Log, stack: contextlib.ExitStack, on_exit: object) -> None:
    """Set all up; what is open is closed by `stack`. Raises Fault, _StartError."""
    values, flags = arguments.values, arguments.flags
    log.configure(
        path=values.get("log-path"), level=values.get("level"), show_level="show-level" in flags or None,
        show_origin="show-log-origin" in flags or None, module=values.get("module"),
    )  # fmt: skip
    log.info(f"Running Firecracker v{API_VERSION} (the emulator)")
    payload_max = arguments.number("http-api-max-payload-size", PAYLOAD_MAX)
    defaults = LaunchOptions()
    assert callable(on_exit)
    instance = Instance(
        loop, log, instance_id=log.instance_id, mmds_limit_bytes=arguments.number("mmds-size-limit", payload_max),
        options=LaunchOptions(
            uid=arguments.number("qemu-uid", defaults.uid), gid=arguments.number("qemu-gid", defaults.gid),
            sandbox="no-seccomp" not in flags,
        ),
        on_exit=on_exit,
    )  # fmt: skip
    if "metrics-path" in values:
        instance.set_metrics(MetricsConfig(metrics_path=values["metrics-path"]))
    api = Api(instance)
    if "no-api" not in flags:
        _open_api(values.get("api-sock", DEFAULT_SOCKET), payload_max, loop, api, stack)
    # Closed before the API's socket goes: who sees the socket vanish finds nothing else left.
    stack.callback(instance.close)
    if "metadata" in values:
        instance.put_mmds(parse_json(_read_file(values["metadata"], "mmds content")))
    if "config-file" in values:
        config = parse_body(_read_file(values["config-file"], "configuration"), ConfigFile)
        for name in ("cpu_config", "pmem", "memory_hotplug"):
            if getattr(config, name) not in (None, []):
                raise not_served(f"the section `{name.replace('_', '-')}` of a configuration file")
        instance.configure(config)
        instance.start()


def _open_api(path: str, payload_max: int, loop: Loop, api: Api, stack: contextlib.ExitStack) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(_CONNECTIONS_MAX)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _StartError(
                f"Failed to open the API socket at: {path}. Check that it is not already used."
            ) from error
        reason = os_text(error) if error.errno else str(error)
        raise _StartError(f"Failed to bind and run the HTTP server at {path}: {reason}") from error
    stack.callback(Path(path).unlink, missing_ok=True)
    server = HttpServer(
        loop, listener, name="Firecracker API", body_limit=payload_max, connection_limit=_CONNECTIONS_MAX,
        answer=api.answer, refuse=refuse,
    )  # fmt: skip
    stack.callback(server.close)


def _read_file(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _StartError(f"Unable to open or read from the {what} file: {os_text(error)}") from error


if __name__ == "__main__":
    main()
