"""Every field of every body with bad values: refused with the same words, in any state, and nothing is changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.conftest import ensure_booted
from tests.conformance.fields import REQUESTS, Body, Field, Request, list_bad_values
from tests.conformance.vmm import DESERIALIZING, Vmm
from tests.support.openapi import load_document


def refuse_all(vmm: Vmm, requests: list[Request]) -> None:
    before = vmm.config()
    wrong = []
    for request in requests:
        for bad in list_bad_values(request):
            said = vmm.fault(request.method, request.path, bad.body)
            if said != f"{DESERIALIZING}{bad.words}.":
                wrong.append(f"{request.method} {request.path} {bad.about}: {said}; expected: {bad.words}")
    assert not wrong, "\n".join(wrong)
    assert vmm.config() == before


def test_before_boot(vmm: Vmm) -> None:
    assert sum(1 for request in REQUESTS for _ in list_bad_values(request)) > 900
    refuse_all(vmm, REQUESTS)


def test_after_boot(vmm: Vmm) -> None:
    """What cannot be read is refused as such before it is looked at when the request may come."""
    ensure_booted(vmm)
    refuse_all(vmm, REQUESTS)


def test_what_is_no_object(vmm: Vmm) -> None:
    for request in REQUESTS:
        name = request.body.name
        for value, called in ((5, "integer `5`"), ("x", 'string "x"'), (None, "null")):
            said = vmm.fault(request.method, request.path, value if value is not None else b"null")
            assert said == f"{DESERIALIZING}invalid type: {called}, expected struct {name}.", (request.path, said)
        for text in (b"{", b"]", b"{} x", b"{'a': 1}", b"\xff", b'{"a": NaN}', b"[" * 1000, b'"\x00"'):
            assert vmm.fault(request.method, request.path, text).startswith(DESERIALIZING), (request.path, text)


def test_a_field_that_stands_twice(vmm: Vmm) -> None:
    said = vmm.fault("PUT", "/boot-source", b'{"kernel_image_path": "a", "kernel_image_path": "b"}')
    assert said == f"{DESERIALIZING}duplicate field `kernel_image_path`."


def test_bodies_without_a_value_are_no_requests(vmm: Vmm) -> None:
    for request in REQUESTS:
        if request.path != "/balloon/hinting/start":
            assert vmm.fault(request.method, request.path) == f"Empty {request.method} request."


def test_the_table_says_what_the_document_says() -> None:
    document = load_document()
    if document is None:
        pytest.skip("Firecracker's OpenAPI document is absent")
    schemas = _schemas()
    for request in REQUESTS:
        schema = _body_schema(request, schemas)
        check_body(request.body, schema, schemas, f"{request.method} {request.path}")


def _schemas() -> dict[str, Any]:
    import yaml

    from tests.support.openapi import find_document

    path = find_document()
    assert path is not None
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def _body_schema(request: Request, document: dict[str, Any]) -> dict[str, Any]:
    pattern = {"d1": "{drive_id}", "e1": "{iface_id}", "p1": "{id}"}
    path = "/".join(pattern.get(part, part) for part in request.path.split("/"))
    [body] = [one for one in document["paths"][path][request.method.lower()]["parameters"] if one["in"] == "body"]
    return _resolve(body["schema"], document)


def _resolve(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = document["definitions"][schema["$ref"].rsplit("/", 1)[1]]
        return found
    return schema


def check_body(body: Body, schema: dict[str, Any], document: dict[str, Any], about: str) -> None:
    assert set(body.fields) == set(schema["properties"]), about
    for name, field in body.fields.items():
        check_field(field, _resolve(schema["properties"][name], document), document, f"{about} {name}")


def check_field(field: Field, schema: dict[str, Any], document: dict[str, Any], about: str) -> None:
    kinds = {"bool": "boolean", "strings": "array", "object": "object", "string": "string", "enum": "string"}
    assert schema.get("type", "string") == kinds.get(field.kind, "integer"), (about, json.dumps(schema))
    if field.variants and "enum" in schema:
        assert set(field.variants) >= set(schema["enum"]) - {"V1N1"}, about
    if field.body is not None:
        check_body(field.body, schema, document, about)
