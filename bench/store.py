"""What the store costs: an import, the making of a disk, and a machine's own disk, against plain programs on the same bytes.

Each of firebuild's works alternates with its rival in one run, so that a busy host is busy for both; the least time of each
counts. Rivals: `cat` of the tarball into a synced file, `mke2fs -d` of the same tree unpacked, a full copy of the root disk. Needs root
and a state with a kernel (`./dev bench` prepares it).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from firebuild.engine.core import Engine
from firebuild.engine.disk_keys import root_disk_key
from firebuild.engine.disks import ensure_root_disk
from firebuild.engine.images import import_image
from firebuild.engine.machines import DEFAULT_UPPER_BYTES
from firebuild.names import parse_reference
from firebuild.store.disks import make_blank

ROOT = Path(__file__).parents[1]
REFERENCE = parse_reference("firebuild-bench/store:1")
CACHE = Path("/var/cache/firebuild-dev")


def measure(work: Callable[[], object]) -> float:
    """Seconds that the work takes, its bytes on the disk included."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(
    name: str, rounds: int, ours: Callable[[], object], rival: Callable[[], object], reset: Callable[[], object]
) -> None:
    """Alternate the two; print the least times and their ratio."""
    mine, theirs = [], []
    for _ in range(rounds):
        reset()
        mine.append(measure(ours))
        reset()
        theirs.append(measure(rival))
    print(
        f"{name}: {min(mine):.3f} s, {min(theirs):.3f} s; ratio {min(mine) / min(theirs):.2f} (least of {rounds} alternating rounds)"
    )


def shell(*words: str | Path, output: Path | None = None) -> None:
    """Run a program that must succeed."""
    if output is None:
        subprocess.run(words, check=True, capture_output=True)
        return
    with output.open("wb") as file:
        subprocess.run(words, check=True, stdout=file)
    shell("sync", output)


def main() -> None:
    """Import, disk, instance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    made = subprocess.run(
        [ROOT / "examples/debian/make-base", "--cached", CACHE], check=True, capture_output=True, text=True
    )
    with Engine() as engine, tempfile.TemporaryDirectory(dir=engine.layout.state) as scratch:
        folder = Path(scratch)
        tree, target = folder / "tree", folder / "target"
        tree.mkdir()
        # A file more than the base has: what is removed between rounds must be this bench's own, layer and disk.
        tarball, mark = folder / "tree.tar", folder / "firebuild-bench"
        shell("cp", made.stdout.strip(), tarball)
        mark.write_bytes(os.urandom(16))
        shell("tar", "-C", folder, "-rf", tarball, mark.name)
        shell("tar", "-C", tree, "-xf", tarball)

        def forget() -> None:
            target.unlink(missing_ok=True)
            if engine.images.find_image(REFERENCE) is not None:
                image = engine.images.get_image(REFERENCE)
                engine.disks.remove(root_disk_key(engine, image.chain_id)[0])
                engine.images.untag(REFERENCE)
                for blob in (image.manifest_digest, image.config_digest, *(layer.digest for layer in image.layers)):
                    engine.blobs.remove(blob)

        compare(
            "import / cat", rounds,
            lambda: import_image(engine, tarball, REFERENCE), lambda: shell("cat", tarball, output=target), forget,
        )  # fmt: skip
        forget()
        image = import_image(engine, tarball, REFERENCE)
        key = root_disk_key(engine, image.chain_id)[0]

        def drop_disk() -> None:
            target.unlink(missing_ok=True)
            engine.disks.remove(key)

        def rival_disk() -> None:
            size = f"{engine.settings.root_disk_bytes >> 10}k"
            shell("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", tree, target, size)
            shell("sync", target)

        compare("disk / mke2fs -d", rounds, lambda: ensure_root_disk(engine, image), rival_disk, drop_disk)
        disk = ensure_root_disk(engine, image)
        compare(
            "instance / full copy", rounds,
            lambda: make_blank(target, DEFAULT_UPPER_BYTES, journal=True, label="upper"),
            lambda: shell("cp", "--sparse=always", disk.path, target), lambda: target.unlink(missing_ok=True),
        )  # fmt: skip
        forget()


if __name__ == "__main__":
    main()
