"""The closing summary of `./dev test`: each tier's counts from its own report, and one last line that counts them all.

As a program: `python -m tests.support.summary FOLDER TIER...`. A tier without a report, or without a test, is a failure.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

_CARGO = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)


@dataclass(frozen=True)
class Counts:
    """How many tests of a tier ended how. Errors in set-up or tear-down count as failed."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def parse_junit(text: str) -> Counts:
    """The counts of a JUnit report as pytest writes it: a test with an error in tear-down counts once, as failed."""
    failed = passed = skipped = 0
    for case in ET.fromstring(text).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failed += 1
        elif "skipped" in kinds:
            skipped += 1
        else:
            passed += 1
    return Counts(passed, failed, skipped)


def parse_cargo(text: str) -> Counts:
    """The counts of `cargo test`'s output, all its test programs together."""
    total = Counts()
    for passed, failed, ignored in _CARGO.findall(text):
        total += Counts(int(passed), int(failed), int(ignored))
    return total


def load_tier(folder: Path, tier: str) -> Counts | None:
    """The counts of one tier, or None where it left no report."""
    # Only cargo's output is counted in a log: a tier of pytest's may have left its output beside its report.
    if (report := folder / f"{tier}.xml").exists():
        return parse_junit(report.read_text())
    if (log := folder / f"{tier}.log").exists():
        return parse_cargo(log.read_text(errors="replace"))
    return None


def main(arguments: list[str]) -> int:
    """Print the summary; the exit status is 1 when a tier failed or ran nothing."""
    folder, tiers = Path(arguments[0]), arguments[1:]
    total, status = Counts(), 0
    for tier in tiers:
        counts = load_tier(folder, tier)
        if counts is None or counts.failed or not counts.passed:
            status = 1
        sys.stdout.write(f"  {tier:<12}{'no report: it did not run to its end' if counts is None else counts}\n")
        total += counts or Counts()
    sys.stdout.write(f"total: {total}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
