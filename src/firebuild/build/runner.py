"""Makes one step's layer in the build machine: run or copy, then capture it into the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from firebuild.build.copy import Selection
from firebuild.build.filters import parse_parents_source, render_excludes
from firebuild.build.output import OutputLog
from firebuild.build.place import locate
from firebuild.build.secrets import Lent, list_following
from firebuild.build.stepmounts import MountSelections, StepMounts
from firebuild.build.steps import CopyAction, Plan, PlannedStep, ResultLayer, RunAction, WorkdirAction
from firebuild.dockerfile.ignore import parse_excludes
from firebuild.errors import BuildError, FirebuildError, GuestError, StepFailedError
from firebuild.events.progress import Canceled, StepReport
from firebuild.events.text import neutralise
from firebuild.guest.items import CopyItem

if TYPE_CHECKING:
    from firebuild.build.debug.model import Attempt
    from firebuild.build.select import ContextTrees
    from firebuild.build.session import BuildSession
    from firebuild.dockerfile.stages import Dockerfile
    from firebuild.guest.build import BuildGuest
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
# strerror(ENOSPC): what a program says of a full disk, in the words of every C library that images have.
_FULL = "No space left on device"


class StepRunner:
    """Runs steps of one build. Thread-safe, as its parts are. `clock`: Unix time in nanoseconds."""

    def __init__(
        self,
        dockerfile: Dockerfile,
        session: BuildSession,
        blobs: BlobStore,
        contexts: ContextTrees,
        clock: Callable[[], int],
        lent: Lent,
        mounts: MountSelections,
        epoch_s: int | None = None,
        ca_bundle: str | None = None,
    ) -> None:
        self._dockerfile = dockerfile
        self._session = session
        self._blobs = blobs
        self._contexts = contexts
        self._clock = clock
        self._lent = lent
        self.mounts = StepMounts(session, contexts, lent, mounts)
        self._epoch_s = epoch_s
        self.ca_bundle = ca_bundle

    def check_lent(self, plan: Plan, step: PlannedStep) -> None:
        """Raises BuildError, with its place, if this step, which has to run, or one that follows from it requires what nobody
        lends: better now than when those before it have run."""
        for following in list_following(plan, step.id):
            error = self._lent.find_missing(following)
            if error is not None:
                raise locate(self._dockerfile, following.location, error)

    def _time_s(self) -> int:
        """The time of what a build makes itself: SOURCE_DATE_EPOCH, or now."""
        return self._epoch_s if self._epoch_s is not None else self._clock() // 10**9

    def run(
        self,
        step: PlannedStep,
        report: StepReport,
        below: Sequence[ResultLayer],
        *,
        selection: Selection | None,
        source: Sequence[ResultLayer] | None,
        mounted: Mapping[int, Sequence[ResultLayer]],
        attempt: Attempt | None = None,
    ) -> ResultLayer:
        """The step's layer, stored. `selection`: what a COPY takes from the context; `source`: the stack it copies from;
        `mounted`: the stacks that a RUN's mounts read, by their numbers.

        Raises StepFailedError, BuildError and GuestError with their place, DiskFullError, Canceled. A layer that failed
        is dropped; with `attempt` it stays there, for whoever looks at it and then calls `discard`.
        """
        log = OutputLog(report)
        try:
            guest = self._session.guest
            linked = isinstance(step.action, CopyAction) and step.action.link
            stack = [] if linked else self._session.ensure_stack(below)
            name = self._session.new_layer()
            if attempt is not None:
                attempt.stack = stack
            try:
                if isinstance(step.action, RunAction):
                    self._run(step, step.action, guest, name, stack, log, mounted)
                    made = True
                else:
                    made = self._make(step.action, guest, name, stack, selection, source)
                layer = self._capture(guest, name, step) if made else self._store_empty()
            except FirebuildError as error:
                if attempt is not None and isinstance(error, StepFailedError):
                    attempt.layer, attempt.stack = name, [name, *stack]
                else:
                    self._drop(guest, name)
                raise
            if made:
                self._session.adopt_layer(below, layer, name)
            return layer
        except FirebuildError as error:
            raise self._explain(step, error, log) from error

    @staticmethod
    def _drop(guest: BuildGuest, name: str) -> None:
        with suppress(GuestError):
            guest.drop_layer(name)

    def discard(self, attempt: Attempt) -> None:
        """Drop what a failed step has left; nothing of it where the machine has gone."""
        if attempt.layer is not None:
            with suppress(Canceled):
                self._drop(self._session.guest, attempt.layer)
            attempt.layer = None

    def _make(
        self,
        action: CopyAction | WorkdirAction,
        guest: BuildGuest,
        name: str,
        stack: list[str],
        selection: Selection | None,
        source: Sequence[ResultLayer] | None,
    ) -> bool:
        if isinstance(action, WorkdirAction):
            return self._make_folder(action, guest, name, stack)
        if source is not None:
            parts = [parse_parents_source(path) for path in action.sources] if action.parents else None
            paths = [part.base for part in parts] if parts is not None else action.sources
            guest.copy_from_stack(
                name, stack, self._session.ensure_stack(source), [_absolute(path) for path in paths],
                dest=action.dest, dest_is_directory=action.dest_is_directory, chown=action.chown, chmod=action.chmod,
                mtime_s=self._time_s(), include=None if parts is None else [part.include for part in parts],
                exclude=render_excludes(parse_excludes(action.exclude)),
            )  # fmt: skip
            return True
        assert selection is not None, "a COPY from the context has a selection"
        if not selection.items:
            return False
        self._copy(action, selection, guest, name, stack)
        return True

    def _run(
        self,
        step: PlannedStep,
        action: RunAction,
        guest: BuildGuest,
        name: str,
        stack: list[str],
        log: OutputLog,
        mounted: Mapping[int, Sequence[ResultLayer]],
    ) -> None:
        from firebuild.guest.build import RunSpec

        with self.mounts.open(step, action, guest, mounted) as ready:
            spec = RunSpec(
                argv=list(action.argv),
                env=[*action.env, *action.proxies],
                user=action.user,
                workdir=action.workdir,
                network=action.network,
                ca_bundle=self.ca_bundle,
                mounts=ready.mounts,
            )
            code = guest.run_layer(name, stack, spec, log.take, secrets=ready.secrets, started=ready.start)
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
            hint = (
                "137 means that it was killed, mostly because the build machine ran out of memory: "
                "give it more with --mem, or FIREBUILD_BUILD_MEM"
            )
        elif any(_FULL in line for line in lines):
            hint = "where that is the build machine's work disk, give it a larger one with --disk-size, or FIREBUILD_BUILD_DISK"
        details = "\n".join([*output, placed.details or ""]).rstrip()
        return StepFailedError(placed.message, status=code, hint=hint, details=details)

    def _copy(self, action: CopyAction, selection: Selection, guest: BuildGuest, name: str, stack: list[str]) -> None:
        from firebuild.build.copytar import open_tar

        tree = self._contexts.find(action.origin)
        now_s = self._time_s()
        guest.copy_into_layer(
            name, stack, selection.items, open_tar(tree, selection, inline_mtime_s=now_s), mtime_s=now_s,
            dest=action.dest, dest_is_directory=action.dest_is_directory, chown=action.chown, chmod=action.chmod,
        )  # fmt: skip

    def _make_folder(self, action: WorkdirAction, guest: BuildGuest, name: str, stack: list[str]) -> bool:
        found = guest.stat(stack, action.path) if stack else None
        if found is not None and found.kind == "directory":
            return False
        if found is not None and found.kind != "missing":
            raise BuildError(f"WORKDIR `{action.path}` is a {found.kind} in the image, not a folder")
        from firebuild.build.copytar import folder_tar

        items = [CopyItem("", "directory")]
        now_s = self._time_s()
        guest.copy_into_layer(
            name, stack, items, [folder_tar(now_s)], mtime_s=now_s,
            dest=action.path + "/", dest_is_directory=True, chown=action.user,
        )  # fmt: skip
        return True

    def _capture(self, guest: BuildGuest, name: str, step: PlannedStep) -> ResultLayer:
        from firebuild.images.archive import open_layer_writer

        with open_layer_writer(self._blobs, f"the layer of `{_short(step.text)}`") as writer:
            guest.capture_layer(name, writer.write, mtime_max_s=self._epoch_s)
            layer = writer.commit()
        return _result(layer.descriptor, layer.diff_id)

    def _store_empty(self) -> ResultLayer:
        from firebuild.build.copytar import empty_tar
        from firebuild.images.archive import open_layer_writer

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
