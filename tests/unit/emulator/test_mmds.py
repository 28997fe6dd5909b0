"""The metadata store, its tokens and its answers, by the rules of Firecracker's guide."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.emulator.http import Request, Response
from firebuild.emulator.mmds import Mmds, StoreError, imds_text, merge_patch

STORE = {"latest": {"meta-data": {"ami-id": "x", "Users": {"root": {}}, "n": 5, "list": [1, {"a": "b"}], "a/b": "c"}}}


def make(version: str = "V1", **options: Any) -> Mmds:
    mmds = Mmds(51200, "i", **options)
    mmds.version = version
    mmds.put(STORE)
    return mmds


def ask(mmds: Mmds, path: str, method: str = "GET", **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return mmds.answer(Request(method, path, named, b"", True))


def token(mmds: Mmds, ttl: str = "60") -> Response:
    return ask(mmds, "/latest/api/token", "PUT", x_metadata_token_ttl_seconds=ttl)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/", "latest/"),
        ("/latest", "meta-data/"),
        ("//latest//meta-data/", "Users/\na/b\nami-id\nlist\nn"),
        ("/latest/meta-data/ami-id", "x"),
        ("/latest/meta-data/a~1b", "c"),
        ("/latest/meta-data/list/1/a", "b"),
    ],
)
def test_plain_text(path: str, text: str) -> None:
    response = ask(make(), path)
    assert (response.status, response.body.decode(), response.content_type) == (200, text, "text/plain")


def test_json_where_it_is_accepted() -> None:
    response = ask(make(), "/latest/meta-data/list", accept="application/json")
    assert (response.status, response.body, response.content_type) == (200, b'[1,{"a":"b"}]', "application/json")


def test_imds_compatible_answers_are_always_text() -> None:
    mmds = make()
    mmds.imds_compat = True
    assert ask(mmds, "/latest/meta-data/ami-id", accept="application/json").body == b"x"


@pytest.mark.parametrize(
    "path", ["/nope", "/latest/meta-data/ami-id/x", "/latest/meta-data/list/2", "/latest/meta-data/list/01"]
)
def test_what_is_not_there(path: str) -> None:
    response = ask(make(), path)
    assert (response.status, response.body.decode()) == (404, f"Resource not found: {path}.")


def test_a_number_has_no_text() -> None:
    assert ask(make(), "/latest/meta-data/n").status == 501


def test_v2_asks_for_a_token() -> None:
    mmds = make("V2")
    assert ask(mmds, "/latest").status == 401
    assert ask(mmds, "/latest", x_metadata_token="nonsense").status == 401
    fresh = token(mmds)
    assert (fresh.status, fresh.headers) == (200, {"x-metadata-token-ttl-seconds": "60"})
    assert ask(mmds, "/latest", x_metadata_token=fresh.body.decode()).status == 200
    assert ask(mmds, "/latest", x_aws_ec2_metadata_token=fresh.body.decode()).status == 200
    assert mmds.counters == {"rx_count": 5, "rx_no_token": 1, "rx_invalid_token": 1}


def test_a_token_expires_and_is_one_services_own() -> None:
    now = [1000.0]
    mmds = make("V2", clock=lambda: now[0])
    text = token(mmds, "2").body.decode()
    now[0] += 1.5
    assert mmds.is_valid(text)
    now[0] += 0.6
    assert not mmds.is_valid(text)
    assert not make("V2").is_valid(token(make("V2")).body.decode())


@given(st.text(max_size=80))
def test_any_text_is_no_token(text: str) -> None:
    assert not make("V2").is_valid(text)


@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        ("/latest/api/token", {}, 400, "time to live value not found"),
        ("/latest/api/token", {"x_metadata_token_ttl_seconds": "0"}, 400, "between 1 and 21600"),
        ("/latest/api/token", {"x_metadata_token_ttl_seconds": "21601"}, 400, "between 1 and 21600"),
        ("/latest/api/token", {"x_metadata_token_ttl_seconds": "-1"}, 400, "Invalid value"),
        ("/latest/api/token", {"x_metadata_token_ttl_seconds": "9" * 5000}, 400, "Invalid value"),
        (
            "/latest/api/token",
            {"x_metadata_token_ttl_seconds": "6", "x_forwarded_for": "1.2.3.4"},
            400,
            "X-Forwarded-For",
        ),
        ("/latest/other", {"x_metadata_token_ttl_seconds": "6"}, 404, "/latest/other"),
    ],
)
def test_tokens_that_are_refused(path: str, headers: dict[str, str], status: int, words: str) -> None:
    response = ask(make("V2"), path, "PUT", **headers)
    assert response.status == status
    assert words in response.body.decode()


def test_other_methods() -> None:
    response = ask(make(), "/", "DELETE")
    assert (response.status, response.headers) == (405, {"Allow": "GET, PUT"})


def test_the_store_has_a_limit_and_keeps_its_old_value() -> None:
    mmds = Mmds(20, "i")
    with pytest.raises(StoreError, match="not initialized"):
        mmds.patch({"a": "b"})
    mmds.put({"a": "b"})
    for change in (mmds.put, mmds.patch):
        with pytest.raises(StoreError, match="doesn't fit"):
            change({"a": "x" * 20})
    assert mmds.value == {"a": "b"}


def test_merge_patch_examples() -> None:
    """RFC 7396, section 3 and appendix A."""
    target = {"a": "b", "c": {"d": "e", "f": "g"}}
    assert merge_patch(target, {"a": "z", "c": {"f": None}}) == {"a": "z", "c": {"d": "e"}}
    assert merge_patch({"a": [1]}, {"a": {"b": {"c": None}}}) == {"a": {"b": {}}}
    assert merge_patch({"a": "b"}, ["c"]) == ["c"]
    assert target == {"a": "b", "c": {"d": "e", "f": "g"}}


JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(JSON, JSON)
def test_a_patch_applied_twice_changes_nothing_more(value: Any, patch: Any) -> None:
    once = merge_patch(value, patch)
    assert merge_patch(once, patch) == once


@given(JSON, st.text(max_size=20))
def test_every_path_has_an_answer(value: Any, path: str) -> None:
    mmds = make()
    mmds.put(value)
    assert ask(mmds, "/" + path).status in (200, 404, 501)
    assert imds_text(value) is None or isinstance(imds_text(value), str)
