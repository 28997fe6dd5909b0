"""The views are looked at when something has changed of which they are made, and not for each command."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.config.settings import load_settings
from firebuild.engine import views
from firebuild.engine.core import Engine
from firebuild.names import parse_reference
from firebuild.store.facts import Facts, FactStore
from firebuild.store.images import Image
from tests.support.store_driver import make_image


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # As if all that a test changes had been so for long.
    monkeypatch.setattr(views, "_TICK_NS", -(10**12))
    return tmp_path


def open_engine(folder: Path, **variables: str) -> Engine:
    values = {"FIREBUILD_STATE": str(folder / "state"), "FIREBUILD_RUN": str(folder / "run"), **variables}
    return Engine(load_settings(values)[0])


def settle(folder: Path) -> Image:
    """An image whose view is in step, which has been found to be so."""
    with open_engine(folder) as engine:
        image = make_image(engine, "app:1", "one")
        assert views.mend_views(engine) == [] and views.mend_views(engine) == []
        return image


def test_an_unchanged_store_is_not_looked_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(folder)
    monkeypatch.setattr(views, "sync_views", lambda engine: pytest.fail("all views were read"))
    with open_engine(folder) as engine:
        assert views.mend_views(engine) == []


def test_what_a_killed_command_did_not_show_is_shown(folder: Path) -> None:
    image = settle(folder)
    with open_engine(folder) as engine:
        engine.images._on_change = lambda names: None
        engine.images.tag(parse_reference("other:1"), image.manifest_digest)
    with open_engine(folder) as engine:
        assert views.mend_views(engine) == ["the view of other:1: renewed"]
        FactStore(engine.database).save(image.manifest_digest, Facts(kind="baseos"))
        assert len(views.mend_views(engine)) == 2
        assert views.mend_views(engine) == []


def test_a_new_disk_or_another_setting_is_a_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(folder)
    looks: list[Engine] = []

    def look(engine: Engine) -> list[str]:
        looks.append(engine)
        return []

    monkeypatch.setattr(views, "sync_views", look)
    with open_engine(folder) as engine:
        (engine.layout.disks / "new").mkdir()
        views.mend_views(engine)
        views.mend_views(engine)
        assert len(looks) == 1
    with open_engine(folder, FIREBUILD_ROOT_DISK="1m") as engine:
        views.mend_views(engine)
        assert len(looks) == 2


def test_a_change_within_a_tick_of_the_clock_is_not_missed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_TICK_NS", 10**12)
    settle(folder)
    with open_engine(folder) as engine:
        assert not engine.layout.view_stamp.exists()


def test_facts_that_are_the_same_are_no_change(folder: Path) -> None:
    image = settle(folder)
    with open_engine(folder) as engine:
        facts = FactStore(engine.database)
        assert facts.save(image.manifest_digest, Facts(kind="baseos"))
        before = facts.count_changes()
        assert not facts.save(image.manifest_digest, Facts(kind="baseos")) and facts.count_changes() == before
        assert facts.save(image.manifest_digest, Facts(kind="rootfs")) and facts.count_changes() > before
