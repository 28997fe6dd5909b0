"""The file of --metadata-file: what the image was made of and how, and nothing secret."""

from __future__ import annotations

import json
from pathlib import Path

from firebuild.build.materials import Materials
from firebuild.engine.builds import RootfsRequest
from firebuild.engine.report import make_build_metadata
from firebuild.names import parse_reference
from tests.unit.build.fakes import Workshop


def test_a_build_s_materials_and_how_it_was_asked_for(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    base = workshop.add_image("debian:12", {"bin/sh": b"shell"})
    materials = Materials()
    for _ in range(2):
        materials.note_commit("https://git.example/app.git#main", "a" * 40)
    materials.note_commit("https://git.example/new.git", "b" * 64)
    materials.note_file("https://files.example/x.tar", "c" * 64)
    built, _ = workshop.build("FROM debian:12\nRUN one\n", materials=materials)
    request = RootfsRequest(
        dockerfile=None,
        context="https://user:word@git.example/app.git#main",
        tags=[],
        build_args={
            "MODE": "debug", "HTTP_PROXY": "http://word", "API_TOKEN": "word", "FROM": "https://me:word@mirror.example/",
        },
        labels={"a": "b"},
        target="one",
        build_contexts=["other=https://user:word@git.example/other.git"],
    )  # fmt: skip
    text = make_build_metadata(built, [parse_reference("app:1")], request).decode()
    workshop.database.close()
    assert "word" not in text
    provenance = json.loads(text)["buildx.build.provenance"]
    assert provenance["materials"] == [
        {"uri": "docker-image://docker.io/library/debian:12", "digest": {"sha256": base.manifest_digest[7:]}},
        {"uri": "https://files.example/x.tar", "digest": {"sha256": "c" * 64}},
        {"uri": "https://git.example/app.git#main", "digest": {"sha1": "a" * 40}},
        {"uri": "https://git.example/new.git", "digest": {"sha256": "b" * 64}},
    ]
    invocation = provenance["invocation"]
    assert invocation["environment"] == {"platform": "linux/amd64"}
    assert invocation["parameters"]["args"] == {
        "build-arg:FROM": "https://mirror.example/",
        "build-arg:MODE": "debug",
        "context:other": "https://git.example/other.git",
        "label:a": "b",
        "target": "one",
    }
    assert invocation["configSource"] == {"context": "https://git.example/app.git#main"}


def test_a_dockerfile_s_text_and_no_dockerfile(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    workshop.add_image("debian:12", {"bin/sh": b"shell"})
    built, _ = workshop.build("FROM debian:12\n")
    workshop.database.close()
    request = RootfsRequest(dockerfile="FROM debian:12", context=None, tags=[])
    for given, expected in ((request, {}), (None, None)):
        document = json.loads(make_build_metadata(built, [], given))
        assert document["buildx.build.provenance"]["invocation"].get("configSource") == expected
        assert document["containerimage.config.digest"] == built.image.id
