"""What is asked of the VMM beside processors and memory: parsed, refused where a version lacks it, put into the API's bodies."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from firebuild.errors import UsageError
from firebuild.machine.extras import apply_extras, check_extras, parse_extras
from firebuild.machine.spec import VmmExtras
from firebuild.vmm.models import BootSource, MachineConfiguration, VmmSetup, Vsock
from firebuild.vmm.versions import OLDEST, Version

SETUP = VmmSetup(MachineConfiguration(1, 128), BootSource("k"), [], Vsock(3, "v"))
NEW = Version(1, 17, 0)


def parse(**given: object) -> VmmExtras:
    values = {"cpu_template": None, "huge_pages": "none", "balloon_bytes": None, "memory_mib": 128, **given}
    return parse_extras(**values)  # type: ignore[arg-type]


def test_nothing_asked_is_nothing_sent() -> None:
    assert parse() == VmmExtras()
    assert apply_extras(SETUP, VmmExtras(), NEW) == SETUP
    assert b"cpu_template" not in msgspec.json.encode(SETUP.machine)


def test_all_that_can_be_asked() -> None:
    extras = parse(cpu_template="T2", huge_pages="Transparent", balloon_bytes=64 << 20)
    setup = apply_extras(SETUP, extras, NEW)
    machine = msgspec.json.decode(msgspec.json.encode(setup.machine))
    assert (machine["cpu_template"], machine["huge_pages"]) == ("T2", "Transparent")
    assert setup.balloon is not None and setup.balloon.free_page_reporting is True
    old = apply_extras(SETUP, extras, OLDEST)
    assert b"reporting" not in msgspec.json.encode(old.balloon)
    check_extras(extras, NEW)
    with pytest.raises(UsageError, match="does not have it"):
        check_extras(extras, OLDEST)
    with pytest.raises(UsageError, match="no CPU templates"):
        check_extras(extras, None)
    check_extras(parse(huge_pages="transparent", balloon_bytes=0), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "not JSON"), ("[]", "not a CPU template"), ('{"reg_modifiers": []}', "not a CPU template"),
     ('{"msr_modifiers": ["' + "x" * 51200 + '"]}', "longer than 51200 bytes")],
)  # fmt: skip
def test_files_that_are_no_templates(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "template"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        parse(cpu_template=f"@{file}")


def test_memory_that_pages_of_two_mib_do_not_fill() -> None:
    with pytest.raises(UsageError, match="no whole number of pages"):
        parse(huge_pages="2m", memory_mib=127)
