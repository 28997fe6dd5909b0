"""What a COPY or ADD takes in that is no tree of a context: tar entries that are made when they are sent."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from firebuild.guest.items import CopyItem


class RemoteItem(msgspec.Struct, frozen=True):
    """One item of a copy. `digest`: of all that decides it; `stream`: the tar entries of the item of that number."""

    item: CopyItem
    digest: str
    shown: str
    stream: ItemStream


class ItemStream:
    """Tar entries of an item, made when they are sent."""

    def chunks(self, number: int) -> Iterator[bytes]:
        """The entries, named for item `number`, without an end-of-archive mark. Raises ContextError."""
        raise NotImplementedError
