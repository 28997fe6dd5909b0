"""Versions of Firecracker: what is one, what is too old, what each lacks."""

from __future__ import annotations

import pytest

from firebuild.errors import UsageError, VmmError
from firebuild.vmm.release import parse_checksum
from firebuild.vmm.versions import FEATURES, OLDEST, Version, check_supported, find_lacking, parse_answer, parse_version

SUM = "ab" * 32


def test_versions_are_read() -> None:
    assert parse_version("v1.16.1") == parse_version("1.16.1") == Version(1, 16, 1)
    assert parse_version("1.17.0-dev") == Version(1, 17, 0)
    for text in ("", "1.16", "1.16.1.2", "v1.16.1-rc", "latest", "1.16.1\n", "../1.16.1", "1.99999.0"):
        with pytest.raises(UsageError):
            parse_version(text)


def test_programs_say_their_version() -> None:
    answer = "Firecracker v1.16.1\n\n2026-01-01T00:00:00 [anonymous-instance:main] Firecracker exiting successfully.\n"
    assert parse_answer("Firecracker", answer) == Version(1, 16, 1)
    assert parse_answer("Jailer", "Jailer v1.12.0\n") == Version(1, 12, 0)
    for wrong in ("", "QEMU emulator version 7.2", "Firecracker vlatest", "Jailer v1.12.0"):
        with pytest.raises(VmmError):
            parse_answer("Firecracker", wrong)


def test_what_a_version_lacks() -> None:
    check_supported(OLDEST)
    with pytest.raises(VmmError, match="too old"):
        check_supported(Version(1, 11, 9))
    assert find_lacking(OLDEST) == list(FEATURES)
    newer = ["clock-realtime", "vsock-override", "serial-rate-limit", "bzimage", "transparent-huge-pages"]
    assert find_lacking(Version(1, 14, 2)) == newer
    assert find_lacking(Version(2, 0, 0)) == []


def test_checksum_files() -> None:
    assert parse_checksum(f"{SUM}  a.tgz\n{'cd' * 32} *b.tgz\n", "b.tgz") == "cd" * 32
    for text in ("", SUM, f"{SUM}  other.tgz", f"{SUM[:-1]}  a.tgz"):
        with pytest.raises(VmmError):
            parse_checksum(text, "a.tgz")
