"""`python -m tests.support.differential [NAME ...]`: run cases in the user's own state, and print how they differ."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from tests.support.differential.dockerd import DockerUnavailableError
from tests.support.differential.suite import CASES, judge, run_cases


def main(names: list[str]) -> int:
    """The number of cases that differ, at most 100."""
    wanted = [case for case in CASES if not names or case.name in names]
    state, run = (Path(os.environ[name]) for name in ("FIREBUILD_STATE", "FIREBUILD_RUN"))
    bad = 0
    logging.basicConfig(level=logging.INFO)
    try:
        outcomes = run_cases(wanted, state, run)
    except DockerUnavailableError as error:
        sys.exit(str(error))
    for case in wanted:
        lines = judge(case, outcomes)
        bad += bool(lines)
        sys.stdout.write(
            "".join(f"{line}\n" for line in ([f"{case.name}: differs", *lines] if lines else [f"{case.name}: ok"]))
        )
    return min(bad, 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
