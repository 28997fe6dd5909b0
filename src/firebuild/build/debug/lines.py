"""Lines of a Dockerfile and steps of a plan: which step a line means, and what an edit changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from firebuild.build.steps import Plan, PlannedStage, PlannedStep
from firebuild.dockerfile.errors import printable
from firebuild.dockerfile.stages import Dockerfile
from firebuild.errors import UsageError
from firebuild.events.text import neutralise
from firebuild.store.images import Image

_TEXT_LENGTH = 60


def get_step_at(plan: Plan, dockerfile: Dockerfile, line: int) -> PlannedStep:
    """The step whose instruction stands at `line` (from 1), any of its lines. Raises UsageError that names the nearest."""
    steps = [step for stage in plan.stages for step in stage.steps]
    for step in steps:
        if step.location.start_line <= line <= step.location.end_line:
            return step
    name = printable(dockerfile.source.name)
    steps.sort(key=lambda step: step.location.start_line)
    before = [step for step in steps if step.location.end_line < line][-1:]
    after = [step for step in steps if step.location.start_line > line][:1]
    nearest = " and ".join(f"line {step.location.start_line} (`{shorten(step)}`)" for step in before + after)
    one = len(before + after) == 1
    raise UsageError(
        f"--debug-at {line}: line {line} of `{name}` belongs to no step of this build{_find_reason(dockerfile, line)}",
        hint=f"the nearest step{' is' if one else 's are'} {nearest}" if nearest else "this build has no steps",
    )


def _find_reason(dockerfile: Dockerfile, line: int) -> str:
    for stage in dockerfile.stages:
        for instruction in (stage.start, *stage.instructions):
            if instruction.location.start_line <= line <= instruction.location.end_line:
                if instruction.name in ("RUN", "COPY", "ADD", "WORKDIR"):
                    return f": the stage `{stage.label}` is not needed for it"
                return f": {instruction.name} makes no layer"
    return ""


def shorten(step: PlannedStep) -> str:
    """A step's instruction as a short text, fit to be shown."""
    text = neutralise(" ".join(step.text.split()))
    return text if len(text) <= _TEXT_LENGTH else text[: _TEXT_LENGTH - 1] + "…"


# Digests of what steps take from outside, by the step's id.
Contents = Mapping[str, object]


def list_changes(old: Plan, new: Plan, step: PlannedStep, old_contents: Contents, new_contents: Contents) -> list[str]:
    """Sentences about what of the old plan no longer holds, as seen from its step `step`, which is to run again."""
    sentences: list[str] = []
    own = next(stage for stage in old.stages if step in stage.steps)
    before = {stage.label: stage for stage in old.stages}
    for stage in new.stages:
        known = before.get(stage.label)
        if known is None:
            sentences.append(f"the stage `{stage.label}` is new")
            continue
        if _base_of(known, old) != _base_of(stage, new):
            sentences.append(f"the base of the stage `{stage.label}` changed: its steps run again")
            continue
        number = _find_difference(known, stage, old_contents, new_contents)
        if stage.label == own.label:
            sentences += _describe_own(stage, own.steps.index(step), number)
        elif number is not None:
            sentences.append(f"the stage `{stage.label}` changed{_at(stage, number)}: its steps from there run again")
    if own.label not in {stage.label for stage in new.stages}:
        sentences.append(f"the stage `{own.label}` is no longer part of the build")
    return sentences


def _describe_own(stage: PlannedStage, index: int, number: int | None) -> list[str]:
    if number is None or number > index:
        again = stage.steps[index]
        return [f"`{shorten(again)}` is as it was: it runs again"]
    if number == index and number < len(stage.steps):
        return [f"line {stage.steps[number].location.start_line} runs as it is now: `{shorten(stage.steps[number])}`"]
    if number < len(stage.steps):
        changed = stage.steps[number]
        return [
            f"line {changed.location.start_line}, before the step that was stopped at, changed: `{shorten(changed)}` "
            "and what follows it run again"
        ]
    return ["the step that was stopped at is no longer there"]


def _at(stage: PlannedStage, number: int) -> str:
    return f" at line {stage.steps[number].location.start_line}" if number < len(stage.steps) else ""


def _base_of(stage: PlannedStage, plan: Plan) -> str | None:
    if isinstance(stage.base, int):
        return f"stage {plan.get_stage(stage.base).label}"
    return stage.base.chain_id if isinstance(stage.base, Image) else None


def _find_difference(
    old: PlannedStage, new: PlannedStage, old_contents: Contents, new_contents: Contents
) -> int | None:
    """The number of the first step that is not the same in both, or None. It may be one past the last of either."""
    for number, (one, other) in enumerate(zip(old.steps, new.steps, strict=False)):
        same = (one.action, one.args) == (other.action, other.args)
        if not same or old_contents.get(one.id) != new_contents.get(other.id):
            return number
    shorter = min(len(old.steps), len(new.steps))
    return None if len(old.steps) == len(new.steps) else shorter
