"""`firebuild cache` with the disks of cache mounts, and with steps while somebody builds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from firebuild.store.caches import CacheWish
from tests.support.cli import Cli
from tests.unit.build.fakes import Workshop

ONE, TWO = "a" * 64, "b" * 64


@pytest.fixture
def engine(firebuild_cli: Cli) -> Iterator[Engine]:
    """An engine of the program's own state: what holds it here is another process to the program."""
    settings = load_settings(
        {"FIREBUILD_STATE": str(firebuild_cli.state), "FIREBUILD_RUN": str(firebuild_cli.run_folder)}
    )[0]
    with Engine(settings) as opened:
        yield opened


def listed(cli: Cli, *filters: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli.ok("cache", "ls", "--format", "json", *filters).splitlines()]


def test_mounts_are_listed_removed_and_pruned_but_not_while_a_build_has_them(
    firebuild_cli: Cli, engine: Engine
) -> None:
    cli = firebuild_cli
    with engine.caches.attach([CacheWish(ONE, "/root/.cache"), CacheWish(TWO, "apt")]):
        pass
    mounts = {entry["ID"]: entry for entry in listed(cli, "--filter", "kind=mount")}
    assert {key: entry["Description"] for key, entry in mounts.items()} == {ONE: "/root/.cache", TWO: "apt"}
    assert all(entry["Size"] > 0 for entry in mounts.values())

    with engine.caches.attach([CacheWish(ONE, "/root/.cache")]):
        refused = cli.refused("cache", "rm", ONE[:12])
        assert "`/root/.cache` is in use" in refused.stderr and "hint: " in refused.stderr
        pruned = cli.run("cache", "prune", "--force")
        assert pruned.status == 0 and "`/root/.cache` stays: a build has it" in pruned.stderr, pruned.describe()
        assert TWO[:12] in pruned.stdout and ONE[:12] not in pruned.stdout
        assert [entry["ID"] for entry in listed(cli)] == [ONE]
    assert cli.ok("cache", "rm", ONE[:12]) == f"{ONE[:12]}\n"
    assert listed(cli) == [] and not list(engine.layout.caches.iterdir())
    assert "the build cache has no" in cli.refused("cache", "rm", ONE).stderr


def test_steps_stay_while_somebody_builds(firebuild_cli: Cli, engine: Engine, tmp_path: Path) -> None:
    cli = firebuild_cli
    (tmp_path / "shop").mkdir()
    shop = Workshop(tmp_path / "shop")
    shop.database.close()
    shop.blobs, shop.images, shop.database = engine.blobs, engine.images, engine.database
    shop.add_image("debian:12", {"bin/sh": b"shell"})
    shop.build("FROM debian:12\nRUN one\n", tag=None)
    with engine.caches.attach([CacheWish(ONE, "/root/.cache")]):
        pass
    [step] = [entry["ID"] for entry in listed(cli, "--filter", "kind=step")]
    with engine.use_store():
        for command in (("cache", "rm", step[:12]), ("cache", "prune", "--force")):
            refused = cli.refused(*command)
            assert "the store is at work" in refused.stderr and "try again" in refused.stderr
        assert {entry["ID"] for entry in listed(cli)} == {step, ONE}, "all or nothing"
        # What steps do not need may go.
        cli.ok("cache", "prune", "--force", "--filter", "kind=mount")
        assert step[:12] in cli.ok("cache", "prune", "--dry-run")
    assert cli.ok("cache", "rm", step[:12]) == f"{step[:12]}\n"
    assert listed(cli) == []
    cli.ok("fsck")
