"""The closing summary counts what pytest and cargo report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.summary import Counts, load_tier, main, parse_cargo, parse_junit

JUNIT = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase>
<testcase name="d"><failure/><error/></testcase></testsuite></testsuites>"""
CARGO = """running 2 tests
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out
test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out
"""


def test_counts_are_read() -> None:
    assert parse_junit(JUNIT) == Counts(passed=1, failed=2, skipped=1)
    assert parse_cargo(CARGO) == Counts(passed=5, failed=1, skipped=1)


def test_a_tier_that_did_not_run_or_ran_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unit.xml").write_text('<testsuites><testsuite><testcase name="a"/></testsuite></testsuites>')
    assert main([str(tmp_path), "unit"]) == 0
    assert main([str(tmp_path), "unit", "vm"]) == 1
    (tmp_path / "vm.xml").write_text("<testsuites><testsuite/></testsuites>")
    assert main([str(tmp_path), "unit", "vm"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "total: 1 passed, 0 failed, 0 skipped"


def test_the_output_of_a_tier_beside_its_report_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "functional.xml").write_text(JUNIT)
    (tmp_path / "functional.log").write_text("4 passed in 3 s")
    assert load_tier(tmp_path, "functional") == parse_junit(JUNIT)
