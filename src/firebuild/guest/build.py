"""The host's end of a build machine: layers, runs, copies, disks (protocol/PROTOCOL.md, section 5)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from firebuild.guest.control import LayerCounts, ask, get_counts, send_data, take_data
from firebuild.guest.exec import ExecSession, Output
from firebuild.guest.frames import FrameType, violation
from firebuild.guest.items import CopyItem
from firebuild.guest.mounts import Mount
from firebuild.guest.stream import GuestStream, open_stream
from firebuild.host.deadline import Deadline

_PATIENCE_S = 60.0

__all__ = ["BuildGuest", "LayerCounts", "RunSpec", "TreeEntry"]


class RunSpec(msgspec.Struct, frozen=True):
    """One command of a build. `env`: the whole environment as `K=V`. `network`: "default" or "none"; `rows`, `cols`: of the
    terminal that it has with `tty`."""

    argv: list[str]
    env: list[str]
    user: str = ""
    workdir: str = "/"
    network: str = "default"
    hostname: str = "buildkitsandbox"
    tty: bool = False
    ca_bundle: str | None = None
    mounts: list[Mount] = []
    stdin: bool = False
    rows: int = 24
    cols: int = 80


class FolderEntry(msgspec.Struct, frozen=True):
    """One name in a folder. `kind`: file, directory, symlink or other; `target`: a link's, its beginning."""

    name: str
    kind: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    target: str | None = None


class TreeEntry(msgspec.Struct, frozen=True):
    """What stands at a path of a stack. `kind`: file, directory, symlink, other or missing; `content`, `entries`: only if
    asked for."""

    kind: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    content_base64: str | None = None
    entries: list[FolderEntry] | None = None

    @property
    def content(self) -> bytes | None:
        """The file's first bytes. Raises GuestError where they are not base64."""
        if self.content_base64 is None:
            return None
        try:
            return base64.b64decode(self.content_base64, validate=True)
        except binascii.Error as error:
            raise violation("content that is not base64") from error


