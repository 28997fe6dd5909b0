"""The build cache as a user sees it: listed with sizes and last use, removed and pruned; images stay whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.cli.commands.cache import make_filter
from firebuild.cli.filters import parse_age, parse_filters
from firebuild.config.settings import load_settings
from firebuild.engine.cache import STEP, CacheEntry, find_entry, list_cache, prune_cache, remove_cache
from firebuild.engine.core import Engine
from firebuild.errors import NotFoundError, UsageError
from tests.unit.build.fakes import Workshop

TEXT = "FROM debian:12\nRUN one\nRUN two\n"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine whose store holds a build of two steps under a name, and one step that no image holds."""
    settings = load_settings({"FIREBUILD_STATE": str(tmp_path / "state"), "FIREBUILD_RUN": str(tmp_path / "run")})[0]
    (tmp_path / "shop").mkdir()
    with Engine(settings) as opened:
        shop = Workshop(tmp_path / "shop")
        shop.database.close()
        shop.blobs, shop.images, shop.database = opened.blobs, opened.images, opened.database
        shop.add_image("debian:12", {"bin/sh": b"shell"})
        shop.build(TEXT)
        shop.build(TEXT.replace("two", "three"), tag=None)
        yield opened


def test_it_lists_what_there_is(engine: Engine) -> None:
    entries = list_cache(engine)
    assert sorted((entry.kind, entry.description, entry.shared) for entry in entries) == [
        ("step", "RUN one", True), ("step", "RUN three", False), ("step", "RUN two", True),
    ]  # fmt: skip
    assert all(entry.size_bytes > 0 and entry.dockerfile == "Dockerfile#stage-0" for entry in entries)
    times = [entry.used_at_ns for entry in entries]
    assert times == sorted(times)


def test_what_goes_takes_its_layer_along_only_if_nothing_else_holds_it(engine: Engine) -> None:
    blobs = set(engine.blobs.list_digests())
    pruned = prune_cache(engine, lambda entry: True, dry_run=True)
    assert len(pruned.entries) == 3 and len(list_cache(engine)) == 3 and set(engine.blobs.list_digests()) == blobs
    [three] = [entry for entry in list_cache(engine) if entry.description == "RUN three"]
    assert pruned.size_bytes == three.size_bytes
    assert prune_cache(engine, lambda entry: True).size_bytes == three.size_bytes
    assert list_cache(engine) == []
    assert len(blobs - set(engine.blobs.list_digests())) == 1
    assert all(engine.blobs.has(layer.digest) for image in engine.images.list_images() for layer in image.layers)


def test_storage_that_is_to_be_kept(engine: Engine) -> None:
    entries = list_cache(engine)
    total = sum(entry.size_bytes for entry in entries)
    assert prune_cache(engine, lambda entry: True, keep_bytes=total).entries == []
    pruned = prune_cache(engine, lambda entry: True, keep_bytes=total - 1)
    assert [entry.id for entry in pruned.entries] == [entries[0].id], "the least recently used"


def test_entries_go_by_their_ids(engine: Engine) -> None:
    entries = list_cache(engine)
    with pytest.raises(NotFoundError):
        remove_cache(engine, [entries[0].id[:12], "nothing"])
    assert list_cache(engine) == entries, "nothing was removed"
    assert [entry.id for entry in remove_cache(engine, [entries[0].id[:12]]).entries] == [entries[0].id]
    assert list_cache(engine) == entries[1:]
    with pytest.raises(UsageError, match="2 ids"):
        find_entry([entries[0], entries[0]], entries[0].id[:3])


def test_filters() -> None:
    now = time.time_ns()
    step = CacheEntry("ab12", STEP, 1, now, now - 7200 * 10**9, "RUN x", shared=True)
    mount = CacheEntry("cd34", "mount", 1, now, now, "/c")
    for texts, expected in (
        ((), [step, mount]),
        (("kind=step",), [step]),
        (("kind=step", "kind=mount"), [step, mount]),
        (("unused-for=1h",), [step]),
        (("until=3h",), []),
        (("id=cd",), [mount]),
        (("shared=false", "kind=step"), []),
    ):
        assert [entry for entry in (step, mount) if make_filter(texts)(entry)] == expected, texts


@pytest.mark.parametrize("text", ["kind", "kind=", "knd=step", "kind=layer", "unused-for=soon", "shared=maybe"])
def test_filters_that_mean_nothing(text: str) -> None:
    with pytest.raises(UsageError):
        make_filter((text,))


def test_ages_and_keys() -> None:
    assert [parse_age(text) for text in ("90s", "1h30m", "7d", "1.5h")] == [90, 5400, 604800, 5400]
    with pytest.raises(UsageError) as caught:
        parse_filters(["kid=x"], ["id", "kind"])
    assert caught.value.hint == "did you mean `id`?" or caught.value.hint == "did you mean `kind`?"
