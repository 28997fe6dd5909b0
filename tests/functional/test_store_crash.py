"""The store under many writers, under kill -9 at every step, and under a full disk at every step."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from firebuild.errors import DiskFullError
from firebuild.names import parse_reference
from firebuild.store.blobs import BlobStore
from firebuild.store.database import MIGRATIONS, Database
from firebuild.store.fsck import check_store
from firebuild.store.images import ImageStore

# A process that works on a store. At the Nth call of a function that changes the file system it dies or fails.
WORKER = """
import errno, os, signal, sys
from pathlib import Path
root, fault, when, work, tag = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
count = 0
def wrap(name):
    original = getattr(os, name)
    def wrapped(*arguments, **options):
        global count
        count += 1
        if fault != "none" and count == when:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments, **options)
    setattr(os, name, wrapped)
from firebuild.errors import FirebuildError
from firebuild.names import parse_reference
from firebuild.store.blobs import BlobStore
from firebuild.store.images import ImageConfig, ImageStore, RootFs
blobs = BlobStore(root)
blobs.ensure()
images = ImageStore(blobs)
for name in ("open", "fsync", "rename", "unlink", "fchmod", "chmod", "mkdir", "utime", "ftruncate", "fdopen"):
    wrap(name)
try:
    if work == "commit":
        layer = blobs.put(f"layer {tag}".encode(), "application/vnd.oci.image.layer.v1.tar")
        config = ImageConfig("amd64", "linux", author=tag, rootfs=RootFs(diff_ids=[layer.digest]))
        images.commit_image(config, [layer], [parse_reference("app:1")])
    elif work == "untag":
        images.untag(parse_reference("app:1"))
    elif work == "many":
        for number in range(10):
            layer = blobs.put(f"layer {tag} {number}".encode(), "application/vnd.oci.image.layer.v1.tar")
            config = ImageConfig("amd64", "linux", author=f"{tag} {number}", rootfs=RootFs(diff_ids=[layer.digest]))
            images.commit_image(config, [layer], [parse_reference("app:1"), parse_reference(f"app:{tag}-{number}")])
except FirebuildError as error:
    print(error.code)
    sys.exit(3)
print(count)
"""


def start_worker(root: Path, *, fault: str = "none", when: int = 0, work: str, tag: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, root, fault, str(when), work, tag],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run_worker(root: Path, **options: object) -> tuple[int, bytes, bytes]:
    process = start_worker(root, **options)  # type: ignore[arg-type]
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def author_of_tag(root: Path) -> str | None:
    image = ImageStore(BlobStore(root)).find_image(parse_reference("app:1"))
    return image.config.author if image else None


@pytest.mark.parametrize("fault", ["kill", "full"])
@pytest.mark.parametrize("work", ["commit", "untag"])
def test_old_or_new_whatever_happens(tmp_path: Path, fault: str, work: str) -> None:
    base = tmp_path / "base"
    run_worker(base, work="commit", tag="old")
    steps = int(run_worker(copy_of(base, tmp_path / "counted"), work=work, tag="new")[1])
    assert steps > 4
    new = "new" if work == "commit" else None
    outcomes = set()
    for when in range(1, steps + 2):
        root = copy_of(base, tmp_path / f"{fault}{when}")
        status, out, err = run_worker(root, fault=fault, when=when, work=work, tag="new")
        found = author_of_tag(root)
        outcomes.add(found)
        assert found in ("old", new), f"at step {when}"
        if when > steps:
            assert (status, found) == (0, new), "past the last step nothing is hit"
        elif fault == "kill":
            assert status == -signal.SIGKILL, err
        elif status == 0:
            assert found == new, f"success at step {when} means new"
        else:
            assert (status, out) == (3, b"disk-full\n"), f"at step {when}: {err.decode()}"
        report = check_store(BlobStore(root))
        assert report.clean, report.problems
        assert os.listdir(root / "ingest") == []
        status, _, err = run_worker(root, work="commit", tag="after")
        assert status == 0 and author_of_tag(root) == "after", err
    assert outcomes == {"old", new}


@pytest.mark.parametrize("call", ["fsync", "rename", "fchmod"])
def test_a_full_disk_leaves_no_half_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    blobs = BlobStore(tmp_path / "store")
    blobs.ensure()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DiskFullError):
        blobs.put(b"data", "t")
    assert os.listdir(blobs.root / "ingest") == []


def copy_of(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", source, target], check=True)
    return target


def test_sixteen_writers_of_one_tag_lose_nothing(tmp_path: Path) -> None:
    root = tmp_path / "store"
    BlobStore(root).ensure()
    workers = [start_worker(root, work="many", tag=f"w{number}") for number in range(16)]
    for worker in workers:
        _, err = worker.communicate(timeout=300)
        assert worker.returncode == 0, err.decode()
    images = ImageStore(BlobStore(root))
    names = images.list_references()
    expected = {f"docker.io/library/app:w{writer}-{number}" for writer in range(16) for number in range(10)}
    assert set(names) == expected | {"docker.io/library/app:1"}
    authors = {image.config.author for image in images.list_images()}
    assert len(authors) == 160
    last = images.get_image(parse_reference("app:1"))
    assert last.config.author is not None and last.config.author.endswith(" 9"), "the last commit of some writer won"
    assert check_store(BlobStore(root)).clean


# Forked from one interpreter, so that all of them write at the same time.
CROWD = """
import os, sys
from pathlib import Path
from firebuild.names import parse_reference
from firebuild.store.blobs import BlobStore
from firebuild.store.images import ImageConfig, ImageStore, RootFs
blobs = BlobStore(Path(sys.argv[1]))
read, write = os.pipe()
children = []
for number in range(64):
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        layer = blobs.put(f"layer {number}".encode(), "application/vnd.oci.image.layer.v1.tar")
        config = ImageConfig("amd64", "linux", author=str(number), rootfs=RootFs(diff_ids=[layer.digest]))
        references = [parse_reference("app:1"), parse_reference(f"app:w{number}")]
        ImageStore(blobs).commit_image(config, [layer], references)
        os._exit(0)
    children.append(pid)