class BuildGuest:
    """A build machine's guest. Thread-safe: each call opens its own stream. All calls raise GuestError."""

    def __init__(self, vsock: Path) -> None:
        self._vsock = vsock

    def setup(self, drive: str) -> int:
        """Mount the blank work disk `drive` (`vda`); returns its free bytes. Once, before all else."""
        free = ask(self._vsock, {"op": "build-setup", "work": drive}).get("free_bytes")
        if not isinstance(free, int):
            raise violation("no free_bytes")
        return free

    def mount_layer(self, layer: str, drive: str) -> None:
        """Make the read-only ext4 disk `drive` the layer `layer`."""
        ask(self._vsock, {"op": "layer-mount", "layer": layer, "drive": drive})

    def apply_layer(self, layer: str, stack: Sequence[str], chunks: Iterable[bytes]) -> LayerCounts:
        """Unpack an uncompressed OCI layer tar as `layer`, which lies on `stack` (topmost first)."""
        return self._send({"op": "layer-apply", "layer": layer, "stack": list(stack)}, chunks)

    def run_layer(
        self,
        layer: str,
        stack: Sequence[str],
        spec: RunSpec,
        output: Output,
        *,
        secrets: Sequence[bytes] = (),
        started: Callable[[], None] = lambda: None,
    ) -> int:
        """Run a command in a new layer on `stack`; returns its exit code. The layer is kept whatever the code is.

        `secrets`: the contents of the secret mounts, in their order; `started`: called when the mounts are there.
        """
        with self.open_run(layer, stack, spec, secrets=secrets, started=started) as session:
            return session.wait(output)

    @contextmanager
    def open_run(
        self,
        layer: str,
        stack: Sequence[str],
        spec: RunSpec,
        *,
        secrets: Sequence[bytes] = (),
        started: Callable[[], None] = lambda: None,
    ) -> Iterator[ExecSession]:
        """As `run_layer`, for whoever has its input and its terminal in hand. Leaving the block before it has ended kills it
        and drops the layer."""
        request = {"op": "layer-run", "layer": layer, "stack": list(stack), **msgspec.to_builtins(spec)}
        with open_stream(self._vsock, request) as stream:
            for secret in secrets:
                send_data(stream, [secret])
            pid = stream.expect(FrameType.REPLY).json().get("pid")
            if not isinstance(pid, int):
                raise violation("no pid of a step")
            started()
            yield ExecSession(stream, pid)

    @contextmanager
    def accept_agent(self, socket: str) -> Iterator[GuestStream]:
        """A stream that waits for a connection to the socket of a step's ssh mount: a REPLY when there is one, then its
        bytes as DATA both ways. Its step's end is the GuestError `not-found`."""
        with open_stream(self._vsock, {"op": "ssh-accept", "socket": socket}) as stream:
            yield stream

    def copy_into_layer(
        self,
        layer: str,
        stack: Sequence[str],
        items: Sequence[CopyItem],
        chunks: Iterable[bytes],
        *,
        dest: str,
        dest_is_directory: bool,
        chown: str = "",
        chmod: str = "",
        mtime_s: int | None = None,
    ) -> LayerCounts:
        """COPY from the host: `chunks` is a tar whose entries are named after their item's number, `0`, `1/x`.

        `mtime_s`: the time of directories that are made or added to; None: now.
        """
        request = {
            "op": "layer-copy", "layer": layer, "stack": list(stack), "items": msgspec.to_builtins(list(items)),
            "dest": dest, "dest_is_directory": dest_is_directory, "chown": chown, "chmod": chmod, "mtime_s": mtime_s, "from": None,
        }  # fmt: skip
        return self._send(request, chunks)

    def copy_from_stack(
        self,
        layer: str,
        stack: Sequence[str],
        source_stack: Sequence[str],
        paths: Sequence[str],
        *,
        dest: str,
        dest_is_directory: bool,
        chown: str = "",
        chmod: str = "",
        mtime_s: int | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> LayerCounts:
        """COPY --from: `paths` (patterns) are read in `source_stack`, inside the guest.

        `include`: for each path what of that directory is copied, its parents with it (COPY --parents); `exclude`:
        patterns of `.dockerignore`'s kind, an exception with its `!`.
        """
        request = {
            "op": "layer-copy", "layer": layer, "stack": list(stack), "dest": dest,
            "dest_is_directory": dest_is_directory, "chown": chown, "chmod": chmod,
            "mtime_s": mtime_s,
            "from": {
                "stack": list(source_stack), "paths": list(paths), "exclude": list(exclude),
                "include": None if include is None else list(include),
            },
        }  # fmt: skip
        with open_stream(self._vsock, request) as stream:
            return get_counts(stream)

    def capture_layer(
        self, layer: str, write: Callable[[bytes], object], *, mtime_max_s: int | None = None
    ) -> LayerCounts:
        """Hand the layer as an uncompressed OCI layer tar to `write`. `mtime_max_s`: what is newer gets this time, in the
        guest's layer too."""
        return self._take({"op": "layer-capture", "layer": layer, "mtime_max_s": mtime_max_s}, write)

    def drop_layer(self, layer: str) -> None:
        """Forget a layer and free its space."""
        ask(self._vsock, {"op": "layer-drop", "layer": layer})

    def apply_disk(self, drive: str, chunks: Iterable[bytes]) -> LayerCounts:
        """Unpack an uncompressed OCI layer tar onto the tree on the ext4 disk `drive`, whiteouts carried out; then sync."""
        return self._send({"op": "disk-apply", "drive": drive}, chunks)

    def merge_disk(self, stack: Sequence[str], drive: str) -> LayerCounts:
        """Carry the layers of `stack` (topmost first, none of them a disk) out on the tree on the disk `drive`; then sync."""
        with open_stream(self._vsock, {"op": "disk-merge", "stack": list(stack), "drive": drive}) as stream:
            return get_counts(stream)

    def export_tree(self, stack: Sequence[str], write: Callable[[bytes], object]) -> LayerCounts:
        """Hand the merged tree of `stack` as a tar to `write`."""
        return self._take({"op": "tree-export", "stack": list(stack)}, write)

    @contextmanager
    def open_export(self, stack: Sequence[str]) -> Iterator[Iterator[bytes]]:
        """As export_tree, in pieces as they come. Between two of them the guest may take a minute."""

        def deadline() -> Deadline:
            return Deadline(_PATIENCE_S, "waiting for what the guest sends")

        with open_stream(self._vsock, {"op": "tree-export", "stack": list(stack)}) as stream:

            def pieces() -> Iterator[bytes]:
                while payload := stream.expect(FrameType.DATA, deadline()).payload:
                    yield payload
                get_counts(stream, deadline())

            yield pieces()

    def stat(self, stack: Sequence[str], path: str, read_bytes: int = 0, list_entries: int = 0) -> TreeEntry:
        """What stands at `path` in `stack`, links followed inside it, with up to `read_bytes` of its content, or the first
        `list_entries` of its names."""
        request = {
            "op": "tree-stat", "stack": list(stack), "path": path, "read_bytes": read_bytes,
            "list_entries": list_entries,
        }  # fmt: skip
        try:
            return msgspec.convert(ask(self._vsock, request), TreeEntry)
        except msgspec.ValidationError as error:
            raise violation(f"a REPLY to tree-stat that does not fit ({error})") from error

    def _send(self, request: dict[str, Any], chunks: Iterable[bytes]) -> LayerCounts:
        with open_stream(self._vsock, request) as stream:
            send_data(stream, chunks)
            return get_counts(stream)

    def _take(self, request: dict[str, Any], write: Callable[[bytes], object]) -> LayerCounts:
        with open_stream(self._vsock, request) as stream:
            take_data(stream, write)
            return get_counts(stream)
