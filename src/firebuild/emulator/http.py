"""The small part of HTTP/1.1 (RFC 9112) that Firecracker's API and metadata servers speak. Pure: bytes in, bytes out."""

from __future__ import annotations

from dataclasses import dataclass, field

METHODS = ("GET", "PUT", "PATCH", "DELETE")
HEAD_LIMIT = 16384
_REASONS = {
    200: "OK", 204: "No Content", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    413: "Payload Too Large", 500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
}  # fmt: skip
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpError(Exception):
    """Bytes that are no request that is served here; the connection cannot go on."""


@dataclass(frozen=True)
class Request:
    """One request. `headers`: names in lower case, the last of equal names wins. `body`: empty means none."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


@dataclass
class Response:
    """One answer; a 204 has no body and no length."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    def render(self, server: str, *, keep_alive: bool) -> bytes:
        """The bytes on the wire."""
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}",
            f"Server: {server}",
            f"Connection: {'keep-alive' if keep_alive else 'close'}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        if self.status != 204:
            lines += [f"Content-Type: {self.content_type}", f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*lines, "", ""]).encode("ascii", "replace") + self.body


class RequestParser:
    """Takes bytes as they arrive and gives whole requests. `body_limit`: bytes that a body may have."""

    def __init__(self, body_limit: int) -> None:
        self.body_limit = body_limit
        self._data = bytearray()
        self._head: tuple[str, str, dict[str, str], int, bool] | None = None

    def feed(self, data: bytes) -> None:
        """More bytes of the connection."""
        self._data += data

    @property
    def wants_continue(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body; True once for a request."""
        if self._head is None or self._head[2].get("expect", "").lower() != "100-continue":
            return False
        del self._head[2]["expect"]
        return len(self._data) < self._head[3]

    def next(self) -> Request | None:
        """The next whole request, or None. Raises HttpError, after which the parser is of no more use."""
        if self._head is None:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                if len(self._data) > HEAD_LIMIT:
                    raise HttpError("Invalid request.")
                return None
            head = bytes(self._data[:end])
            if len(head) > HEAD_LIMIT:
                raise HttpError("Invalid request.")
            self._head = self._parse_head(head)
            del self._data[: end + 4]
        method, path, headers, length, keep_alive = self._head
        if len(self._data) < length:
            return None
        body = bytes(self._data[:length])
        del self._data[:length]
        self._head = None
        return Request(method, path, headers, body, keep_alive)

    def _parse_head(self, head: bytes) -> tuple[str, str, dict[str, str], int, bool]:
        try:
            lines = head.decode("ascii").split("\r\n")
        except UnicodeDecodeError:
            raise HttpError("Invalid request.") from None
        words = lines[0].split(" ")
        if len(words) != 3:
            raise HttpError("Invalid request.")
        method, target, version = words
        if method not in METHODS:
            raise HttpError("Invalid HTTP Method: Unsupported HTTP method.")
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            raise HttpError("Invalid HTTP Version: Unsupported HTTP version.")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip() or any(ord(c) < 32 and c != "\t" for c in line):
                raise HttpError(f"Invalid header. Reason: Header is incorrectly formatted. Key: {name}")
            key = name.lower()
            if key == "content-length" and headers.get(key, value.strip()) != value.strip():
                raise HttpError("Invalid header. Reason: Content-Length stands there twice.")
            headers[key] = value.strip()
        if headers.get("transfer-encoding", "identity") != "identity":
            raise HttpError("Invalid header. Reason: Unsupported value. Key:Transfer-Encoding")
        return method, _absolute_path(target), headers, self._length(headers), _keeps_alive(version, headers)

    def _length(self, headers: dict[str, str]) -> int:
        text = headers.get("content-length", "0")
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise HttpError(f"Invalid header. Reason: Invalid value. Key:Content-Length; Value:{text}")
        if int(text) > self.body_limit:
            raise HttpError(
                f"Request payload with size {text} is larger than the limit of {self.body_limit} allowed by server."
            )
        return int(text)


def _keeps_alive(version: str, headers: dict[str, str]) -> bool:
    wish = headers.get("connection", "").lower()
    return wish != "close" and (version == "HTTP/1.1" or wish == "keep-alive")


def _absolute_path(target: str) -> str:
    """The path of a request target in origin form or absolute form; empty if it has none."""
    if target.startswith("http://"):
        _, slash, rest = target[len("http://") :].partition("/")
        return slash + rest
    if not target.startswith("/"):
        raise HttpError("Invalid URI: Empty or relative URI not allowed.")
    return target
