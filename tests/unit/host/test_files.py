"""Files that are whole or absent: what is written beside them goes, whoever wrote it and however that ended."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from firebuild.errors import HostError
from firebuild.host.files import open_atomic, write_atomic


def test_a_dead_writers_half_is_swept_by_the_next_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    dead = tmp_path / ".index.json.0123456789ab.tmp"
    others = [".index.json.mine.tmp", ".other.0123456789ab.tmp", "index.json.0123456789ab.tmp"]
    for name in (dead.name, *others):
        (tmp_path / name).write_bytes(b"half")
    with open_atomic(path) as file:
        file.write(b"first")
        write_atomic(path, b"second")
        assert path.read_bytes() == b"second" and not dead.exists()
    assert path.read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == sorted(["index.json", *others])


def test_writers_at_once_do_not_sweep_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    failures: list[BaseException] = []

    def write(text: bytes) -> None:
        try:
            for _ in range(50):
                write_atomic(path, text, durable=False)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(bytes([65 + number]) * 100,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(set(path.read_bytes())) == 1 and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_fault_whose_cleaning_up_fails_too_is_the_one_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        patch.setattr(os, "unlink", fail)
        with pytest.raises(HostError, match=r"writing `.*x` failed: Input/output error"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and len(os.listdir(tmp_path)) == 2
    write_atomic(path, b"newer")
    assert os.listdir(tmp_path) == ["x"]
