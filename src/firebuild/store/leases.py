"""Leases: who needs which object of the store, so that garbage collection leaves it alone.

An object is named `image:<manifest digest>`, or `work:add:<start>` and `work:use:<start>` (Unix nanoseconds): somebody adds to
the store or only uses it since then. An owner is a process
(`process:<boot id>:<pid>:<start time>`) or anything else that somebody releases by name (`machine:<id>`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from firebuild.errors import NotFoundError
from firebuild.host.identity import ProcessIdentity, find_identity, is_alive
from firebuild.store.database import Database

DEFAULT_DURATION_S = 24 * 3600.0


class Lease(msgspec.Struct, frozen=True):
    """A claim on one object. `expires_at_ns`: Unix time."""

    id: str
    owner: str
    object: str
    expires_at_ns: int


class LeaseStore:
    """The leases of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, objects: Sequence[str], owner: str, *, duration_s: float = DEFAULT_DURATION_S) -> list[Lease]:
        """Take a lease on each object, all or none; taken before the first byte of what it protects is read."""
        expires = time.time_ns() + int(duration_s * 1e9)
        leases = [Lease(secrets.token_hex(10), owner, name, expires) for name in objects]
        with self._database.transaction() as database:
            for lease in leases:
                database.execute(
                    "INSERT INTO leases (id, owner, object, expires_at_ns) VALUES (?, ?, ?, ?)",
                    (lease.id, lease.owner, lease.object, lease.expires_at_ns),
                )
        return leases

    def renew(self, lease: Lease, *, duration_s: float = DEFAULT_DURATION_S) -> Lease:
        """Move a lease's end. Raises NotFoundError if it has been released or collected."""
        renewed = msgspec.structs.replace(lease, expires_at_ns=time.time_ns() + int(duration_s * 1e9))
        if not self._database.execute(
            "UPDATE leases SET expires_at_ns = ? WHERE id = ?", (renewed.expires_at_ns, lease.id)
        ):
            raise NotFoundError(f"the lease on `{lease.object}` is gone")
        return renewed

    def release(self, leases: Sequence[Lease]) -> None:
        """Give leases back; absent ones are fine."""
        with self._database.transaction() as database:
            for lease in leases:
                database.execute("DELETE FROM leases WHERE id = ?", (lease.id,))

    def release_owner(self, owner: str) -> None:
        """Give back all leases of an owner."""
        self._database.execute("DELETE FROM leases WHERE owner = ?", (owner,))

    @contextmanager
    def hold(self, objects: Sequence[str], owner: str | None = None) -> Iterator[list[Lease]]:
        """Leases for the time of the block; without `owner`, this process's, so that they die with it."""
        leases = self.take(objects, owner or process_owner())
        try:
            yield leases
        finally:
            self.release(leases)

    def list_leases(self) -> list[Lease]:
        """All leases, live or not."""
        rows = self._database.query("SELECT id, owner, object, expires_at_ns FROM leases ORDER BY object, id")
        return [Lease(row["id"], row["owner"], row["object"], row["expires_at_ns"]) for row in rows]

    def list_live(self) -> list[Lease]:
        """The leases that have not expired and whose process lives. Changes nothing: a full disk may not allow it."""
        now = time.time_ns()
        return [lease for lease in self.list_leases() if lease.expires_at_ns > now and _owner_lives(lease.owner)]

    def collect(self) -> list[Lease]:
        """Remove the leases that have expired or whose process is dead; returns the live ones."""
        now = time.time_ns()
        live: list[Lease] = []
        dead: list[Lease] = []
        for lease in self.list_leases():
            (live if lease.expires_at_ns > now and _owner_lives(lease.owner) else dead).append(lease)
        if dead:
            self.release(dead)
        return live


def process_owner() -> str:
    """This process as an owner."""
    import os

    identity = find_identity(os.getpid())
    assert identity is not None
    return f"process:{_boot_id()}:{identity.pid}:{identity.start_time}"


def describe_owner(owner: str) -> str:
    """An owner, for people."""
    kind, _, rest = owner.partition(":")
    return f"process {rest.split(':')[1]}" if kind == "process" and rest.count(":") == 2 else owner


def _owner_lives(owner: str) -> bool:
    kind, _, rest = owner.partition(":")
    if kind != "process":
        return True
    boot_id, _, numbers = rest.partition(":")
    pid, _, start_time = numbers.partition(":")
    if boot_id != _boot_id() or not (pid.isdecimal() and start_time.isdecimal()):
        return False
    return is_alive(ProcessIdentity(int(pid), int(start_time)))


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
