"""The metadata service: its store, its session tokens and the answers that a guest gets. Pure.

Behaviour: Firecracker's docs/mmds/mmds-user-guide.md. V1 answers every GET; V2 asks for a session token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
import time
from collections.abc import Callable
from typing import Any

import msgspec

from firebuild.emulator.http import Request, Response

DEFAULT_ADDRESS = "169.254.169.254"
TOKEN_PATH = "/latest/api/token"
_TTL_MIN_S, _TTL_MAX_S = 1, 21600
_TOKEN_HEADERS = ("x-metadata-token", "x-aws-ec2-metadata-token")
_TTL_HEADERS = ("x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds")
_TOKEN = struct.Struct(">Q12s16s")
_ABSENT = object()
LIMIT_EXCEEDED = "The MMDS patch request doesn't fit."
NOT_INITIALIZED = "The MMDS data store is not initialized."


class StoreError(Exception):
    """A change that the store refuses; the text is Firecracker's."""


class Mmds:
    """The store. `limit_bytes`: of its JSON text. `clock` gives monotonic seconds."""

    def __init__(self, limit_bytes: int, instance_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.version = "V1"
        self.imds_compat = False
        self.value: Any = None
        self.initialized = False
        self._limit_bytes = limit_bytes
        self._aad = f"microvmid={instance_id}".encode()
        self._key = secrets.token_bytes(32)
        self._clock = clock
        self.counters = {"rx_count": 0, "rx_no_token": 0, "rx_invalid_token": 0}

    def put(self, value: Any) -> None:
        """Replace the store. Raises StoreError."""
        self._check(value)
        self.value = value
        self.initialized = True

    def patch(self, patch: Any) -> None:
        """Merge into the store (RFC 7396). Raises StoreError."""
        if not self.initialized:
            raise StoreError(NOT_INITIALIZED)
        merged = merge_patch(self.value, patch)
        self._check(merged)
        self.value = merged

    def _check(self, value: Any) -> None:
        if len(msgspec.json.encode(value)) > self._limit_bytes:
            raise StoreError(LIMIT_EXCEEDED)

    def new_token(self, ttl_s: int) -> str:
        """A token that is valid for `ttl_s` seconds: its expiry (ms), a nonce and a seal over both and the microVM's id."""
        expiry_ms = int(self._clock() * 1000) + ttl_s * 1000
        nonce = secrets.token_bytes(12)
        return base64.b64encode(_TOKEN.pack(expiry_ms, nonce, self._seal(expiry_ms, nonce))).decode("ascii")

    def is_valid(self, token: str) -> bool:
        """Whether a token is this service's and has not expired."""
        try:
            expiry_ms, nonce, seal = _TOKEN.unpack(base64.b64decode(token, validate=True))
        except (binascii.Error, struct.error, ValueError):
            return False
        return hmac.compare_digest(seal, self._seal(expiry_ms, nonce)) and expiry_ms > self._clock() * 1000

    def _seal(self, expiry_ms: int, nonce: bytes) -> bytes:
        text = struct.pack(">Q", expiry_ms) + nonce + self._aad
        return hmac.new(self._key, text, hashlib.sha256).digest()[:16]

    def answer(self, request: Request) -> Response:
        """The answer to a guest's request."""
        self.counters["rx_count"] += 1
        if not request.path:
            return _text(400, "Invalid URI.")
        if request.method == "GET":
            return self._get(request)
        if request.method == "PUT":
            return self._put_token(request)
        response = _text(405, "Not allowed HTTP method.")
        response.headers["Allow"] = "GET, PUT"
        return response

    def _get(self, request: Request) -> Response:
        token = _header(request, _TOKEN_HEADERS)
        if token is None:
            self.counters["rx_no_token"] += 1
        elif not self.is_valid(token[1]):
            self.counters["rx_invalid_token"] += 1
        if self.version == "V2":
            if token is None:
                return _text(
                    401, "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify "
                    "the session token.",
                )  # fmt: skip
            if not self.is_valid(token[1]):
                return _text(401, "MMDS token not valid.")
        value = find_pointer(self.value, _sanitize(request.path))
        if value is _ABSENT:
            return _text(404, f"Resource not found: {request.path}.")
        if request.headers.get("accept") == "application/json" and not self.imds_compat:
            return Response(200, msgspec.json.encode(value, order="sorted"))
        text = imds_text(value)
        if text is None:
            return _text(501, "Cannot retrieve value. The value has an unsupported type.")
        response = _text(200, text)
        if request.headers.get("accept") == "application/json":
            response.content_type = "application/json"
        return response

    def _put_token(self, request: Request) -> Response:
        if "x-forwarded-for" in request.headers:
            return _text(400, "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For")
        if _sanitize(request.path) != TOKEN_PATH:
            return _text(404, f"Resource not found: {request.path}.")
        header = _header(request, _TTL_HEADERS)
        if header is None:
            return _text(
                400, "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or "
                "`X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
            )  # fmt: skip
        name, text = header
        if not (text.isascii() and text.isdigit() and int(text[:20]) < 2**32):
            return _text(400, f"Invalid header. Reason: Invalid value. Key:{name}; Value:{text}")
        ttl_s = int(text)
        if not _TTL_MIN_S <= ttl_s <= _TTL_MAX_S:
            return _text(
                400, f"Invalid time to live value provided for token: {ttl_s}. Please provide a value between "
                f"{_TTL_MIN_S} and {_TTL_MAX_S}.",
            )  # fmt: skip
        response = _text(200, self.new_token(ttl_s))
        response.headers[name] = str(ttl_s)
        return response


def merge_patch(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396) as a new value."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def find_pointer(value: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) names, a trailing `/` not counted, or a private object if it names nothing."""
    pointer = pointer.removesuffix("/")
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(key, _ABSENT)
        elif isinstance(value, list) and is_index(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            return _ABSENT
        if value is _ABSENT:
            return _ABSENT
    return value


def is_index(text: str) -> bool:
    """Whether a pointer's part is an array index: digits without a leading zero."""
    return text.isascii() and text.isdigit() and (text == "0" or not text.startswith("0")) and len(text) < 10


def imds_text(value: Any) -> str | None:
    """The plain text form: an object's keys, one a line, those of objects with a `/`; a string as it is; else None."""
    if isinstance(value, dict):
        return "\n".join(key + ("/" if isinstance(value[key], dict) else "") for key in sorted(value))
    return value if isinstance(value, str) else None


def _sanitize(path: str) -> str:
    while "//" in path:
        path = path.replace("//", "/")
    return path


def _header(request: Request, names: tuple[str, ...]) -> tuple[str, str] | None:
    for name in names:
        if name in request.headers:
            return name, request.headers[name]
    return None


def _text(status: int, text: str) -> Response:
    return Response(status, text.encode(), "text/plain")
