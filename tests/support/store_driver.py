"""Operations on small stores, each in a process of its own that a tracer may kill or fail at its Nth system call.

As a program: `python -m tests.support.store_driver FOLDER OPERATION…` works on FOLDER/OPERATION/state, one forked child for each
operation, so that the interpreter starts once. It makes no traced call itself; its exit status says how they ended, in
base 3: 0 well, 1 refused with an error of firebuild's own, 2 killed. 255: something that may not happen.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from firebuild.engine.images import import_image, pull_image, tag_image
from firebuild.engine.store import free_space
from firebuild.errors import FirebuildError, ImageError
from firebuild.images import archives as _archives  # noqa: F401 - loaded before the forks
from firebuild.images import skopeo, transfer
from firebuild.machine import reconcile as _reconcile  # noqa: F401 - loaded before the forks
from firebuild.names import parse_reference
from firebuild.store.images import Image, ImageConfig, RootFs

LAYER = "application/vnd.oci.image.layer.v1.tar"
WELL, REFUSED, KILLED = 0, 1, 2
UNEXPECTED = 255


def open_engine(folder: Path, operation: str) -> Engine:
    """The engine of one operation's store."""
    root = folder / operation
    variables = {
        "FIREBUILD_STATE": str(root / "state"),
        "FIREBUILD_RUN": str(root / "run"),
        "FIREBUILD_ROOT_DISK": "1m",
    }
    return Engine(load_settings(variables)[0])


def make_image(engine: Engine, name: str, text: str) -> Image:
    """An image of one layer, under a name."""
    layer = engine.blobs.put(text.encode(), LAYER)
    config = ImageConfig("amd64", "linux", author=text, rootfs=RootFs(diff_ids=[layer.digest]))
    return engine.images.commit_image(config, [layer], [parse_reference(name)])


def do_commit(engine: Engine, folder: Path) -> None:
    with engine.use_store():
        make_image(engine, "app:1", "new")


def do_tag(engine: Engine, folder: Path) -> None:
    tag_image(engine, "other:1", parse_reference("app:1"))


def do_pull(engine: Engine, folder: Path) -> None:
    pull_image(engine, transfer.parse_place(f"oci:{folder / 'layout'}:pulled"), reference=parse_reference("app:1"))


def do_import(engine: Engine, folder: Path) -> None:
    import_image(engine, folder / "tree.tar", parse_reference("app:1"))


def do_prune(engine: Engine, folder: Path) -> None:
    free_space(engine, drop_cache=True, dry_run=False)


def do_recover(engine: Engine, folder: Path) -> None:
    """What every command begins with, after others were killed."""
    engine.repair()


OPERATIONS: dict[str, Callable[[Engine, Path], None]] = {
    "commit": do_commit,
    "tag": do_tag,
    "pull": do_pull,
    "import": do_import,
    "prune": do_prune,
    "recover": do_recover,
}


def _copy_instead(source: str, target: str, *_: object, **__: object) -> None:
    # What skopeo does is skopeo's; what arrives is ours.
    try:
        shutil.copytree(source.removeprefix("oci:").rpartition(":")[0], target.removeprefix("oci:"))
    except shutil.Error as error:
        raise ImageError(f"the copy failed: {error}") from error


def _no_manifest(*_: object, **__: object) -> bytes:
    return b"{}"


def run_child(operation: str, folder: Path) -> int:
    """One operation, in this process."""
    try:
        with open_engine(folder, operation) as engine:
            OPERATIONS[operation](engine, folder)
        return WELL
    except FirebuildError as error:
        # A call that fails where nothing else is left to say is the disk's fault, whatever names it.
        return REFUSED if error.code in ("disk-full", "host", "store", "image") else UNEXPECTED
    except BaseException:  # noqa: BLE001 - it is told, and counts as a failure
        traceback.print_exc()
        return UNEXPECTED


def main(folder: Path, operations: Sequence[str]) -> int:
    """Run each in a child; the status in base 3."""
    skopeo.copy, skopeo.get_raw_manifest = _copy_instead, _no_manifest
    total = 0
    for place, operation in enumerate(operations):
        pid = os.fork()
        if pid == 0:
            os._exit(run_child(operation, folder))
        _, status = os.waitpid(pid, 0)
        code = KILLED if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if code > KILLED:
            return UNEXPECTED
        total += code * 3**place
    return total


if __name__ == "__main__":
    os._exit(main(Path(sys.argv[1]), sys.argv[2:]))
