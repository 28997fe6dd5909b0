"""The mounts of one step on their way to the guest: files sent, stacks named, secrets read, agents lent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import msgspec

from firebuild.build.copy import InlineContent, Selection
from firebuild.build.digest import FieldHash, sha256_hex
from firebuild.build.mounts import list_origins
from firebuild.build.place import located
from firebuild.build.secrets import Lent, load_secret
from firebuild.build.select import ContextTrees, select_path
from firebuild.build.steps import (
    BindMount,
    CacheMount,
    ImageSource,
    Origin,
    Plan,
    PlannedStep,
    ResultLayer,
    RunAction,
    SecretMount,
    SshMount,
    StageSource,
    TmpfsMount,
)
from firebuild.dockerfile.programs import SCRIPT_FOLDER, SCRIPT_MODE
from firebuild.guest import mounts as wire
from firebuild.guest.items import CopyItem

if TYPE_CHECKING:
    from firebuild.build.agents import AgentLoan
    from firebuild.build.session import BuildSession
    from firebuild.dockerfile.stages import Dockerfile
    from firebuild.events.progress import Reporter
    from firebuild.guest.build import BuildGuest

MountSelections = Mapping[tuple[str, int], Selection]
# Where the guest has what was sent for a mount.
_SENT = "/source"


class ReadyMounts(msgspec.Struct):
    """What goes over the stream. `secrets`: contents, in the order of their mounts; `loans`: to start when the step runs."""

    mounts: list[wire.Mount] = []
    secrets: list[bytes] = []
    loans: list[AgentLoan] = []

    def start(self) -> None:
        """The step runs: its agents are served."""
        for loan in self.loans:
            loan.start()


def select_mounts(
    plan: Plan, dockerfile: Dockerfile, trees: ContextTrees, reporter: Reporter
) -> dict[tuple[str, int], Selection]:
    """What mounts take from build contexts, by step and number: found and hashed before any machine boots."""
    found = [
        (step, number, origin, source)
        for stage in plan.stages
        for step in stage.steps
        if isinstance(step.action, RunAction)
        for number, origin, source in list_origins(step.action)
        if not isinstance(origin, StageSource | ImageSource)
    ]
    selections: dict[tuple[str, int], Selection] = {}
    if found:
        with reporter.step("[internal] load what is mounted from the build context"):
            for step, number, origin, source in found:
                with located(dockerfile, step.location):
                    selections[step.id, number] = select_path(trees.find(origin), source)
    return selections


class StepMounts:
    """Makes mounts ready. Thread-safe."""

    def __init__(self, session: BuildSession, contexts: ContextTrees, lent: Lent, selections: MountSelections) -> None:
        self._session = session
        self._contexts = contexts
        self._lent = lent
        self._selections = selections
        self._sockets = itertools.count(1)

    @contextmanager
    def open(
        self,
        step: PlannedStep,
        action: RunAction,
        guest: BuildGuest,
        sources: Mapping[int, Sequence[ResultLayer]],
        *,
        keep: bool = True,
    ) -> Iterator[ReadyMounts]:
        """The mounts of a step, for the block. `sources`: the stacks that mounts read, by their numbers.

        Raises what sending to the guest and reading secrets raise. A step waits here for caches that others have alone;
        who only looks (`keep` False) does not, and leaves nothing in them.
        """
        ready = ReadyMounts()
        with ExitStack() as held:
            for number, mount in enumerate(action.mounts):
                if isinstance(mount, BindMount):
                    ready.mounts.append(self._bind(step, number, mount, guest, sources))
                elif isinstance(mount, TmpfsMount):
                    ready.mounts.append(wire.TmpfsMount(mount.target, mount.size_bytes, mount.read_only))
                elif isinstance(mount, CacheMount):
                    ready.mounts.append(self._cache(step, number, mount, guest, sources, keep))
                elif isinstance(mount, SecretMount):
                    self._add_secret(mount, ready)
                else:
                    self._add_agent(mount, guest, ready, held)
            if action.script is not None:
                ready.mounts.append(self._script(action, guest))
            if keep:
                held.enter_context(self._session.caches.hold(step))
            yield ready

    def _bind(
        self,
        step: PlannedStep,
        number: int,
        mount: BindMount,
        guest: BuildGuest,
        sources: Mapping[int, Sequence[ResultLayer]],
    ) -> wire.BindMount:
        if mount.empty:
            return wire.BindMount(mount.target, [], mount.source, mount.read_only)
        stack, source = self._open(step, number, mount.origin, mount.source, guest, sources)
        return wire.BindMount(mount.target, stack, source, mount.read_only)

    def _cache(
        self,
        step: PlannedStep,
        number: int,
        mount: CacheMount,
        guest: BuildGuest,
        sources: Mapping[int, Sequence[ResultLayer]],
        keep: bool,
    ) -> wire.CacheMount:
        seed = None
        if mount.origin is not None:
            stack, source = self._open(step, number, mount.origin, mount.source, guest, sources)
            layers = sources.get(number)
            content = FieldHash("cache-seed-1")
            content.add("layers", [layer.diff_id for layer in layers] if layers is not None else [])
            content.add("files", self._selections[step.id, number].digest if layers is None else "")
            content.add("source", mount.source)
            seed = wire.CacheSeed(content.hexdigest(), stack, source)
        drive = self._session.caches.get_drive(step, mount)
        return wire.CacheMount(mount.target, drive, mount.read_only, mount.mode, mount.uid, mount.gid, seed, keep)

    def _open(
        self,
        step: PlannedStep,
        number: int,
        origin: Origin | None,
        source: str,
        guest: BuildGuest,
        sources: Mapping[int, Sequence[ResultLayer]],
    ) -> tuple[list[str], str]:
        """The guest's stack that a mount reads, and the path in it. Files of a context are sent."""
        if isinstance(origin, StageSource | ImageSource):
            return self._session.ensure_stack(sources[number]), source
        selection = self._selections[step.id, number]
        tree = self._contexts.find(origin)

        def send(name: str) -> None:
            from firebuild.build.copytar import open_tar

            tar = open_tar(tree, selection, inline_mtime_s=0)
            guest.copy_into_layer(name, [], selection.items, tar, dest=_SENT, dest_is_directory=False)

        return [self._session.ensure_files(f"context {selection.digest}", send)], _SENT

    def _script(self, action: RunAction, guest: BuildGuest) -> wire.BindMount:
        assert action.script is not None, "asked for only where there is one"
        return self.mount_script(action.script, SCRIPT_FOLDER, guest)

    def mount_script(self, script: InlineContent, folder: str, guest: BuildGuest) -> wire.BindMount:
        """A folder with one file of firebuild's in it, which every user can read and run."""
        item = CopyItem(script.name, "file")
        selection = Selection(items=(item,), entries=(), inline=(script,), digest="", files={}, unmatched=())

        def send(name: str) -> None:
            from firebuild.build.copytar import open_tar

            tar = open_tar(None, selection, inline_mtime_s=0)
            guest.copy_into_layer(
                name, [], [item], tar, dest=_SENT + "/", dest_is_directory=True, chmod=f"{SCRIPT_MODE:o}"
            )

        key = f"script {sha256_hex(script.data)} {script.name}"
        return wire.BindMount(folder, [self._session.ensure_files(key, send)], _SENT)

    def _add_secret(self, mount: SecretMount, ready: ReadyMounts) -> None:
        source = self._lent.secrets.get(mount.id)
        if source is None:
            return  # nobody requires it: that was checked
        ready.secrets.append(load_secret(mount.id, source))
        ready.mounts.append(wire.SecretMount(mount.target, mount.env, mount.mode, mount.uid, mount.gid))

    def _add_agent(self, mount: SshMount, guest: BuildGuest, ready: ReadyMounts, held: ExitStack) -> None:
        from firebuild.build.agents import AgentLoan

        agent = self._lent.agents.get(mount.id)
        if agent is None:
            return
        name = f"a{next(self._sockets)}"
        ready.loans.append(held.enter_context(AgentLoan(guest, name, agent)))
        ready.mounts.append(wire.SshMount(mount.target, name, mount.mode, mount.uid, mount.gid))


def digest_mounts(
    step: PlannedStep, sources: Mapping[int, Sequence[ResultLayer]], selections: MountSelections,
    chain_id: Callable[[Sequence[ResultLayer]], str],
) -> dict[str, str]:  # fmt: skip
    """The contents that a step's mounts read, by target: full digests."""
    if not isinstance(step.action, RunAction):
        return {}
    contents: dict[str, str] = {}
    for number, _, _ in list_origins(step.action):
        selection = selections.get((step.id, number))
        digest = selection.digest if selection is not None else chain_id(sources[number])
        contents[f"{number} {step.action.mounts[number].target}"] = digest
    return contents
