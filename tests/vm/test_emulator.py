"""The emulator with a real guest, spoken to as the supervisor does, with nothing of firebuild between."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.emulator_guest import TIMEOUT_S, Guest
from tests.vm.conftest import SharedState


@pytest.fixture
def guest(shared_state: SharedState) -> Iterator[Guest]:
    [kernel] = (shared_state.state / "kernels").glob("*/vmlinux")
    initrd = max((shared_state.state / "initramfs").iterdir(), key=os.path.getmtime)
    with tempfile.TemporaryDirectory(prefix="fbe-", dir="/run") as folder:
        subject = Guest(Path(folder), kernel, initrd, balloon_mib=8)
        try:
            yield subject
        finally:
            subject.push.socket.close()
            subject.end()


def test_both_directions_pause_and_an_orderly_end(guest: Guest) -> None:
    assert guest.ask({"op": "hello"})["protocol"] == 1
    guest.api.patch("/vm", {"state": "Paused"})
    answers: list[Any] = []
    asker = threading.Thread(target=lambda: answers.append(guest.ask({"op": "hello"})))
    asker.start()
    guest.api.patch("/vm", {"state": "Resumed"})
    asker.join(TIMEOUT_S)
    assert answers and answers[0]["protocol"] == 1
    guest.ask({"op": "poweroff"})
    assert guest.process.wait(TIMEOUT_S) == 0
    assert not {"api.sock", "v.sock"} & {path.name for path in guest.folder.iterdir()}


def test_the_balloon_takes_memory_and_gives_it_back(guest: Guest) -> None:
    """The guest's driver is one of the modules that the initramfs loads; it tells what the guest has left."""

    def statistics_at(amount_mib: int) -> dict[str, int]:
        end = time.monotonic() + TIMEOUT_S
        while True:
            told: dict[str, int] = guest.api.get("/balloon/statistics")
            if told["actual_mib"] == amount_mib and "free_memory" in told:
                return told
            assert time.monotonic() < end, told
            time.sleep(0.1)

    told = statistics_at(8)
    assert (told["target_mib"], told["target_pages"], told["actual_pages"]) == (8, 2048, 2048)
    assert told["free_memory"] < told["total_memory"] <= 256 << 20
    guest.api.patch("/balloon", {"amount_mib": 96})
    assert guest.api.get("/balloon")["amount_mib"] == 96
    # What was told before the balloon grew is told until the next second has passed.
    end = time.monotonic() + TIMEOUT_S
    while statistics_at(96)["free_memory"] > told["free_memory"] - (80 << 20):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "less than 257MiB" in guest.api.fault("PATCH", "/balloon", {"amount_mib": 257})
    assert "cannot be enabled/disabled" in guest.api.fault(
        "PATCH", "/balloon/statistics", {"stats_polling_interval_s": 0}
    )
    guest.api.patch("/balloon/statistics", {"stats_polling_interval_s": 2})
    guest.api.patch("/balloon", {"amount_mib": 0})
    assert statistics_at(0)["target_mib"] == 0


def test_many_requests_at_once(guest: Guest) -> None:
    answers: list[Any] = []
    askers = [threading.Thread(target=lambda: answers.append(guest.ask({"op": "hello"}))) for _ in range(32)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(TIMEOUT_S)
    assert len(answers) == 32 and all(answer == answers[0] for answer in answers)
