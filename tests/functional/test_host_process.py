"""What a program starts ends with it, also where the program itself has ended before."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from firebuild.host.deadline import Deadline
from firebuild.host.identity import find_identity, wait_gone
from firebuild.host.process import end_process, start

CHILD = "sleep 1000 & echo $!"


def read_child(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.mark.parametrize("waited", [True, False], ids=["waited for", "a zombie"])
def test_children_of_a_leader_that_has_ended(waited: bool) -> None:
    with start(["/bin/sh", "-c", CHILD], stdout=subprocess.PIPE) as process:
        child = find_identity(read_child(process))
        assert child is not None
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if waited:
            process.wait()
    assert wait_gone(child, 30)
    assert process.returncode == 0


def test_a_group_that_ignores_the_request(tmp_path: Path) -> None:
    script = f"trap '' TERM; {CHILD}; wait"
    deadline = Deadline(60, "ending the group")
    with start(["/bin/sh", "-c", script], stdout=subprocess.PIPE, grace_s=0.2) as process:
        child = find_identity(read_child(process))
    assert child is not None and wait_gone(child, deadline.check())
    assert process.returncode == -9


def test_a_number_that_is_another_processes_is_not_hit() -> None:
    with start(["/bin/sleep", "1000"]) as other:
        ended = subprocess.Popen(["/bin/true"])
        ended.wait()
        # As after a reuse of the number.
        ended.pid = other.pid
        end_process(ended, grace_s=0)
        assert other.poll() is None
