"""COPY --parents and --exclude: which entries of a copied folder are taken, and which folders must be there for them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import msgspec

from firebuild.build.glob import has_wildcard
from firebuild.build.tree import ContextTree, Entry
from firebuild.dockerfile.errors import shown
from firebuild.dockerfile.ignore import IgnorePattern, IgnoreRules, Verdict, clean_path, parse_excludes
from firebuild.errors import DockerfileError


class ParentsSource(msgspec.Struct, frozen=True):
    """A source of COPY --parents. `base`: the folders (a pattern) whose content is copied; `include`: what of it, as a
    pattern of `.dockerignore`'s kind; `required`: it names one path, which must be there."""

    base: str
    include: str
    required: bool


def parse_parents_source(source: str) -> ParentsSource:
    """`a/./b/c` keeps the folders behind the pivot `/./` only, as in BuildKit. Raises DockerfileError."""
    base, pivot, pattern = source.partition("/./")
    if not pivot:
        base, pattern = "/", source
    include = clean_path("/" + pattern).lstrip("/")
    if not include:
        # All of it: `**` matches everything below.
        include = "**"
    parsed = parse_excludes([include])
    if len(parsed.patterns) != 1 or parsed.patterns[0].exception:
        raise DockerfileError(f"{shown(source)} is no source for --parents")
    return ParentsSource(base or "/", parsed.patterns[0].text, not has_wildcard(base) and not has_wildcard(include))


def render_excludes(rules: IgnoreRules) -> list[str]:
    """The patterns as a guest takes them: exceptions with their `!`."""
    return [f"!{pattern.text}" if pattern.exception else pattern.text for pattern in rules.patterns]


class Filter:
    """What is taken of a folder. `include` None: everything that `exclude` does not match."""

    def __init__(self, include: str | None, exclude: IgnoreRules) -> None:
        self._include = None if include is None else IgnoreRules([IgnorePattern(include, False, 0)])
        self._exclude = exclude

    def walk(self, context: ContextTree, top: Entry) -> Iterator[tuple[str, Entry]]:
        """Pairs of the path below `top` and the entry; each folder that is needed comes before its content. `top` itself
        comes first, with the path `""`, unless only parts are wanted. Raises ContextError."""
        if self._include is None:
            yield "", top
        include = self._include.root if self._include else None
        yield from self._content(context, top, "", include, self._exclude.root, [])

    def takes_file(self, name: str) -> bool:
        """Whether a source that is no folder is taken: by its name alone."""
        return not self._exclude.match(name, self._exclude.root).excluded

    def _content(
        self, context: ContextTree, folder: Entry, below: str, include: Verdict | None, exclude: Verdict,
        waiting: list[tuple[str, Entry]],
    ) -> Iterator[tuple[str, Entry]]:  # fmt: skip
        for name, entry in context.list_folder(folder.path).items():
            path = posixpath.join(below, name)
            inner_include = self._include.match(name, include) if self._include and include else None
            inner_exclude = self._exclude.match(name, exclude)
            wanted = not inner_exclude.excluded and (inner_include is None or inner_include.excluded)
            if entry.kind != "directory":
                if wanted:
                    yield from _release(waiting)
                    yield path, entry
            elif wanted:
                yield from _release(waiting)
                yield path, entry
                yield from self._content(context, entry, path, inner_include, inner_exclude, [])
            elif not inner_exclude.prunable:
                # Something below may be wanted; then the folder is needed too.
                inner = [*waiting, (path, entry)]
                for found in self._content(context, entry, path, inner_include, inner_exclude, inner):
                    waiting.clear()
                    yield found


def _release(waiting: list[tuple[str, Entry]]) -> Iterator[tuple[str, Entry]]:
    held, waiting[:] = list(waiting), []
    yield from held
