"""What a step's key is made of, written down so that a miss can say what changed since the last time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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
# How like two texts must be for the one to be the other's next version; how many are compared, and how much of each.
_LIKENESS = 0.6
_COMPARED = 100
_COMPARED_TEXT = 400
_SETTING_WORDS = {
    "user": "the user changed",
    "workdir": "the working directory changed",
    "network": "its network changed",
    "mounts": "its mounts changed",
    "shell": "the shell that runs it changed",
    "script": "its heredoc changed",
    "inline": "its heredoc changed",
    "owner": "its --chown changed",
    "mode": "its --chmod changed",
    "flags": "its flags changed",
    "epoch": "SOURCE_DATE_EPOCH changed",
}


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parts of one key. Values of arguments and variables are kept as digests only, so that none is given away.

    `kind`: RUN, COPY (ADD too) or WORKDIR; `base`: what its stage builds upon, in words;
    `position`: the step's place in its Dockerfile; `text`: the instruction as written; `below`: the chain id under it;
    `on_base`: it is the first of its stage; `command`: digest of the expanded instruction; `settings`, `args`,
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
    kind: str = ""
    base: str = ""


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
    base: str = "",
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
            settings["script"] = action.script.data.hex()
        settings |= {"shell": "\0".join(action.argv[:-1])} if action.argv[:1] != action.argv else {}
        settings |= {"user": action.user, "workdir": action.workdir, "network": action.network}
        if action.mounts:
            settings["mounts"] = "\0".join(describe_mounts(action))
        env = {name: short_digest(value) for name, _, value in (pair.partition("=") for pair in action.env)}
    elif isinstance(action, CopyAction):
        command = [*map(redact_urls, action.sources), *(each.name for each in action.inline), action.dest]
        settings = {"owner": action.chown, "mode": action.chmod}
        if action.inline:
            settings["inline"] = "\0".join(each.data.hex() for each in action.inline)
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
    if step.epoch_s is not None:
        settings["epoch"] = str(step.epoch_s)
    kind = {RunAction: "RUN", CopyAction: "COPY", WorkdirAction: "WORKDIR"}[type(action)]
    args = {name: short_digest(value) for name, value in step.args.items()}
    env |= {name: short_digest(value) for name, value in step.variables.items()}
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
        kind=kind,
        base=base,
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
    if step.epoch_s is not None:
        fields |= {"epoch": str(step.epoch_s)}
    return compute_digest(KEY_VERSION, fields)


def _copy_flags(action: CopyAction) -> list[str]:
    flags = [name for name, given in (("link", action.link), ("parents", action.parents)) if given]
    return [*flags, *(f"exclude {pattern}" for pattern in action.exclude)]


def find_nearest(
    candidates: Sequence[Explanation], new: Explanation, siblings: Collection[str] = ()
) -> Explanation | None:
    """The record that a miss is best compared with, of those of its stage (the last used first); None if none is like it.

    One of the same text, and of those the one with the fewest differences; else one whose text is like it, unless that
    is the text of another step of this build (`siblings`).
    """
    taken = set(siblings)
    same = [old for old in candidates if old.text == new.text and old.kind in ("", new.kind)]
    same = same or [old for old in candidates if old.command == new.command and old.text not in taken]
    if same:
        return min(same, key=lambda old: (_count_differences(old, new), old.position != new.position))
    best, score = None, _LIKENESS
    for old in candidates[:_COMPARED]:
        if old.kind == new.kind and old.text not in taken:
            from difflib import SequenceMatcher

            matcher = SequenceMatcher(None, old.text[:_COMPARED_TEXT], new.text[:_COMPARED_TEXT], autojunk=False)
            likeness = matcher.ratio() if matcher.quick_ratio() > score else 0.0
            if likeness > score:
                best, score = old, likeness
    return best


def _count_differences(old: Explanation, new: Explanation) -> int:
    maps = ((old.args, new.args), (old.env, new.env), (old.settings, new.settings), (old.files, new.files))
    count = sum(before.get(name) != after.get(name) for before, after in maps for name in before.keys() | after.keys())
    fields = ((old.below, new.below), (old.origin_chain, new.origin_chain), (old.command, new.command))
    return count + sum(before != after for before, after in fields)


def explain_miss(old: Explanation | None, new: Explanation) -> str | None:
    """Why a step is not the one of last time: `file app.py changed`. None if there is no last time."""
    if old is None:
        return None
    reasons = _list_changes(old, new)
    if old.below != new.below:
        # Anything above names itself; that what is below changed is the reason only if there is no nearer one.
        if new.on_base and old.on_base:
            reasons.insert(0, _explain_base(old, new))
        elif not reasons:
            same_place = old.position == new.position and old.on_base == new.on_base
            reasons.append("an earlier step changed" if same_place else "the steps above it changed")
    return ", ".join(reasons) if reasons else None


def _list_changes(old: Explanation, new: Explanation) -> list[str]:
    """What changed in the step itself."""
    reasons = _differences("build argument", old.args, new.args)
    reasons += _differences("environment variable", old.env, new.env)
    settings = [
        name for name in sorted({*old.settings, *new.settings}) if old.settings.get(name) != new.settings.get(name)
    ]
    if old.text != new.text:
        settings = [name for name in settings if name != "shell"]  # it may be another command's first words
    reasons += [_SETTING_WORDS.get(name, f"the {name} changed") for name in settings]
    if old.command != new.command and (old.text != new.text or not reasons):
        reasons.insert(0, "the command changed" if new.kind == "RUN" else "the instruction changed")
    files = _differences("file", old.files, new.files) if old.files and new.files else []
    if old.sources != new.sources and "inline" not in settings:
        reasons += files or ["the copied files changed"]
    if old.mounts != new.mounts:
        changed = sorted({name.partition(" ")[2] for name, _ in old.mounts.items() ^ new.mounts.items()})
        reasons += files or [f"what is mounted at {target} changed" for target in changed]
    if old.origin_chain != new.origin_chain:
        reasons.append(f"{new.origin} changed" if old.origin == new.origin else f"it copies from {new.origin}")
    if old.platform != new.platform:
        reasons.append("the platform changed")
    return reasons


def _explain_base(old: Explanation, new: Explanation) -> str:
    if old.base and old.base != new.base:
        return f"it builds upon {new.base}, and built upon {old.base}"
    return f"{new.base or 'the base image'} changed"


def _differences(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    changes = [f"{what} {name} changed" for name in sorted(new.keys() & old.keys()) if new[name] != old[name]]
    changes += [f"{what} {name} is new" for name in sorted(new.keys() - old.keys())]
    changes += [f"{what} {name} is gone" for name in sorted(old.keys() - new.keys())]
    if len(changes) > _NAMES_SHOWN:
        more = len(changes) - _NAMES_SHOWN
        changes = [*changes[:_NAMES_SHOWN], f"{more} more {what}{'s' if more > 1 else ''}"]
    return changes
