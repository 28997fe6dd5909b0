"""Leases: held while their owner lives, gone after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.errors import NotFoundError
from firebuild.store.database import Database
from firebuild.store.leases import LeaseStore, process_owner


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[LeaseStore]:
    with Database.open(tmp_path / "db") as database:
        yield LeaseStore(database)


def test_hold_releases_also_after_an_error(leases: LeaseStore) -> None:
    with pytest.raises(KeyError), leases.hold(["disk:a", "blob:b"]):
        assert [lease.object for lease in leases.collect()] == ["blob:b", "disk:a"]
        raise KeyError
    assert leases.list_leases() == []


def test_expired_and_dead_leases_are_collected(leases: LeaseStore) -> None:
    boot = process_owner().split(":")[1]
    leases.take(["disk:expired"], "machine:m", duration_s=-1)
    leases.take(["disk:dead"], f"process:{boot}:4194305:1")
    leases.take(["disk:otherboot"], process_owner().replace(boot, "00000000-0000-0000-0000-000000000000"))
    leases.take(["disk:garbled"], "process:nonsense")
    leases.take(["disk:alive"], process_owner())
    leases.take(["disk:machine"], "machine:m")
    assert {lease.object for lease in leases.collect()} == {"disk:alive", "disk:machine"}
    assert {lease.object for lease in leases.list_leases()} == {"disk:alive", "disk:machine"}
    leases.release_owner("machine:m")
    assert {lease.object for lease in leases.list_leases()} == {"disk:alive"}


def test_renewing(leases: LeaseStore) -> None:
    (lease,) = leases.take(["disk:a"], "machine:m", duration_s=1)
    renewed = leases.renew(lease, duration_s=1000)
    assert renewed.expires_at_ns > lease.expires_at_ns and leases.list_leases() == [renewed]
    leases.release([lease, lease])
    with pytest.raises(NotFoundError, match="disk:a"):
        leases.renew(lease)
