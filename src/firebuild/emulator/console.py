"""The guest's serial console: what it prints goes to an output that may be slow, what is typed goes in."""

from __future__ import annotations

import os
import select
import socket
import termios
import tty
from typing import Any

from firebuild.emulator.loop import READ, WRITE, Loop

# At most what a pipe that is ready takes without blocking (pipe(7), PIPE_BUF).
_PIECE = 4096


class Console:
    """Joins QEMU's serial port to `output` and, where it can be waited for, to `keyboard`. Owns neither of the two."""

    def __init__(self, loop: Loop, serial: socket.socket, output: int, keyboard: int | None) -> None:
        self._loop = loop
        self._serial: socket.socket | None = serial
        self._output = output
        self._keyboard = keyboard
        self._waiting = b""
        self._saved: list[Any] | None = None
        self._dead = False
        serial.setblocking(False)
        loop.watch(serial.fileno(), READ, self._read)
        if keyboard is not None:
            self._open_keyboard(keyboard)

    def _open_keyboard(self, keyboard: int) -> None:
        try:
            self._loop.watch(keyboard, READ, self._type)
        except (PermissionError, OSError):
            # A regular file or /dev/null cannot be waited for: no input, as in Firecracker.
            self._keyboard = None
            return
        if os.isatty(keyboard):
            self._saved = termios.tcgetattr(keyboard)
            tty.setraw(keyboard, termios.TCSANOW)
            # Output is still post-processed: the emulator's own lines share the terminal.
            mode = termios.tcgetattr(keyboard)
            mode[1] |= termios.OPOST
            termios.tcsetattr(keyboard, termios.TCSANOW, mode)

    def _type(self, _: int) -> None:
        assert self._keyboard is not None
        try:
            data = os.read(self._keyboard, 64)
        except OSError:
            data = b""
        if not data or self._serial is None:
            self._loop.forget(self._keyboard)
            return
        try:
            self._serial.send(data)
        except OSError:
            # The guest does not read its serial port: what is typed meanwhile is lost, as with a real one.
            return

    def _read(self, _: int) -> None:
        if self._serial is None:
            return
        try:
            data = self._serial.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.forget(self._serial.fileno())
            self._serial.close()
            self._serial = None
            return
        self._waiting = data
        self._write(0)

    def _write(self, _: int) -> None:
        """Write what waits if the output takes it; else read no more until it does."""
        if self._waiting and (self._dead or self._ready()):
            try:
                written = len(self._waiting) if self._dead else os.write(self._output, self._waiting)
            except BlockingIOError:
                written = 0
            except OSError:
                # The reader is gone. The guest must go on.
                self._dead, written = True, len(self._waiting)
            self._waiting = self._waiting[written:]
        if self._serial is not None:
            self._loop.watch(self._serial.fileno(), 0 if self._waiting else READ, self._read)
        if self._waiting:
            self._loop.watch(self._output, WRITE, self._write)
        else:
            self._loop.forget(self._output)

    def _ready(self, timeout_s: float = 0.0) -> bool:
        return bool(select.select([], [self._output], [], timeout_s)[1])

    def drain(self, timeout_s: float) -> None:
        """The guest is gone: print what it had written, waiting at most `timeout_s` for a slow output."""
        while self._serial is not None or self._waiting:
            if self._waiting:
                if not self._dead and not self._ready(timeout_s):
                    return
                self._write(0)
            elif self._serial is not None and select.select([self._serial], [], [], 0)[0]:
                self._read(0)
            else:
                return

    def close(self) -> None:
        """Stop; a terminal gets its mode back."""
        if self._serial is not None:
            self._loop.forget(self._serial.fileno())
            self._serial.close()
            self._serial = None
        self._loop.forget(self._output)
        if self._keyboard is not None:
            self._loop.forget(self._keyboard)
            if self._saved is not None:
                termios.tcsetattr(self._keyboard, termios.TCSANOW, self._saved)
