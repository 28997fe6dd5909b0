"""Which submodules a commit has, and whether they may be fetched: .gitmodules is read here, git never follows it.

Format: gitmodules(5). Relative URLs count from the repository itself (git-submodule(1)).
"""

from __future__ import annotations

import posixpath
from urllib.parse import urljoin

from msgspec.structs import replace

from firebuild.build.sources.address import rank_host
from firebuild.build.sources.gitref import GitSource, parse_git
from firebuild.build.sources.gitrun import GitRunner
from firebuild.build.sources.url import parse_url
from firebuild.errors import UsageError
from firebuild.events.text import neutralise


def find_submodules(run: GitRunner, commit: str, links: dict[str, str]) -> dict[str, GitSource]:
    """The submodules that .gitmodules names and the commit holds, by path. Raises ContextError for one without a URL."""
    sections: dict[str, dict[str, str]] = {}
    for record in run.read_gitmodules(commit).split("\0")[:-1]:
        key, _, value = record.partition("\n")
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = value
    urls = {each["path"]: each.get("url", "") for each in sections.values() if "path" in each}
    found: dict[str, GitSource] = {}
    for path, commit_id in sorted(links.items()):
        if path not in urls:
            raise run.error(f"its submodule `{neutralise(path)}` has no URL in .gitmodules", hint="`?submodules=0`")
        found[path] = _parse_submodule(run, path, urls[path], commit_id)
    return found


def _parse_submodule(run: GitRunner, path: str, text: str, commit: str) -> GitSource:
    try:
        if text.startswith(("./", "../")):
            if run.source.scp:
                joined = posixpath.normpath(posixpath.join(run.source.url.path, text))
                source = replace(run.source, url=replace(run.source.url, path=joined))
            else:
                # git counts from the repository itself, URLs from the folder that it is in.
                base = run.source.url.text.rstrip("/") + "/"
                url = parse_url(urljoin(base, text), (run.source.url.scheme,))
                source = replace(run.source, url=replace(url, login=run.source.url.login))
        else:
            source = parse_git(text)
    except UsageError as error:
        raise run.error(f"its submodule `{neutralise(path)}` cannot be fetched: {error.message}") from error
    return replace(
        source, ref=commit, subdir="", dockerfile="", checksum="", keep_git_dir=None, submodules=run.source.submodules
    )  # fmt: skip


def check_neighbour(run: GitRunner, source: GitSource) -> None:
    """Raises ContextError for a submodule that must not be fetched: by another way, or closer to this host."""
    here, there = run.source.url, source.url
    weaker = {"https": ("https", "ssh"), "ssh": ("https", "ssh")}.get(here.scheme, ("https", "ssh", here.scheme))
    if there.scheme not in weaker:
        raise run.error(f"its submodule `{source.shown}` is not fetched the way that it is itself")
    if there.host != here.host:
        try:
            allowed, found = rank_host(here), rank_host(there)
        except OSError:
            return  # behind a proxy that alone knows the names
        if found > allowed:
            raise run.error(f"its submodule `{source.shown}` is at a private address: that is refused")
