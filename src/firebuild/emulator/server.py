"""An HTTP server on the event loop: keep-alive, one request of a connection at a time, bounded in all directions."""

from __future__ import annotations

import socket
from collections.abc import Callable

from firebuild.emulator.http import CONTINUE, HttpError, Request, RequestParser, Response
from firebuild.emulator.loop import READ, WRITE, Loop, Timer


class HttpServer:
    """Serves a listening socket, which it owns. `answer` makes a response, `refuse` one for what is no request.

    A connection beyond `connection_limit` is answered with 503 and closed, one that sends nothing for `idle_s` is closed.
    """

    def __init__(
        self, loop: Loop, listener: socket.socket, *, name: str, body_limit: int, connection_limit: int,
        answer: Callable[[Request], Response], refuse: Callable[[int, str], Response], idle_s: float | None = None,
    ) -> None:  # fmt: skip
        self._loop = loop
        self._listener = listener
        self._name = name
        self._body_limit = body_limit
        self._connection_limit = connection_limit
        self._answer = answer
        self._refuse = refuse
        self._idle_s = idle_s
        self._connections: set[_HttpConnection] = set()
        listener.setblocking(False)
        loop.watch(listener.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            connected, _address = self._listener.accept()
        except OSError:
            return
        connected.setblocking(False)
        connection = _HttpConnection(self, connected)
        self._connections.add(connection)
        if len(self._connections) > self._connection_limit:
            connection.refuse(503, "Too many open connections.")

    def close(self) -> None:
        """Close the listener and every connection; answers that are ready are sent as far as the sockets take them."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            connection.close()


class _HttpConnection:
    def __init__(self, server: HttpServer, connected: socket.socket) -> None:
        self._server = server
        self._loop = server._loop
        self._socket = connected
        self._parser = RequestParser(server._body_limit)
        self._out = b""
        self._closing = False
        self._timer: Timer | None = None
        self._rest()

    def _rest(self) -> None:
        """Wait for what comes next, for at most the idle time."""
        if self._socket.fileno() < 0:
            return
        # Nothing more is read before the last answer has gone: a client cannot pile up requests here.
        self._loop.watch(self._socket.fileno(), WRITE if self._out else READ, self._serve)
        if self._timer is not None:
            self._timer.cancel()
        if self._server._idle_s is not None:
            self._timer = self._loop.call_later(self._server._idle_s, self.close)

    def _serve(self, ready: int) -> None:
        if ready & WRITE and self._out:
            self._send()
        elif ready & READ:
            self._receive()
        self._answer_waiting()
        self._rest()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._parser.feed(data)

    def _answer_waiting(self) -> None:
        """Answer whole requests until an answer does not go out at once."""
        server = self._server
        while not self._closing and not self._out:
            try:
                request = self._parser.next()
            except HttpError as error:
                self.refuse(400, str(error))
                return
            if request is None:
                if self._parser.wants_continue:
                    self._out = CONTINUE
                    self._send()
                return
            response = server._answer(request)
            self._closing = not request.keep_alive
            self._out = response.render(server._name, keep_alive=request.keep_alive)
            self._send()

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error and close."""
        self._closing = True
        self._out = self._server._refuse(status, message).render(self._server._name, keep_alive=False)
        self._send()

    def _send(self) -> None:
        try:
            self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._out and self._closing:
            self.close()

    def close(self) -> None:
        """Close; twice is fine."""
        self._closing = True
        self._out = b""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
        self._server._connections.discard(self)
