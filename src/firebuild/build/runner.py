"""Makes one step's layer in the build machine: run or copy, then capture it into the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from firebuild.build.copy import Selection, empty_tar, folder_tar, open_tar
from firebuild.build.output import OutputLog
from firebuild.build.place import locate
from firebuild.build.select import ContextTrees
from firebuild.build.session import BuildSession
from firebuild.build.steps import CopyAction, PlannedStep, ResultLayer, RunAction, WorkdirAction
from firebuild.dockerfile.stages import Dockerfile
from firebuild.errors import BuildError, FirebuildError, GuestError, StepFailedError
from firebuild.events.progress import StepReport
from firebuild.events.text import neutralise
from firebuild.guest.build import BuildGuest, CopyItem, RunSpec
from firebuild.images.archive import open_layer_writer
from firebuild.names import Digest
from firebuild.store.blobs import BlobStore, Descriptor

_BUILD_ERRORS = {
    "no-space": "the work disk of the build machine is full",
    "no-such-user": "the user or group is not in the image",
    "not-a-directory": "a part of the path is not a folder",
    "not-found": "the source does not exist",
    "exists": "something else is already there",
}
_SIGNAL_BASE = 128


class StepRunner:
    """Runs steps of one build. Thread-safe, as its parts are. `clock`: Unix time in nanoseconds."""

    def __init__(
        self,
        dockerfile: Dockerfile,
        session: BuildSession,
        blobs: BlobStore,
        contexts: ContextTrees,
        clock: Callable[[], int],
    ) -> None:
        self._dockerfile = dockerfile
        self._session = session
        self._blobs = blobs
        self._contexts = contexts
        self._clock = clock

    def run(
        self,
        step: PlannedStep,
        report: StepReport,
        below: Sequence[ResultLayer],
        *,
        selection: Selection | None,
        source: Sequence[ResultLayer] | None,
    ) -> ResultLayer:
        """The step's layer, stored. `selection`: what a COPY takes from the context; `source`: the stack it copies from.

        Raises StepFailedError, BuildError and GuestError with their place, DiskFullError, Canceled. A layer that failed
        is dropped.
        """
        log = OutputLog(report)
        try:
            guest = self._session.guest
            stack = self._session.ensure_stack(below)
            name = self._session.new_layer()
            try:
                made = self._make(step, guest, name, stack, log, selection, source)
                layer = self._capture(guest, name, step) if made else self._store_empty()
            except FirebuildError:
                with suppress(GuestError):
                    guest.drop_layer(name)
                raise
            if made:
                self._session.adopt_layer(below, layer, name)
            return layer
        except FirebuildError as error:
            raise self._explain(step, error, log) from error

    def _make(
        self,
        step: PlannedStep,
        guest: BuildGuest,
        name: str,
        stack: list[str],
        log: OutputLog,
        selection: Selection | None,
        source: Sequence[ResultLayer] | None,
    ) -> bool:
        action = step.action
        if isinstance(action, RunAction):
            self._run(step, action, guest, name, stack, log)
            return True
        if isinstance(action, WorkdirAction):
            return self._make_folder(action, guest, name, stack)
        if source is not None:
            guest.copy_from_stack(
                name, stack, self._session.ensure_stack(source), [_absolute(path) for path in action.sources],
                dest=action.dest, dest_is_directory=action.dest_is_directory, chown=action.chown, chmod=action.chmod,
            )  # fmt: skip
            return True
        assert selection is not None, "a COPY from the context has a selection"
        if not selection.items:
            return False
        self._copy(action, selection, guest, name, stack)
        return True

    def _run(
        self, step: PlannedStep, action: RunAction, guest: BuildGuest, name: str, stack: list[str], log: OutputLog
    ) -> None:
        spec = RunSpec(
            argv=list(action.argv),
            env=[*action.env, *action.proxies],
            user=action.user,
            workdir=action.workdir,
            network=action.network,
        )
        code = guest.run_layer(name, stack, spec, log.take)
        if code != 0:
            raise self._failed(step, code, log.last_lines())

    def _failed(self, step: PlannedStep, code: int, lines: list[str]) -> StepFailedError:
        placed = locate(
            self._dockerfile, step.location, BuildError(f"`{_short(step.text)}` failed with exit code {code}")
        )
        output = ["the last lines of its output:", *(f"  {line}" for line in lines)] if lines else ["it wrote nothing"]
        hint = None
        if code == 127:
            hint = "127 means that a command was not found in the image"
        elif code == 126:
            hint = "126 means that a file cannot be executed"
        elif code == _SIGNAL_BASE + 9:
            hint = "137 means that it was killed: the build machine may need more memory"
        details = "\n".join([*output, placed.details or ""]).rstrip()
        return StepFailedError(placed.message, status=code, hint=hint, details=details)

    def _copy(self, action: CopyAction, selection: Selection, guest: BuildGuest, name: str, stack: list[str]) -> None:
        tree = self._contexts.find(action.origin)
        tar = open_tar(tree, selection, inline_mtime_s=self._clock() // 10**9)
        guest.copy_into_layer(
            name, stack, selection.items, tar,
            dest=action.dest, dest_is_directory=action.dest_is_directory, chown=action.chown, chmod=action.chmod,
        )  # fmt: skip

    def _make_folder(self, action: WorkdirAction, guest: BuildGuest, name: str, stack: list[str]) -> bool:
        found = guest.stat(stack, action.path) if stack else None
        if found is not None and found.kind == "directory":
            return False
        if found is not None and found.kind != "missing":
            raise BuildError(f"WORKDIR `{action.path}` is a {found.kind} in the image, not a folder")
        items = [CopyItem("", "directory")]
        tar = [folder_tar(self._clock() // 10**9)]
        guest.copy_into_layer(
            name, stack, items, tar, dest=action.path + "/", dest_is_directory=True, chown=action.user
        )
        return True

    def _capture(self, guest: BuildGuest, name: str, step: PlannedStep) -> ResultLayer:
        with open_layer_writer(self._blobs, f"the layer of `{_short(step.text)}`") as writer:
            guest.capture_layer(name, writer.write)
            layer = writer.commit()
        return _result(layer.descriptor, layer.diff_id)

    def _store_empty(self) -> ResultLayer:
        with open_layer_writer(self._blobs, "an empty layer") as writer:
            writer.write(empty_tar())
            layer = writer.commit()
        return _result(layer.descriptor, layer.diff_id)

    def _explain(self, step: PlannedStep, error: FirebuildError, log: OutputLog) -> FirebuildError:
        if isinstance(error, GuestError):
            said = _BUILD_ERRORS.get(error.guest_code or "")
            if said is not None:
                hint = "give it a larger one with --disk-size" if error.guest_code == "no-space" else error.hint
                plain = BuildError(f"`{_short(step.text)}` failed: {said}: {error.message}", hint=hint)
                return locate(self._dockerfile, step.location, plain)
            lines = log.last_lines()
            details = "\n".join(["the last lines of its output:", *(f"  {line}" for line in lines)]) if lines else ""
            lost = GuestError(
                f"the build machine failed during `{_short(step.text)}`: {error.message}",
                guest_code=error.guest_code,
                hint=error.hint,
                details=error.details,
            )
            return locate(self._dockerfile, step.location, lost, details=details)
        return locate(self._dockerfile, step.location, error)


def _result(descriptor: Descriptor, diff_id: Digest) -> ResultLayer:
    return ResultLayer(
        diff_id=diff_id,
        digest=descriptor.digest,
        size=descriptor.size,
        media_type=descriptor.media_type,
    )


def _absolute(path: str) -> str:
    return "/" + path.lstrip("/")


def _short(text: str, limit: int = 120) -> str:
    text = neutralise(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"
