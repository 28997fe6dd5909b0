"""A client of Firecracker's API over a Unix socket that checks every exchange against Firecracker's own OpenAPI document.

The document is named by FIREBUILD_OPENAPI, or lies at ../shared/firecracker/firecracker.yaml beside the checkout. Where it
is absent the exchanges go unchecked, and a warning says so once.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import re
import socket
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from openapi_core import OpenAPI
from openapi_core.datatypes import RequestParameters

ROOT = Path(__file__).parents[2]
JSON = "application/json"
HOST = "http://localhost"


def find_document() -> Path | None:
    """Where the OpenAPI document lies, or None."""
    named = os.environ.get("FIREBUILD_OPENAPI")
    path = Path(named) if named else ROOT.parent / "shared" / "firecracker" / "firecracker.yaml"
    return path if path.is_file() else None


@dataclass(frozen=True)
class Document:
    """The document as a validator, and its paths."""

    api: OpenAPI
    paths: dict[str, Any]

    def find_operation(self, method: str, path: str) -> dict[str, Any] | None:
        """What the document says of a method on a path, or None."""
        for pattern, item in self.paths.items():
            if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", pattern), path):
                found: dict[str, Any] | None = item.get(method)
                return found
        return None


@functools.cache
def load_document() -> Document | None:
    """The document, or None where it is absent."""
    path = find_document()
    if path is None:
        warnings.warn("Firecracker's OpenAPI document is absent: exchanges are not checked", stacklevel=2)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = to_openapi3(yaml.safe_load(path.read_text()))
        return Document(OpenAPI.from_dict(converted), converted["paths"])


def to_openapi3(document: dict[str, Any]) -> dict[str, Any]:
    """The Swagger 2.0 document as OpenAPI 3.0, which is what openapi-core reads; only what this document uses."""
    paths = {
        path: {method: _operation(operation) for method, operation in item.items()}
        for path, item in document["paths"].items()
    }
    info = {"title": document["info"]["title"], "version": document["info"]["version"]}
    converted = {
        "openapi": "3.0.3", "info": info, "servers": [{"url": HOST}], "paths": paths,
        "components": {"schemas": document["definitions"]},
    }  # fmt: skip
    return json.loads(json.dumps(converted).replace("#/definitions/", "#/components/schemas/"))  # type: ignore[no-any-return]


def _operation(operation: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"operationId": operation["operationId"], "responses": {}}
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "body":
            content = {JSON: {"schema": parameter["schema"]}}
            result["requestBody"] = {"content": content, "required": parameter.get("required", False)}
        else:
            schema = {"type": parameter["type"]}
            result.setdefault("parameters", []).append(
                {"name": parameter["name"], "in": parameter["in"], "required": True, "schema": schema}
            )
    for status, response in operation["responses"].items():
        entry: dict[str, Any] = {"description": response["description"]}
        if "schema" in response:
            entry["content"] = {JSON: {"schema": response["schema"]}}
        result["responses"][str(status)] = entry
    return result


@dataclass
class Exchange:
    """One request, in the shape that openapi-core asks for."""

    method: str
    path: str
    body: bytes | None
    host_url: str = HOST
    content_type: str = JSON
    parameters: RequestParameters = field(default_factory=RequestParameters)


@dataclass(frozen=True)
class Answer:
    """One answer, likewise. `json` is its body, None without one."""

    status_code: int
    data: bytes | None
    content_type: str
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.data) if self.data else None


class ApiClient:
    """Sends requests, each over a new connection, and checks them and their answers, unless they go `unchecked`."""

    def __init__(self, path: Path, *, timeout_s: float = 120.0, unchecked: bool = False) -> None:
        self.path = path
        self.unchecked = unchecked
        self.timeout_s = timeout_s

    def get(self, path: str) -> Any:
        """GET that must succeed; the decoded body."""
        answer = self.request("GET", path)
        assert answer.status_code == 200, answer
        return answer.json

    def put(self, path: str, body: Any) -> None:
        """PUT that must succeed."""
        answer = self.request("PUT", path, body)
        assert answer.status_code == 204, answer

    def patch(self, path: str, body: Any) -> None:
        """PATCH that must succeed."""
        answer = self.request("PATCH", path, body)
        assert answer.status_code == 204, answer

    def fault(self, method: str, path: str, body: Any = None, *, status: int = 400) -> str:
        """A request that must be refused; its fault message. The request itself may be wrong by intention."""
        answer = self.request(method, path, body, check_request=False)
        assert answer.status_code == status, answer
        assert set(answer.json) == {"fault_message"}, answer
        return str(answer.json["fault_message"])

    def request(self, method: str, path: str, body: Any = None, *, check_request: bool = True) -> Answer:
        """One exchange. `body`: bytes as they are, anything else as JSON, None for none."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("localhost", timeout=self.timeout_s)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(self.timeout_s)
            connection.sock.connect(str(self.path))
            connection.request(method, path, data, {"Content-Type": JSON} if data is not None else {})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, response.read() or None, headers.get("content-type", ""), headers)
        finally:
            connection.close()
        if not self.unchecked:
            check_exchange(Exchange(method.lower(), path, data), answer, check_request=check_request)
        return answer


def check_exchange(request: Exchange, answer: Answer, *, check_request: bool = True) -> None:
    """Raises what openapi-core raises. A path or method that the document does not have must be answered with a fault."""
    document = load_document()
    if document is None:
        return
    operation = document.find_operation(request.method, request.path)
    if operation is None:
        assert answer.status_code == 400 and set(answer.json) == {"fault_message"}, answer
        return
    if check_request:
        document.api.validate_request(request)
    if answer.status_code == 204:
        # openapi-core asks for a content type where there is no content.
        assert answer.data is None and "204" in operation["responses"]
        return
    document.api.validate_response(request, answer)
