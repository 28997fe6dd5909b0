"""The HTTP parser: whole requests out of any pieces, and a refusal for all that is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.emulator.http import HttpError, Request, RequestParser, Response


def parse(data: bytes, *, limit: int = 100) -> list[Request]:
    parser = RequestParser(limit)
    parser.feed(data)
    found = []
    while request := parser.next():
        found.append(request)
    return found


def test_requests_one_after_the_other() -> None:
    first, second = parse(
        b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-Y:  z \r\n\r\nabcGET /b HTTP/1.1\r\nConnection: close\r\n\r\n"
    )
    assert (first.method, first.path, first.body, first.keep_alive) == ("PUT", "/a", b"abc", True)
    assert first.headers["x-y"] == "z"
    assert (second.method, second.path, second.body, second.keep_alive) == ("GET", "/b", b"", False)


def test_http_10_closes_unless_asked() -> None:
    assert not parse(b"GET / HTTP/1.0\r\n\r\n")[0].keep_alive
    assert parse(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")[0].keep_alive


def test_a_target_in_absolute_form() -> None:
    assert parse(b"GET http://localhost/vm/config HTTP/1.1\r\n\r\n")[0].path == "/vm/config"


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET relative HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nName : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: \xff\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 101\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"A" * 20000,
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(HttpError):
        parse(data)


def test_continue_is_asked_for_once() -> None:
    parser = RequestParser(100)
    parser.feed(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert parser.next() is None
    assert parser.wants_continue
    assert not parser.wants_continue
    parser.feed(b"ab")
    request = parser.next()
    assert request is not None and request.body == b"ab"


@given(st.lists(st.integers(0, 200), max_size=8))
def test_pieces_make_no_difference(cuts: list[int]) -> None:
    data = b"PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET /y HTTP/1.1\r\nA: b\r\n\r\n"
    parser, found, last = RequestParser(100), [], 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        parser.feed(data[last:cut])
        last = cut
        while request := parser.next():
            found.append(request)
    assert found == parse(data)


@given(st.binary(max_size=400))
def test_any_bytes_are_requests_or_refused(data: bytes) -> None:
    try:
        parse(data)
    except HttpError:
        return


def test_answers() -> None:
    assert (
        Response(204).render("S", keep_alive=True)
        == b"HTTP/1.1 204 No Content\r\nServer: S\r\nConnection: keep-alive\r\n\r\n"
    )
    shown = Response(200, b"{}", headers={"X": "y"}).render("S", keep_alive=False)
    assert shown.endswith(b"X: y\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    assert b"Connection: close\r\n" in shown
