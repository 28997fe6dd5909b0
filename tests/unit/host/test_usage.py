"""What a process uses of the host: this very process and one that is gone."""

from __future__ import annotations

import os

from firebuild.host.usage import measure_usage


def test_this_process_has_used_something_and_its_counters_only_grow() -> None:
    before = measure_usage(os.getpid(), ["lo"])
    assert before is not None
    assert before.memory_bytes > 1 << 20
    assert before.processes >= 1
    sum(range(10**6))
    after = measure_usage(os.getpid(), ["no-such-interface"])
    assert after is not None
    assert after.cpu_s >= before.cpu_s > 0
    assert (after.received_bytes, after.sent_bytes) == (0, 0)


def test_a_process_that_is_gone_has_no_usage() -> None:
    assert measure_usage(1 << 30, []) is None
