"""The files in which users of skopeo, podman and Docker keep mirrors and credentials count for firebuild too."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firebuild.errors import RegistryError
from firebuild.images import transfer
from firebuild.images.ocilayout import MovedImage
from firebuild.images.skopeo import Access
from firebuild.images.transfer import Place
from firebuild.names import parse_reference
from firebuild.store.blobs import BlobStore, Descriptor
from tests.support.registry import assert_nothing_staged, make_blobs, make_image, password_auth, start_registry

USER = {"auth": base64.b64encode(b"user:secret").decode()}
HELPER = """#!/bin/sh
read -r server
echo "$1 $server $HELPERS_OWN_WORD" >>{log}
[ "$server" = "{server}" ] && printf '{{"ServerURL": "%s", "Username": "user", "Secret": "secret"}}' "$server"
"""


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return make_blobs(tmp_path / "store")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own: nothing of this host's root counts."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def pull(name: str, blobs: BlobStore) -> MovedImage[Descriptor]:
    return transfer.pull(parse_reference(name), blobs, access=Access(retries=0, timeout_s=60))


def test_mirrors_and_other_locations_of_registries_conf(blobs: BlobStore, home: Path, tmp_path: Path) -> None:
    image = make_image(blobs, tmp_path, "made:1")
    with start_registry(tmp_path / "registry") as port:
        place = Place("docker", parse_reference(f"127.0.0.1:{port}/mirror/team/app:1"))
        transfer.push(image.manifest_digest, blobs, place, compression="keep")
        write(
            home / ".config/containers/registries.conf",
            '[[registry]]\nlocation = "registry.invalid"\n'
            f'[[registry.mirror]]\nlocation = "127.0.0.1:{port}/mirror"\ninsecure = true\n'
            '[[registry]]\nprefix = "moved.invalid/old"\n'
            f'location = "127.0.0.1:{port}/mirror/team"\ninsecure = true\n'
            '[[registry]]\nlocation = "blocked.invalid"\nblocked = true\n',
        )
        other = make_blobs(tmp_path / "other")
        for name in ("registry.invalid/team/app:1", "moved.invalid/old/app:1"):
            assert pull(name, other).manifest_digest == image.manifest_digest
        # What the mirror lacks is asked of the registry itself, and that is what the error speaks of.
        with pytest.raises(RegistryError, match=r"registry\.invalid/team/none:1` cannot be reached"):
            pull("registry.invalid/team/none:1", other)
        with pytest.raises(RegistryError, match=r"blocked\.invalid/app:1") as caught:
            pull("blocked.invalid/app:1", other)
        assert "blocked" in (caught.value.details or "")
    assert_nothing_staged(other)


def auth_file(home: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    write(home / "run/containers/auth.json", json.dumps({"auths": {server: USER}}))


def docker_config(home: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".docker/config.json", json.dumps({"auths": {server: USER}}))


def helper(home: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of the user's, on the user's own PATH, that looks into the user's environment."""
    write(home / "bin/docker-credential-test", HELPER.format(log=home / "log", server=server), mode=0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HELPERS_OWN_WORD", "spoken")
    write(home / ".config/containers/auth.json", json.dumps({"credHelpers": {server: "test"}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / ".config/containers/auth.json"))


def test_credentials_of_the_users_own_files(blobs: BlobStore, home: Path, tmp_path: Path) -> None:
    """Each alone lets in: podman's file, Docker's, and a helper's word."""
    ways: list[Callable[[Path, str, pytest.MonkeyPatch], None]] = [auth_file, docker_config, helper]
    image = make_image(blobs, tmp_path, "made:1")
    with start_registry(tmp_path / "registry", password_auth(tmp_path)) as port:
        server = f"127.0.0.1:{port}"
        place = Place("docker", parse_reference(f"{server}/team/app:1"))
        with pytest.raises(RegistryError, match="refuses access"):
            transfer.push(image.manifest_digest, blobs, place, compression="keep", access=Access(retries=0))
        for way in ways:
            own = home / way.__name__
            own.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HOME", str(own))
                way(own, server, patch)
                if way is ways[0]:
                    transfer.push(image.manifest_digest, blobs, place, compression="keep")
                other = make_blobs(tmp_path / way.__name__)
                assert pull(str(place), other).manifest_digest == image.manifest_digest, way
        assert set((home / "helper/log").read_text().splitlines()) == {f"get {server} spoken"}
