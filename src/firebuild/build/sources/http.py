"""Fetching one file over HTTP from a server that nobody trusts: every hop checked, every size and time bounded.

Redirects: RFC 9110, section 15.4. A name is resolved once for each hop and the connection goes to the address that was
checked, so that no second answer of the name server can lead elsewhere.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, NoReturn

import msgspec

from firebuild import __version__
from firebuild.build.sources.address import ANY_RANK, KINDS, rank_address, rank_host, resolve_addresses
from firebuild.build.sources.fetched import NO_VALIDATORS, Fetched, Validators
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.url import Url, basic_credentials, parse_url
from firebuild.errors import ContextError, DeadlineError, FirebuildError, UsageError
from firebuild.events.text import neutralise
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error

MAX_REDIRECTS = 5
_CHUNK = 256 * 1024
_CANCEL_CHECK_S = 0.5
_VALIDATOR_MAX = 1000
_REDIRECTS = (301, 302, 303, 307, 308)


class FetchLimits(msgspec.Struct, frozen=True):
    """`bytes`: of the body; `timeout_s`: for all of it; `stall_s`: without a byte; `slow_bytes`: what must have come in
    every `slow_s`."""

    bytes: int = 16 << 30
    timeout_s: float = 3600.0
    stall_s: float = 60.0
    slow_bytes: int = 16 * 1024
    slow_s: float = 60.0


def fetch(
    url: Url,
    scratch: Scratch,
    limits: FetchLimits | None = None,
    *,
    rank: int = ANY_RANK,
    canceled: threading.Event | None = None,
) -> Fetched:
    """GET a file. Raises ContextError naming the URL without its credentials, DeadlineError, DiskFullError.

    Only the status 200 counts. Credentials of the URL go to its own origin only, never to where a redirect leads. A
    redirect may not lead from a public address to a private one, from a private one to this host, or from TLS to plain.
    `rank`: how close the first address may be (rank_address); once `canceled` is set, the fetch fails.
    """
    fetched = fetch_changed(url, scratch, Validators(), limits, rank=rank, canceled=canceled)
    assert fetched is not None, "only a conditional request is answered by 304"
    return fetched


def fetch_changed(
    url: Url,
    scratch: Scratch,
    known: Validators,
    limits: FetchLimits | None = None,
    *,
    rank: int = ANY_RANK,
    canceled: threading.Event | None = None,
) -> Fetched | None:
    """As fetch; None if the server says that the file is the version that is `known`."""
    limits = limits or FetchLimits()
    deadline = Deadline(limits.timeout_s, f"fetching `{url.shown}`")
    bounds = _Bounds(limits, deadline, canceled or threading.Event(), known)
    with _open_final(url, rank, bounds) as (final, response):
        if response.status == 304 and known:
            return None
        if response.status != 200:
            _fail(
                url, final, f"the server answered {response.status} {neutralise(response.reason or '')[:100]}".rstrip()
            )
        return _save(url, final, response, scratch, bounds)


def find_final_url(url: Url, limits: FetchLimits | None = None, *, canceled: threading.Event | None = None) -> Url:
    """Where `url` leads, redirects checked as in `fetch`; the body is not read, and the last status does not matter."""
    limits = limits or FetchLimits()
    bounds = _Bounds(
        limits, Deadline(min(limits.stall_s, limits.timeout_s), f"asking `{url.shown}`"), canceled or threading.Event()
    )
    with _open_final(url, ANY_RANK, bounds) as (final, _):
        return final


@dataclass(frozen=True)
class _Bounds:
    """What one fetch may take."""

    limits: FetchLimits
    deadline: Deadline
    canceled: threading.Event
    known: Validators = NO_VALIDATORS

    def timeout_s(self) -> float:
        """For the next wait. Raises DeadlineError."""
        return min(self.limits.stall_s, self.deadline.check())

    def check(self) -> None:
        """Raises DeadlineError, and ContextError if nobody wants the result any more."""
        self.deadline.check()
        if self.canceled.is_set():
            raise ContextError(f"{self.deadline.what} was given up")


@contextmanager
def _open_final(url: Url, rank: int, bounds: _Bounds) -> Iterator[tuple[Url, http.client.HTTPResponse]]:
    """The response to `url` behind all redirects."""
    here = url
    for _ in range(MAX_REDIRECTS + 1):
        with _open(url, here, rank, bounds) as (response, rank):
            if response.status not in _REDIRECTS:
                yield here, response
                return
            here = _follow(url, here, response)
    _fail(url, here, f"it redirects more than {MAX_REDIRECTS} times")


def _follow(url: Url, here: Url, response: http.client.HTTPResponse) -> Url:
    location = response.getheader("Location")
    if not location:
        _fail(url, here, f"the server answered {response.status} without saying where to go")
    try:
        there = here.join(location)
    except UsageError as error:
        _fail(url, here, f"it redirects to somewhere else than a file: {error.message}")
    if there.login is not None:
        _fail(url, here, f"it redirects to a URL with credentials (`{there.shown}`)")
    if here.scheme == "https" and there.scheme == "http":
        _fail(url, here, f"it redirects from https to `{there.shown}`, which is not encrypted")
    return there


@contextmanager
def _open(url: Url, here: Url, rank: int, bounds: _Bounds) -> Iterator[tuple[http.client.HTTPResponse, int]]:
    """One hop: its response and the rank of its address, which is at most `rank`."""
    connection = response = None
    try:
        proxy = _find_proxy(here)
        if proxy is None:
            addresses, found = _resolve(url, here, rank)
            connection = _connect(here, addresses, bounds)
            target = here.path or "/"
        else:
            found = _rank_behind_proxy(url, here, rank)
            connection, target = _connect_proxy(here, proxy, bounds)
        target += f"?{here.query}" if here.query and not target.startswith("http") else ""
        # A timeout of the socket begins anew with each byte: these limits do not.
        with _cut_after(connection, bounds.timeout_s(), bounds.canceled):
            if here.scheme == "https" and proxy is None:
                _start_tls(connection, here.host)
            connection.response_class = _Response
            connection.request("GET", target, headers=_headers(url, here, proxy, bounds.known))
            response = connection.getresponse()
        with _cut_after(response, bounds.deadline.remaining_s(), bounds.canceled):
            yield response, found
    except (OSError, http.client.HTTPException, ValueError) as error:
        if bounds.deadline.passed:
            raise bounds.deadline.error() from error
        _fail(url, here, _describe(error), cause=error)
    finally:
        if response is not None:
            response.close()
        if connection is not None:
            connection.close()


class _Response(http.client.HTTPResponse):
    """A response whose head is whole: http.client takes the end of the connection for the end of the headers."""

    def begin(self) -> None:
        """Read the head. Raises IncompleteRead."""
        fp, readline, lines = self.fp, self.fp.readline, []

        def keep(limit: int = -1) -> bytes:
            lines.append(readline(limit))
            return lines[-1]

        self.fp = _Lines(fp, keep)  # type: ignore[assignment]
        super().begin()
        if lines and not lines[-1]:
            raise http.client.IncompleteRead(b"")
        if self.fp is not None:
            self.fp = fp


class _Lines:
    """A file whose lines are read by another function."""

    def __init__(self, file: BinaryIO, readline: Callable[[int], bytes]) -> None:
        self._file = file
        self.readline = readline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def _cut_after(
    holder: http.client.HTTPConnection | http.client.HTTPResponse, timeout_s: float, canceled: threading.Event
) -> Iterator[None]:
    """Shut the connection down if the block takes longer, or is canceled; reading then ends at once."""
    done, fired = threading.Event(), threading.Event()

    def watch() -> None:
        end = time.monotonic() + timeout_s
        while not done.wait(min(_CANCEL_CHECK_S, max(0.01, end - time.monotonic()))):
            if canceled.is_set() or time.monotonic() >= end:
                fired.set()
                with suppress(OSError, ValueError, AttributeError):
                    _shut_down(holder)
                return

    thread = threading.Thread(target=watch, name="fetch", daemon=True)
    thread.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if fired.is_set():
            raise TimeoutError from error
        raise
    finally:
        done.set()
        thread.join()
    # A connection that was cut looks like one that has come to its end.
    if fired.is_set():
        raise TimeoutError


def _shut_down(holder: http.client.HTTPConnection | http.client.HTTPResponse) -> None:
    if isinstance(holder, http.client.HTTPResponse):
        # The response has taken the socket over from its connection.
        with socket.socket(fileno=os.dup(holder.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
    elif holder.sock is not None:
        holder.sock.shutdown(socket.SHUT_RDWR)


def _start_tls(connection: http.client.HTTPConnection, host: str) -> None:
    context = ssl.create_default_context()
    # The handshake comes second, so that the connection's owner can cut it short.
    connection.sock = context.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
    connection.sock.do_handshake()


def _headers(url: Url, here: Url, proxy: Url | None, known: Validators) -> dict[str, str]:
    headers = {"Host": here.netloc, "User-Agent": f"firebuild/{__version__}", "Accept": "*/*"}
    headers |= {"Accept-Encoding": "identity", "Connection": "close"}
    if known.etag:
        headers["If-None-Match"] = known.etag
    elif known.last_modified:
        headers["If-Modified-Since"] = known.last_modified
    if url.login is not None and here.origin == url.origin:
        headers["Authorization"] = basic_credentials(url)
    if proxy is not None and proxy.login is not None and here.scheme == "http":
        headers["Proxy-Authorization"] = basic_credentials(proxy)
    return headers


# -- addresses ---------------------------------------------------------------------------------------------------------


def _resolve(url: Url, here: Url, rank: int) -> tuple[list[str], int]:
    addresses = resolve_addresses(here)
    found = max(map(rank_address, addresses))
    _check_rank(url, here, rank, found)
    return addresses, found


def _rank_behind_proxy(url: Url, here: Url, rank: int) -> int:
    """The proxy resolves the name; what it means here is the best that can be known."""
    try:
        found = rank_host(here)
    except OSError:
        found = 0
    _check_rank(url, here, rank, found)
    return found


def _check_rank(url: Url, here: Url, rank: int, found: int) -> None:
    if found > rank:
        _fail(
            url,
            here,
            f"`{here.netloc}` is a {KINDS[found]} address, and it is not the user who names it: that is refused",
        )


# -- connections -------------------------------------------------------------------------------------------------------


def _find_proxy(here: Url) -> Url | None:
    proxies = urllib.request.getproxies()
    text = proxies.get(here.scheme) or proxies.get("all")
    if not text or urllib.request.proxy_bypass(here.netloc):
        return None
    try:
        return parse_url(text if "://" in text else f"http://{text}", ("http", "https"))
    except UsageError as error:
        raise UsageError(
            f"the proxy for {here.scheme} is not usable: {error.message}", hint="see HTTP_PROXY, HTTPS_PROXY"
        ) from error


def _connect(here: Url, addresses: list[str], bounds: _Bounds) -> http.client.HTTPConnection:
    last: OSError | None = None
    for address in addresses:
        try:
            sock = socket.create_connection((address, here.effective_port), timeout=bounds.timeout_s())
        except OSError as error:
            last = error
            continue
        connection = http.client.HTTPConnection(here.host, here.effective_port)
        connection.sock = sock
        return connection
    raise last or OSError("the name has no address")


def _connect_proxy(here: Url, proxy: Url, bounds: _Bounds) -> tuple[http.client.HTTPConnection, str]:
    timeout = bounds.timeout_s()
    if here.scheme == "http":
        make = http.client.HTTPSConnection if proxy.scheme == "https" else http.client.HTTPConnection
        return make(proxy.host, proxy.effective_port, timeout=timeout), here.text
    if proxy.scheme == "https":
        raise OSError("an https proxy for https URLs is not supported")
    tunnel = http.client.HTTPSConnection(
        proxy.host, proxy.effective_port, timeout=timeout, context=ssl.create_default_context()
    )
    tunnel.set_tunnel(
        here.host, here.effective_port, {"Proxy-Authorization": basic_credentials(proxy)} if proxy.login else {}
    )
    return tunnel, here.path or "/"


# -- the body ----------------------------------------------------------------------------------------------------------


def _save(url: Url, final: Url, response: http.client.HTTPResponse, scratch: Scratch, bounds: _Bounds) -> Fetched:
    limits = bounds.limits
    expected = response.length
    if expected is not None and expected > limits.bytes:
        _fail(url, final, f"it has {expected} bytes; at most {limits.bytes} are taken")
    total, size = hashlib.sha256(), 0
    file = scratch.open_file()
    try:
        for chunk in _read(url, final, response, bounds):
            size += len(chunk)
            if size > limits.bytes:
                _fail(url, final, f"it has more than {limits.bytes} bytes")
            total.update(chunk)
            file.write(chunk)
        if expected is not None and size != expected:
            _fail(url, final, f"it is cut short: {size} of {expected} bytes came")
        file.flush()
        file.seek(0)
    except OSError as error:
        file.close()
        raise map_os_error(error, f"saving `{url.shown}`") from error
    except BaseException:
        file.close()
        raise
    return Fetched(
        url=final, file=file, size=size, sha256=total.hexdigest(), mtime_s=_parse_date(response),
        content_type=(response.getheader("Content-Type") or "").partition(";")[0].strip().lower()[:100],
        validators=Validators(_validator(response, "ETag"), _validator(response, "Last-Modified")),
    )  # fmt: skip


def _validator(response: http.client.HTTPResponse, name: str) -> str:
    """A header's value that may be sent back: short, and of visible characters."""
    value = response.getheader(name) or ""
    return value if len(value) <= _VALIDATOR_MAX and value.isascii() and value.isprintable() else ""


