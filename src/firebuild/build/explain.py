"""What a step's key is made of, written down so that a miss can say what changed since the last time."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from firebuild.build.digest import FieldValue, compute_digest, short_digest
from firebuild.build.mounts import describe_mounts
from firebuild.build.sources.url import redact_urls
from firebuild.build.steps import (
    ContextSource,
    CopyAction,
    ImageSource,
    PlannedStep,
    RunAction,
    StageSource,
    WorkdirAction,
)

KEY_VERSION = "firebuild-step-1"
_NAMES_SHOWN = 2


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parts of one key. Values of arguments and variables are kept as digests only, so that none is given away.

    `position`: the step's place in its Dockerfile; `text`: the instruction as written; `below`: the chain id under it;
    `on_base`: nothing but the base image is under it; `command`: digest of the expanded instruction; `settings`, `args`,
    `env`, `files`: name to short digest; `sources`: digest of all copied content; `origin`: the stage or image copied
    from, with `origin_chain` as its content; `mounts`: number and target to the digest of what a mount reads.
    """

    position: str
    text: str
    below: str
    on_base: bool
    command: str
    platform: str
    settings: dict[str, str] = {}
    args: dict[str, str] = {}
    env: dict[str, str] = {}
    files: dict[str, str] = {}
    sources: str = ""
    origin: str = ""
    origin_chain: str = ""
    mounts: dict[str, str] = {}


def explain_step(
    step: PlannedStep,
    *,
    below: str,
    on_base: bool,
    platform: str,
    sources: str = "",
    files: Mapping[str, str] | None = None,
    origin_chain: str = "",
    mounts: Mapping[str, str] | None = None,
) -> Explanation:
    """The explanation of a step. `sources`: of its selection; `files`: of that and of its mounts; `origin_chain`: of the
    stage or image copied from; `mounts`: of what its mounts read."""
    action = step.action
    settings: dict[str, str] = {}
    env: dict[str, str] = {}
    origin = ""
    if isinstance(action, RunAction):
        command: FieldValue = action.argv
        if action.script is not None:
            command = [*action.argv, action.script.data.hex()]
        settings = {"user": action.user, "workdir": action.workdir, "network": action.network}
        if action.mounts:
            settings["mounts"] = "\0".join(describe_mounts(action))
        env = {name: short_digest(value) for name, _, value in (pair.partition("=") for pair in action.env)}
    elif isinstance(action, CopyAction):
        command = [*map(redact_urls, action.sources), *(each.name for each in action.inline), action.dest]
        settings = {"owner": action.chown, "mode": action.chmod}
        if action.exclude or action.parents or action.link:
            settings["flags"] = "\0".join(_copy_flags(action))
        if isinstance(action.origin, ContextSource):
            origin = f"context {action.origin.name}"
        elif action.origin is not None:
            stage = isinstance(action.origin, StageSource)
            origin = f"stage {action.origin.label}" if isinstance(action.origin, StageSource) else "image"
            origin += "" if stage else f" {getattr(action.origin, 'reference', '')}"
    else:
        command = [action.path]
        settings = {"user": action.user}
    kind = {RunAction: "RUN", CopyAction: "COPY", WorkdirAction: "WORKDIR"}[type(action)]
    args = {name: short_digest(value) for name, value in step.args.items()} if kind == "RUN" else {}
    return Explanation(
        position=step.position,
        text=step.text,
        below=below,
        on_base=on_base,
        command=compute_digest(kind, {"command": command}),
        platform=platform,
        settings={name: short_digest(value) for name, value in settings.items()},
        args=args,
        env={name: value for name, value in env.items() if name not in args},
        files=dict(files or {}),
        sources=sources,
        origin=origin,
        origin_chain=origin_chain,
        mounts=dict(mounts or {}),
    )


def compute_key(step: PlannedStep, explanation: Explanation) -> str:
    """The step's key: of everything that decides its result, in full length, 64 hex digits."""
    action = step.action
    fields: dict[str, FieldValue] = {
        "below": explanation.below,
        "platform": explanation.platform,
        "sources": explanation.sources,
        "origin": explanation.origin_chain,
    }
    if isinstance(action, RunAction):
        fields |= {"argv": action.argv, "env": action.env, "user": action.user, "workdir": action.workdir}
        fields |= {"network": action.network, "kind": "run"}
        # The contents of caches and secrets are no part of it, as in BuildKit.
        if action.mounts:
            fields |= {"mounts": describe_mounts(action)}
            fields |= {"mounted": [part for pair in explanation.mounts.items() for part in pair]}
        if action.script is not None:
            fields |= {"script": action.script.data}
    elif isinstance(action, CopyAction):
        # Which host paths the sources are named by is no part of it: names and contents are in `sources`.
        fields |= {"dest": action.dest, "chown": action.chown, "chmod": action.chmod, "kind": "copy"}
        fields |= {"unpack": str(action.unpack)}
        if isinstance(action.origin, StageSource | ImageSource):
            fields |= {"paths": action.sources}
        if action.exclude or action.parents or action.link:
            fields |= {"flags": _copy_flags(action)}
    else:
        fields |= {"path": action.path, "user": action.user, "kind": "workdir"}
    return compute_digest(KEY_VERSION, fields)


def _copy_flags(action: CopyAction) -> list[str]:
    flags = [name for name, given in (("link", action.link), ("parents", action.parents)) if given]
    return [*flags, *(f"exclude {pattern}" for pattern in action.exclude)]


def explain_miss(old: Explanation | None, new: Explanation) -> str | None:
    """Why a step is not the one of last time: `file app.py changed`. None if there is no last time."""
    if old is None:
        return None
    reasons: list[str] = []
    if old.command != new.command:
        reasons.append("the command changed")
    reasons += _differences("build argument", old.args, new.args)
    reasons += _differences("environment variable", old.env, new.env)
    reasons += [f"the {name} changed" for name in sorted(new.settings) if old.settings.get(name) != new.settings[name]]
    if old.sources != new.sources:
        files = _differences("file", old.files, new.files) if old.files and new.files else []
        reasons += files or ["the copied files changed"]
    if old.mounts != new.mounts:
        files = _differences("file", old.files, new.files) if old.files and new.files else []
        changed = sorted({name.partition(" ")[2] for name, _ in old.mounts.items() ^ new.mounts.items()})
        reasons += files or [f"what is mounted at {target} changed" for target in changed]
    if old.origin_chain != new.origin_chain:
        reasons.append(f"{new.origin} changed" if old.origin == new.origin else "it copies from elsewhere")
    if old.platform != new.platform:
        reasons.append("the platform changed")
    if old.below != new.below:
        # Anything above names itself; that what is below changed is the reason only if there is no nearer one.
        below = "base image changed" if new.on_base and old.on_base else "an earlier step changed"
        reasons += [below] if not reasons or new.on_base else []
    return ", ".join(reasons) if reasons else None


def _differences(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    changes = [f"{what} {name} changed" for name in sorted(new.keys() & old.keys()) if new[name] != old[name]]
    changes += [f"{what} {name} is new" for name in sorted(new.keys() - old.keys())]
    changes += [f"{what} {name} is gone" for name in sorted(old.keys() - new.keys())]
    if len(changes) > _NAMES_SHOWN:
        more = len(changes) - _NAMES_SHOWN
        changes = [*changes[:_NAMES_SHOWN], f"{more} more {what}{'s' if more > 1 else ''}"]
    return changes
