"""`--format '{{…}}'`: the part of Go's templates that docker's users write."""

from __future__ import annotations

import pytest

from firebuild.cli.template import check_template, is_template, render_template
from firebuild.errors import UsageError

DOCUMENT = {"Id": "sha256:1", "Tags": ["a:1", "b:2"], "Size": 3, "Booted": False, "None": None, "Of": {"b": 2, "a": 1}}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Id}}", "sha256:1"),
        ("{{ .Id }}\\t{{.Size}}\\n", "sha256:1\t3\n"),
        ("{{json .Tags}}", '["a:1","b:2"]'),
        ("{{.Tags}} {{len .Tags}}", "[a:1 b:2] 2"),
        ("{{.Booted}} {{.None}} {{.Of}} {{.Of.b}}", "false <no value> map[a:1 b:2] 2"),
        ("{{upper .Id}} {{lower .Id}}", "SHA256:1 sha256:1"),
        ("plain", "plain"),
    ],
)
def test_what_is_understood(template: str, text: str) -> None:
    assert render_template(template, DOCUMENT) == text
    assert is_template(template) == ("{{" in template)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{.Idd}}", ["Idd"]),
        ("{{.Id.Deeper}}", ["Deeper"]),
        ("{{range .Tags}}x{{end}}", ["range"]),
        ("{{len .Size}}", ["length"]),
        ("{{.Id", ["close"]),
        ("{{}}", ["{{}}"]),
    ],
)
def test_what_is_not(template: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        render_template(template, DOCUMENT)
    assert all(word in caught.value.message for word in words)


def test_a_field_that_is_misspelt_is_found_before_anything_runs() -> None:
    check_template("{{.Id}} {{json .}}", DOCUMENT)
    with pytest.raises(UsageError) as caught:
        check_template("{{.Sise}}", DOCUMENT)
    assert caught.value.hint == "did you mean `.Size`?"