os.close(write)
sys.exit(any(os.waitpid(pid, 0)[1] for pid in children))
"""


def test_sixty_four_writers_of_one_tag_at_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    BlobStore(root).ensure()
    subprocess.run([sys.executable, "-c", CROWD, root], check=True, timeout=300)
    images = ImageStore(BlobStore(root))
    names = images.list_references()
    assert set(names) == {f"docker.io/library/app:{tag}" for tag in ["1", *(f"w{number}" for number in range(64))]}
    winner = images.get_image(parse_reference("app:1"))
    assert names[f"docker.io/library/app:w{winner.config.author}"] == winner.manifest_digest, "one writer's, whole"
    assert len({image.config.author for image in images.list_images()}) == 64
    assert check_store(BlobStore(root)).clean and os.listdir(root / "ingest") == []


def test_readers_beside_a_writer_always_see_a_whole_image(tmp_path: Path) -> None:
    root = tmp_path / "store"
    run_worker(root, work="commit", tag="old")
    images = ImageStore(BlobStore(root))
    worker = start_worker(root, work="many", tag="w")
    seen = set()
    while worker.poll() is None:
        seen.add(images.get_image(parse_reference("app:1")).config.author)
    worker.communicate()
    assert worker.returncode == 0 and "old" in seen


def test_a_writer_killed_mid_blob_leaves_garbage_that_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from firebuild.store.blobs import BlobStore\n"
        "blobs = BlobStore(Path(sys.argv[1])); blobs.ensure()\n"
        "with blobs.ingest('t') as writer, blobs.stage_folder() as stage:\n"
        "    writer.write(b'x' * 100000); (stage / 'file').write_bytes(b'x')\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
    )
    root = tmp_path / "store"
    worker = subprocess.Popen([sys.executable, "-c", code, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
    blobs = BlobStore(root)
    blobs.ensure()
    assert len(os.listdir(root / "ingest")) == 2, "its owner lives"
    worker.kill()
    worker.communicate()
    blobs.ensure()
    assert os.listdir(root / "ingest") == []
    assert blobs.list_digests() == []


def test_a_killed_migration_is_made_again(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from firebuild.store import database\n"
        "first = database.MIGRATIONS[0]\n"
        "database.MIGRATIONS = ((*first[:3], 'SELECT kill()'),)\n"
        "import sqlite3; connect = sqlite3.connect\n"
        "def patched(*a, **k):\n"
        "    c = connect(*a, **k); c.create_function('kill', 0, lambda: os.kill(os.getpid(), signal.SIGKILL)); return c\n"
        "sqlite3.connect = patched\n"
        "database.Database.open(Path(sys.argv[1]))\n"
    )
    path = tmp_path / "db"
    result = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert result.returncode == -signal.SIGKILL
    with Database.open(path) as database:
        assert database.version == len(MIGRATIONS) and database.check() == []
        assert database.query("SELECT * FROM machines") == []


def test_the_store_starts_light(tmp_path: Path) -> None:
    code = (
        "import json, sys; from firebuild.store import blobs, database, disks, images, leases, view\n"
        "import firebuild.images.archive, firebuild.kernels.store\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    loaded = set(json.loads(output))
    heavy = {
        "ssl",
        "asyncio",
        "backports.zstd",
        "compression.zstd",
        "ctypes",
        "sqlite3",
        "difflib",
        "subprocess",
    }
    assert not loaded & heavy
