"""What a file holds is found wherever it lies, and in no file that does not hold it."""

from __future__ import annotations

from pathlib import Path

from tests.support.sparse import CHUNK_BYTES, find_files_with


def test_bytes_are_found_behind_holes_and_across_chunks(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("none", "hole", "begin", "behind", "across")}
    files["none"].write_bytes(b"canar" * 1000)
    files["begin"].write_bytes(b"canary")
    files["across"].write_bytes(b"-" * (CHUNK_BYTES - 3) + b"canary")
    for name, text in (("hole", b""), ("behind", b"....canary")):
        with files[name].open("wb") as file:
            file.truncate(1 << 32)
            file.seek(3 << 30)
            file.write(text)
    (tmp_path / "link").symlink_to(files["begin"])
    assert sorted(find_files_with(b"canary", tmp_path)) == sorted(files[name] for name in ("begin", "behind", "across"))
