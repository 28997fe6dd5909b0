"""`firecracker install`: releases of a local server, laid out as the official ones are, good and bad."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.web import WebServer, redirect_to, serve_web

MACHINE = platform.machine()


@pytest.fixture
def server() -> Iterator[WebServer]:
    with serve_web() as started:
        yield started


@pytest.fixture
def cli(firebuild_cli: Cli, server: WebServer) -> Cli:
    firebuild_cli.ok("profile", "create", "--profile", "default", "--firecracker-releases", f"{server.url}/releases")
    return firebuild_cli


def make_program(folder: Path, name: str, version: str) -> bytes:
    """A program that says its version as Firecracker and its jailer do."""
    source, program = folder / f"{name}.c", folder / f"{name}-{version}"
    source.write_text(f'#include <stdio.h>\nint main(void) {{ puts("{name.capitalize()} v{version}"); return 0; }}\n')
    subprocess.run(["gcc", "-o", program, source], check=True)
    return program.read_bytes()


def make_archive(entries: dict[str, bytes], *, link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/bin/true"
            archive.addfile(info)
    return buffer.getvalue()


def names(version: str) -> tuple[str, str]:
    stem = f"release-v{version}-{MACHINE}"
    return f"{stem}/firecracker-v{version}-{MACHINE}", f"{stem}/jailer-v{version}-{MACHINE}"


def serve(server: WebServer, version: str, archive: bytes, *, checksum: str | None = None) -> None:
    name = f"firecracker-v{version}-{MACHINE}.tgz"
    path = f"/releases/download/v{version}/{name}"
    server.pages[path] = archive
    server.pages[f"{path}.sha256.txt"] = f"{checksum or hashlib.sha256(archive).hexdigest()}  {name}\n".encode()


def serve_good(server: WebServer, folder: Path, version: str) -> None:
    firecracker, jailer = names(version)
    entries = {
        firecracker: make_program(folder, "firecracker", version),
        "../../escaped": b"x",
        f"{firecracker}.debug": b"symbols",
        jailer: make_program(folder, "jailer", version),
    }
    serve(server, version, make_archive(entries))


def test_the_newest_and_a_named_version(cli: Cli, server: WebServer, tmp_path: Path) -> None:
    for version in ("1.12.1", "1.16.1"):
        serve_good(server, tmp_path, version)
    server.pages["/releases/latest"] = redirect_to(f"{server.url}/releases/tag/v1.16.1")
    newest = cli.run("firecracker", "install")
    firecracker, jailer = map(Path, newest.stdout.split())
    assert newest.status == 0 and f"--binary-firecracker {firecracker}" in newest.stderr, newest.describe()
    assert subprocess.check_output([firecracker], text=True) == "Firecracker v1.16.1\n"
    assert subprocess.check_output([jailer], text=True) == "Jailer v1.16.1\n"
    assert sorted(os.listdir(firecracker.parent)) == ["firecracker", "jailer"]
    assert not list(tmp_path.glob("**/escaped")) and not list(cli.state.glob("**/escaped"))

    older = cli.ok("firecracker", "install", "--version", "v1.12.1").split()
    asked = len(server.seen)
    assert cli.ok("firecracker", "install", "--version", "1.12.1").split() == older
    assert len(server.seen) == asked  # what is there is not fetched again
    listed = [line.split()[0] for line in cli.ok("firecracker", "ls").splitlines()[1:]]
    assert listed == ["1.12.1", "1.16.1"]
    lines = map(json.loads, cli.ok("firecracker", "ls", "--format", "json").splitlines())
    lacks = {one["version"]: one["lacks"] for one in lines}
    assert "pci" in lacks["1.12.1"] and lacks["1.16.1"] == ["bzimage", "transparent-huge-pages"]

    cli.ok("profile", "create", "--profile", "default", "--binary-firecracker", firecracker)
    assert "`default` runs" in cli.refused("firecracker", "rm", "1.16.1").stderr
    cli.ok("profile", "create", "--profile", "default", "--binary-firecracker", "")
    cli.ok("firecracker", "rm", "1.12.1", "1.16.1")
    assert cli.ok("firecracker", "ls", "-q") == ""
    assert "is not installed" in cli.refused("firecracker", "rm", "1.12.1").stderr


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.11.0", "too old"),
        ("newest", "is not a version"),
        ("1.13.0", "answered 404"),
        ("../1.13.0", "is not a version"),
    ],
)
def test_versions_that_cannot_be(cli: Cli, version: str, expected: str) -> None:
    assert expected in cli.refused("firecracker", "install", "--version", version).stderr


def test_no_newest_version(cli: Cli, server: WebServer) -> None:
    server.pages["/releases/latest"] = redirect_to(f"{server.url}/login")
    assert "names no version of Firecracker" in cli.refused("firecracker", "install").stderr


def test_bad_releases(cli: Cli, server: WebServer, tmp_path: Path) -> None:
    """What is wrong is told, and nothing of it is kept."""
    firecracker, jailer = names("1.14.0")
    good = {
        firecracker: make_program(tmp_path, "firecracker", "1.14.0"),
        jailer: make_program(tmp_path, "jailer", "1.14.0"),
    }
    foreign = bytearray(good[firecracker])
    foreign[18:20] = b"\xf3\x00"  # RISC-V
    other = make_program(tmp_path, "jailer", "1.13.0")
    cases = {
        "is not what its checksum says": (make_archive(good), "0" * 64),
        "cannot be read": (make_archive(good)[:-4000], None),
        "does not hold": (make_archive({firecracker: good[firecracker]}), None),
        "is not a file of a sane size": (make_archive({firecracker: good[firecracker]}, link=jailer), None),
        "for another processor": (make_archive({**good, firecracker: bytes(foreign)}), None),
        "is not a program": (make_archive({**good, jailer: b"#!/bin/sh\necho Jailer v1.14.0\n"}), None),
        "holds a jailer of version 1.13.0": (make_archive({**good, jailer: other}), None),
        "does not say `Jailer v…`": (make_archive({**good, jailer: good[firecracker]}), None),
    }
    for expected, (archive, checksum) in cases.items():
        serve(server, "1.14.0", archive, checksum=checksum)
        result = cli.refused("firecracker", "install", "--version", "1.14.0")
        assert expected in result.stderr, result.describe()
        assert list((cli.state / "firecracker").iterdir()) == []
    server.pages[next(path for path in server.pages if path.endswith(".sha256.txt"))] = b"nothing\n"
    assert "has no SHA-256" in cli.refused("firecracker", "install", "--version", "1.14.0").stderr


def test_what_a_killed_installation_left_is_swept(cli: Cli, server: WebServer, tmp_path: Path) -> None:
    serve_good(server, tmp_path, "1.15.0")
    left = cli.state / "firecracker" / ".stage-0123"
    left.mkdir(parents=True)
    (left / "firecracker").write_bytes(b"half")
    assert cli.ok("firecracker", "ls", "-q") == ""
    cli.ok("firecracker", "install", "--version", "1.15.0")
    assert [path.name for path in (cli.state / "firecracker").iterdir()] == ["1.15.0"]
