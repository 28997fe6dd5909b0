"""The ways to name a repository: Docker's git references, and the original's URLs with a Dockerfile's path behind them. Pure.

Docker's forms: BuildKit, frontend/dockerfile/dfgitutil (`https://host/repo.git?query#ref:subdir`, `git@host:repo`).
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import parse_qsl, unquote

import msgspec

from firebuild.build.sources.url import Login, Url, parse_host, parse_url, redact_urls
from firebuild.errors import UsageError
from firebuild.events.text import neutralise

_SCP = re.compile(
    r"(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@(?P<host>[A-Za-z0-9.-]+):(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?"
)
_SCHEME = re.compile(r"(?P<git>git\+)?(?P<scheme>[A-Za-z0-9]+)://")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# git check-ref-format(1), and no leading dash: no ref can be taken for an option.
_BAD_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[-/.]|/\.|\.lock(/|$)|[/.]$")
_TRUE, _FALSE = ("1", "t", "true", ""), ("0", "f", "false")
REF_LIMIT = 255


class GitSource(msgspec.Struct, frozen=True):
    """A place in a repository. `url`: http(s), ssh or git; `scp`: it was written as `user@host:path`, and the path is
    relative to the user's home; `ref`: empty for the default branch; `subdir`, `dockerfile`: relative, clean, empty for
    none; `checksum`: the commit's first digits; `keep_git_dir`, `submodules`: None where the reference does not say.
    """

    url: Url
    scp: bool = False
    ref: str = ""
    subdir: str = ""
    dockerfile: str = ""
    checksum: str = ""
    keep_git_dir: bool | None = None
    submodules: bool | None = None

    @property
    def remote(self) -> str:
        """What git is given: without a password; ssh keeps its user."""
        user = self.url.login.user if self.url.login and self.url.scheme == "ssh" else ""
        if self.scp:
            return f"{user}@{self.url.host}:{self.url.path}"
        return self.url.text.replace("://", f"://{user}@", 1) if user else self.url.text

    @property
    def shown(self) -> str:
        """For messages and records."""
        behind = f"{self.ref}:{self.subdir}" if self.subdir else self.ref
        return self.remote + (f":/{self.dockerfile}" if self.dockerfile else "") + (f"#{behind}" if behind else "")

    @property
    def commit(self) -> str:
        """The commit, if the reference itself says which: 40 or 64 hex digits; else empty."""
        return self.ref if is_commit(self.ref) else self.checksum if is_commit(self.checksum) else ""


def is_commit(text: str) -> bool:
    """Whether `text` is a whole commit id (SHA-1 or SHA-256)."""
    return _COMMIT.fullmatch(text) is not None


def looks_like_git(text: str) -> bool:
    """Whether `text` names a repository and nothing else; for http(s) its path ends in `.git`, as Docker has it."""
    match = _SCHEME.match(text)
    if match is None:
        return _SCP.fullmatch(text) is not None
    scheme = match["scheme"].lower()
    if match["git"] or scheme in ("ssh", "git"):
        return True
    path = re.split(r"[?#]", text, maxsplit=1)[0].partition("://")[2].partition("/")[2]
    return scheme in ("http", "https") and (path.endswith(".git") or ".git:/" in path)


def parse_git(text: str) -> GitSource:
    """A reference for which looks_like_git is true, or `github.com/…`. Raises UsageError without showing credentials."""
    shown = redact_urls(neutralise(text[:200]))
    if text.startswith("github.com/"):
        text = "https://" + text
    scp = _SCP.fullmatch(text) if "://" not in text else None
    if scp is not None:
        path, dockerfile = _split_dockerfile(scp["path"], shown)
        if not path or path.startswith("-") or any(not char.isprintable() for char in path):
            raise UsageError(f"`{shown}` names no repository")
        url = Url("ssh", parse_host(scp["host"], shown), None, path, "", Login(scp["user"]))
        return _finish(url, True, dockerfile, scp["query"] or "", scp["fragment"] or "", shown)
    match = _SCHEME.match(text)
    if match is None or match["scheme"].lower() not in ("http", "https", "ssh", "git"):
        raise UsageError(
            f"`{shown}` is not a git repository that firebuild can fetch",
            hint="write https://, http://, ssh:// or git://, with `git+` before it or not",
        )
    body, _, fragment = text[len(match["git"] or "") :].partition("#")
    body, _, query = body.partition("?")
    head, slashes, rest = body.partition("://")
    authority, slash, path = rest.partition("/")
    path, dockerfile = _split_dockerfile(slash + path, shown)
    url = parse_url(f"{head}{slashes}{authority}{path}", ("http", "https", "ssh", "git"))
    if path in ("", "/"):
        raise UsageError(f"`{shown}` names no repository on its host")
    if url.scheme == "ssh" and url.login is not None:
        if not _USER.fullmatch(url.login.user):
            raise UsageError(f"`{shown}` has no valid user")
        if url.login.password:
            raise UsageError(f"`{shown}`: ssh takes no password from a URL", hint="use a key in an ssh agent")
    return _finish(url, False, dockerfile, query, fragment, shown)


def _split_dockerfile(path: str, shown: str) -> tuple[str, str]:
    repository, colon, dockerfile = path.partition(":/")
    if not colon:
        return path, ""
    dockerfile = _clean("Dockerfile", dockerfile, shown)
    if not dockerfile:
        raise UsageError(f"`{shown}` has no path of a Dockerfile behind the `:/`")
    return repository, dockerfile


def _finish(url: Url, scp: bool, dockerfile: str, query: str, fragment: str, shown: str) -> GitSource:
    ref, colon, subdir = fragment.partition(":")
    values = _parse_query(query, shown)
    if dockerfile and (colon or "subdir" in values):
        raise UsageError(
            f"`{shown}` names both a Dockerfile's path and a folder", hint="the Dockerfile's folder is the context"
        )
    ref = _agree("ref", unquote(ref), _query_ref(values, shown), shown)
    subdir = _agree("subdir", unquote(subdir), values.get("subdir", ""), shown)
    checksum = values.get("checksum") or values.get("commit") or ""
    if checksum and not re.fullmatch(r"[0-9a-f]{7,64}", checksum):
        raise UsageError(f"`{shown}`: `{neutralise(checksum)}` is not a commit's checksum", hint="7 to 64 hex digits")
    check_ref(ref, shown)
    return GitSource(
        url=url,
        scp=scp,
        ref=ref,
        subdir=_clean("folder", subdir, shown),
        dockerfile=dockerfile,
        checksum=checksum,
        keep_git_dir=_parse_flag(values.get("keep-git-dir"), shown),
        submodules=_parse_flag(values.get("submodules"), shown),
    )


def check_ref(ref: str, shown: str) -> None:
    """Raises UsageError for a ref that git does not allow, or could take for something else."""
    if ref and (len(ref) > REF_LIMIT or _BAD_REF.search(ref) or ref == "@"):
        raise UsageError(f"`{shown}`: `{neutralise(ref[:100])}` is not a git ref", hint="a branch, a tag or a commit")


def _clean(what: str, path: str, shown: str) -> str:
    """A path inside a repository: relative and clean. Raises UsageError for one that leads out."""
    parts = [part for part in unquote(path).split("/") if part not in ("", ".")]
    if ".." in parts or any("\0" in part for part in parts):
        raise UsageError(f"`{shown}`: the {what}'s path leads out of the repository")
    if ".git" in (part.lower() for part in parts):
        raise UsageError(f"`{shown}`: the {what}'s path leads into the repository's own `.git`")
    return posixpath.join("", *parts)


def _parse_query(query: str, shown: str) -> dict[str, str]:
    known = ("ref", "tag", "branch", "subdir", "checksum", "commit", "keep-git-dir", "submodules")
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise UsageError(f"`{shown}`: unexpected query `{neutralise(name)}`", hint=f"known are {', '.join(known)}")
        if name in values:
            raise UsageError(f"`{shown}`: the query `{name}` stands twice")
        if not value and name not in ("keep-git-dir", "submodules"):
            raise UsageError(f"`{shown}`: the query `{name}` has no value")
        values[name] = value
    return values


def _query_ref(values: dict[str, str], shown: str) -> str:
    found = [values["ref"]] if "ref" in values else []
    for name, prefix in (("tag", "refs/tags/"), ("branch", "refs/heads/")):
        if name in values:
            found.append(prefix + values[name].removeprefix(prefix))
    if len(set(found)) > 1:
        raise UsageError(f"`{shown}` names several refs: {', '.join(map(neutralise, found))}")
    return found[0] if found else ""


def _agree(what: str, first: str, second: str, shown: str) -> str:
    if first and second and first != second:
        raise UsageError(f"`{shown}` names two: the {what} `{neutralise(first)}` and `{neutralise(second)}`")
    return first or second


def _parse_flag(value: str | None, shown: str) -> bool | None:
    if value is None:
        return None
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise UsageError(f"`{shown}`: `{neutralise(value)}` is neither true nor false")