def _read(url: Url, final: Url, response: http.client.HTTPResponse, bounds: _Bounds) -> Iterator[bytes]:
    limits = bounds.limits
    since, came = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except (http.client.HTTPException, ValueError, OSError) as error:
            bounds.check()
            _fail(url, final, f"it is cut short: {_describe(error)}", cause=error)
        bounds.check()
        if not chunk:
            return
        came += len(chunk)
        if time.monotonic() - since >= limits.slow_s:
            if came < limits.slow_bytes:
                raise DeadlineError(f"fetching `{url.shown}` is too slow: {came} bytes came in {limits.slow_s:g} s")
            since, came = time.monotonic(), 0
        yield chunk


def _parse_date(response: http.client.HTTPResponse) -> int | None:
    try:
        moment = parsedate_to_datetime(response.getheader("Last-Modified") or "")
        seconds = int(moment.timestamp())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return seconds if 0 <= seconds < 1 << 33 else None


def _describe(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the server does not answer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid: {neutralise(error.verify_message)}"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was closed in the middle"
    if (
        isinstance(error, OSError)
        and not isinstance(error, ssl.SSLError)
        and error.errno is not None
        and error.errno > 0
    ):
        return os.strerror(error.errno) if not isinstance(error, socket.gaierror) else "the host's name is not known"
    if isinstance(error, socket.gaierror):
        return "the host's name is not known"
    return f"the server does not speak HTTP as it should ({type(error).__name__}: {neutralise(str(error))[:200]})"


def _fail(url: Url, here: Url, why: str, cause: BaseException | None = None) -> NoReturn:
    where = "" if here.text == url.text else f" (redirected to `{here.shown}`)"
    error: FirebuildError = ContextError(f"`{url.shown}`{where} cannot be fetched: {why}")
    raise error from cause
