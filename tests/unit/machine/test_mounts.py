"""What `-v` and `--mount` say, and what they may not."""

from __future__ import annotations

import pytest

from firebuild.errors import UsageError
from firebuild.machine.mounts import MountRequest, parse_mount_option, parse_volume_option, plan_mounts


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("data:/var/lib/x", MountRequest("data", "/var/lib/x")),
        ("data:/x/:ro", MountRequest("data", "/x", read_only=True)),
        ("data:/x:ro,nocopy", MountRequest("data", "/x", read_only=True, seed=False)),
        ("./src:/x", MountRequest("./src", "/x", seed=False, is_folder=True)),
        ("/srv:/x:rw", MountRequest("/srv", "/x", seed=False, is_folder=True)),
    ],
)
def test_volume_options(text: str, request_: MountRequest) -> None:
    assert parse_volume_option(text) == request_


@pytest.mark.parametrize(
    "text",
    ["/x", "data", "data:", "data:x", "data:/", "data:/proc", "data:/dev/x", "da ta:/x", ":/x", "data:/x:z", "data:/x:ro,rw",
     "data:/a/../proc"],
)  # fmt: skip
def test_wrong_volume_options(text: str) -> None:
    with pytest.raises(UsageError):
        parse_volume_option(text)


def test_mount_options() -> None:
    assert parse_mount_option("type=volume,src=d,dst=/x") == MountRequest("d", "/x")
    assert parse_mount_option("source=d,target=/x,readonly,volume-nocopy") == MountRequest("d", "/x", True, False)
    assert parse_mount_option("type=volume,src=d,dst=/x,ro=false") == MountRequest("d", "/x")
    assert parse_mount_option("type=bind,src=./d,dst=/x").is_folder
    for text in (
        "type=tmpfs,dst=/x", "type=volume,src=d", "src=d,dst=/x,colour=red", "type=bind,src=d,dst=/x",
        "type=volume,src=./d,dst=/x", "src=d,dst=/x,ro=perhaps", "",
    ):  # fmt: skip
        with pytest.raises(UsageError):
            parse_mount_option(text)


def test_a_folder_is_mounted_before_those_in_it() -> None:
    mounts = [MountRequest("a", "/data/in"), MountRequest("b", "/data"), MountRequest("c", "/data-2")]
    assert [mount.source for mount in plan_mounts(mounts)] == ["b", "a", "c"]
    for twice in (
        [MountRequest("a", "/x"), MountRequest("b", "/x")],
        [MountRequest("a", "/x"), MountRequest("a", "/y")],
    ):
        with pytest.raises(UsageError, match="volume"):
            plan_mounts(twice)
    with pytest.raises(UsageError, match="at most 12"):
        plan_mounts([MountRequest(f"v{number}", f"/v{number}") for number in range(17)])
