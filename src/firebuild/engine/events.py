"""Use case: what has happened and what happens, as it is wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from firebuild.engine.core import Engine
from firebuild.events.journal import Event, find_last_event, list_events
from firebuild.host.watch import FileWatch

Test = Callable[[Event, str], bool]


def _fits_label(event: Event, text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in event.labels and (not equals or event.labels[key] == value)


def _fits_machine(event: Event, text: str) -> bool:
    if event.type == "snapshot":
        return event.attributes.get("machine") == text
    return event.type == "machine" and (event.object.startswith(text) or event.attributes.get("name") == text)


def _fits_image(event: Event, text: str) -> bool:
    image = event.attributes.get("image", "")
    return text in (image, image.rpartition(":")[0]) or (event.type == "image" and event.object.startswith(text))


FILTERS: Mapping[str, Test] = {
    "type": lambda event, text: event.type == text,
    "event": lambda event, text: event.action == text,
    "machine": _fits_machine,
    "container": _fits_machine,
    "image": _fits_image,
    "label": _fits_label,
}


def follow_events(
    engine: Engine, filters: Mapping[str, Sequence[str]], *, since_ns: int | None = None, until_ns: int | None = None
) -> Iterator[Event]:
    """The events that pass the filters: from `since_ns` on, without it from now; to `until_ns`, without it for ever.

    Of one key any value may hold, of several keys all must. Of the past only the newest events are known.
    """
    database = engine.database
    # Every event writes to the database, which lies in this folder; the watch stands before the first look.
    with FileWatch(engine.layout.state) as watch:
        last = find_last_event(database) if since_ns is None else 0
        while True:
            for event in list_events(database, after=last, since_ns=since_ns, until_ns=until_ns):
                last = event.id
                if all(any(FILTERS[key](event, text) for text in texts) for key, texts in filters.items()):
                    yield event
            left_s = None if until_ns is None else (until_ns - time.time_ns()) / 10**9
            if left_s is not None and left_s <= 0:
                return
            watch.wait(timeout_s=left_s)
