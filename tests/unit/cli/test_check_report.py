"""What `rootfs --check` shows."""

from __future__ import annotations

import json

import msgspec

from firebuild.build.check import CheckReport, check_image
from firebuild.build.services import BuildRequest
from firebuild.cli.renderers.check import make_check_document, render_check
from firebuild.errors import NotFoundError
from firebuild.names import Reference
from firebuild.store.images import Image

ONE = "FROM scratch\nENV a b\nCOPY . .\n"


def check(text: str, name: str = "Dockerfile") -> CheckReport:
    def find_image(reference: Reference) -> Image:
        raise NotFoundError(f"there is no {reference}")

    return check_image(BuildRequest(dockerfile=text.encode(), name=name), find_image, lambda: None)


def test_one_warning() -> None:
    assert render_check(check(ONE)) == (
        "Check complete, 1 warning has been found!\n"
        "\n"
        "WARNING: LegacyKeyValueFormat - docs/reference/lint-rules.md#legacykeyvalueformat\n"
        "`ENV name value` is the old form; write `ENV name=value`\n"
        "Dockerfile:2\n"
        "--------------------\n"
        "1 |     FROM scratch\n"
        "2 | >>> ENV a b\n"
        "3 |     COPY . .\n"
        "--------------------\n"
    )


def test_the_first_line_tells_how_it_ended() -> None:
    assert render_check(check("FROM scratch\n")) == "Check complete, no warnings found.\n"
    assert render_check(check("FROM scratch as a\nENV a b\n")).startswith(
        "Check complete, 2 warnings have been found!\n"
    )
    assert render_check(check("NONSENSE\n")) == "Check failed.\n"


def test_a_hostile_file_does_not_reach_the_terminal() -> None:
    text = render_check(check("FROM scratch\nENV a\x1b[31m b\x07\nWORKDIR \x1b[2J\n", name="D\x1b[2J"))
    assert "LegacyKeyValueFormat" in text
    assert all(line.isprintable() for line in text.splitlines())


def test_the_document_has_the_keys_of_buildkit() -> None:
    document = make_check_document(check(ONE))
    assert json.loads(msgspec.json.encode(document)) == document
    assert document == {
        "warnings": [
            {
                "ruleName": "LegacyKeyValueFormat",
                "description": "ENV and LABEL are written with `=`.",
                "url": "docs/reference/lint-rules.md#legacykeyvalueformat",
                "detail": "`ENV name value` is the old form; write `ENV name=value`",
                "location": {"ranges": [{"start": {"line": 2, "character": 1}, "end": {"line": 2, "character": 8}}]},
            }
        ],
        "sources": [{"filename": "Dockerfile"}],
        "notices": [],
    }


def test_the_document_holds_the_error_of_the_build() -> None:
    error = make_check_document(check("FROM scratch\nNONSENSE\n"))["buildError"]
    assert error["code"] == "dockerfile" and error["message"].startswith("Dockerfile:2:1: ")
    assert error["location"]["ranges"][0]["start"]["line"] == 2
    missing = make_check_document(check("FROM nowhere\n"))["buildError"]
    assert missing["code"] == "not-found" and "location" not in missing
