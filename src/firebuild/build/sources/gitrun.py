"""git, run on a repository that nobody trusts: as nobody, with an environment of its own, under limits.

git(1), git-config(1), git-fetch(1), gitprotocol-v2(5).
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from firebuild.build.sources.agent import lend_agent
from firebuild.build.sources.gitaccess import GitLimits, SshAccess
from firebuild.build.sources.gitref import GitSource, is_commit
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.url import Url, basic_credentials, redact_urls
from firebuild.errors import ContextError, FirebuildError
from firebuild.events.text import neutralise
from firebuild.host.confined import Finished, find_nobody, give_folder, run_confined
from firebuild.host.deadline import Deadline

_PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_GITLINK = "160000"
_INFO_REFS = "/info/refs"
_SERVICE = "service=git-upload-pack"
_TREE_LINE = re.compile(
    rb"(?P<mode>[0-7]{6}) (?P<type>\w+) (?P<id>[0-9a-f]+) +(?P<size>-|[0-9]+)\t(?P<path>.*)", re.DOTALL
)
_CONFIG = {
    "protocol.allow": "never",
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.symlinks": "true",
    "core.askPass": "",
    "credential.helper": "",
    "http.followRedirects": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
    "transfer.unpackLimit": "1",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "init.defaultBranch": "main",
    "advice.detachedHead": "false",
}


@dataclass
class GitBudget:
    """What is left of the limits, for a repository and its submodules together."""

    bytes: int
    files: int
    submodules: int


class GitRunner:
    """git, set up for one repository."""

    def __init__(
        self,
        source: GitSource,
        scratch: Scratch,
        ssh: SshAccess,
        limits: GitLimits,
        canceled: threading.Event,
        deadline: Deadline,
        resources: ExitStack,
    ) -> None:
        self.source = source
        self.deadline = deadline
        self.limits = limits
        self._canceled = canceled
        self.user = find_nobody()
        self.work = scratch.make_folder("git")
        self.git_dir = self.work / "repository"
        home = self.work / "home"
        home.mkdir(mode=0o700)
        for folder in (home, self.work):
            give_folder(folder, self.user)
        self._config = dict(_CONFIG)
        self._config[f"protocol.{source.url.scheme}.allow"] = "always"
        self._environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": source.url.scheme,
            "GIT_PROTOCOL_FROM_USER": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_CEILING_DIRECTORIES": str(self.work),
        }
        self._remote = source.remote
        self._objects: set[str] = set()
        if source.url.scheme == "ssh":
            self._set_up_ssh(ssh, resources)
        elif source.url.scheme in ("http", "https"):
            self._set_up_http()

    def _set_up_http(self) -> None:
        from firebuild.build.sources.http import FetchLimits, find_final_url

        for name in _PASSED_ON:
            if name in os.environ:
                self._environment[name] = os.environ[name]
        for name, variable in (("SSL_CERT_FILE", "GIT_SSL_CAINFO"), ("SSL_CERT_DIR", "GIT_SSL_CAPATH")):
            if os.environ.get(name):
                self._environment[variable] = os.environ[name]
        # git follows no redirect: where the repository has moved is found here, each hop checked.
        url = self.source.url
        probe = Url(url.scheme, url.host, url.port, url.path.rstrip("/") + _INFO_REFS, _SERVICE, url.login)
        final = find_final_url(probe, FetchLimits(timeout_s=self.deadline.check()), canceled=self._canceled)
        if final.text != probe.text:
            if not final.path.endswith(_INFO_REFS) or final.query != _SERVICE:
                raise self.error(f"it redirects to `{final.shown}`, which is no repository")
            self._remote = msgspec.structs.replace(final, path=final.path.removesuffix(_INFO_REFS), query="").text
        if url.login is not None and final.origin == url.origin:
            # By the environment: an argument list can be read by everybody on this host.
            base = f"{url.scheme}://{url.netloc}/"
            self._config[f"http.{base}.extraHeader"] = f"Authorization: {basic_credentials(url)}"

    def _set_up_ssh(self, access: SshAccess, resources: ExitStack) -> None:
        known = self.work / "known_hosts"
        lines = [path.read_bytes().rstrip(b"\n") for path in access.known_hosts if path.is_file()]
        known.write_bytes(b"\n".join(lines) + b"\n")
        give_folder(known, self.user)
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(known),
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
            "IdentityFile": "none",
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "ProxyCommand": "none",
            "ConnectTimeout": "60",
            "ServerAliveInterval": "30",
        }
        if access.agent is not None:
            socket = resources.enter_context(lend_agent(access.agent, self.work, self.user))
            options["IdentityAgent"] = str(socket)
        else:
            options["IdentityAgent"] = "none"
        words = " ".join(f"-o {name}={value}" for name, value in options.items())
        self._environment["GIT_SSH_COMMAND"] = f"ssh -F /dev/null {words}"
        self._environment["GIT_SSH_VARIANT"] = "ssh"

    # -- refs ----------------------------------------------------------------------------------------------------------

    def find_ref(self) -> tuple[str, str]:
        """The full name and the object of the source's ref; HEAD for none. A branch goes before a tag, as in BuildKit."""
        ref = self.source.ref
        if not ref:
            wanted = ["HEAD"]
        elif ref.startswith("refs/"):
            wanted = [ref]
        else:
            wanted = [f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/{ref}"]
        patterns = [each for name in wanted for each in (name, name + "^{}")]
        lines = self._git("ls-remote", "--", self._remote, *patterns).decode("utf-8", "replace").splitlines()
        found = {name: value for value, _, name in (line.partition("\t") for line in lines)}
        for name in wanted:
            value = found.get(name + "^{}") or found.get(name, "")
            if is_commit(value):
                return name, value
        if not ref:
            raise self.error("it has no commit yet")
        hint = "give all 40 digits of a commit" if re.fullmatch(r"[0-9a-f]{4,39}", ref) else None
        raise self.error(f"it has no branch or tag `{neutralise(ref)}`", hint=hint)

    def fetch(self, *, keep_ref: bool) -> tuple[str, str]:
        """Fetch the source's commit into `git_dir`; the commit and the full name of its ref, empty for none."""
        ref = self.source.ref
        name, found = ("", ref) if is_commit(ref) else self.find_ref()
        form = "sha256" if len(found) == 64 else "sha1"
        # An empty template: no hooks, no excludes.
        init = ["init", "--quiet", "--template=", f"--object-format={form}"]
        self._git(
            *init, *([] if keep_ref else ["--bare"]), "--", str(self.git_dir.parent if keep_ref else self.git_dir)
        )
        if not name:
            self._fetch_commit(ref)
            self._objects = {ref}
            return ref, ""
        target = "refs/firebuild/fetched"
        self._fetch_refs(f"+{name}:{target}")
        text = self._in_repository("rev-parse", "--verify", "--quiet", f"{target}^{{commit}}").decode().strip()
        self._objects = {text, self._in_repository("rev-parse", "--verify", "--quiet", target).decode().strip()}
        if not is_commit(text):
            raise self.error(f"its ref `{neutralise(name)}` is no commit")
        if keep_ref and name != "HEAD":
            self._in_repository("update-ref", "--no-deref", name, target)
        return text, name

    def _fetch_commit(self, commit: str) -> None:
        try:
            self._fetch_refs(f"+{commit}:refs/firebuild/fetched")
        except ContextError:
            # A server may give out only what its refs name: then everything is fetched, to look for it there.
            self._fetch_refs(
                "+refs/heads/*:refs/firebuild/heads/*", "+refs/tags/*:refs/firebuild/tags/*", shallow=False
            )
        kind = self._run(["cat-file", "-t", commit], repository=True)
        if kind.returncode != 0 or kind.stdout.strip() != b"commit":
            raise self.error(f"it has no commit `{commit}`")

    def _fetch_refs(self, *refspecs: str, shallow: bool = True) -> None:
        command = ["fetch", "--quiet", "--no-tags", "--force", "--no-write-fetch-head", "--no-recurse-submodules"]
        depth = ["--depth=1"] if shallow else []
        result = self._run([*command, *depth, "--", self._remote, *refspecs], repository=True)
        if result.returncode != 0 and shallow and b"shallow" in result.stderr:
            # The "dumb" HTTP protocol knows no depth.
            result = self._run([*command, "--", self._remote, *refspecs], repository=True)
        if result.returncode != 0:
            # git's parts that run into the limit end without a word, and leave what they had written.
            packs = (self.git_dir / "objects" / "pack").glob("tmp_pack_*")
            if any(pack.stat().st_size >= self.limits.pack_bytes for pack in packs):
                raise self.error(f"it is larger than firebuild fetches: more than {self.limits.pack_bytes} bytes")
            raise self._failure(result)

    # -- files ---------------------------------------------------------------------------------------------------------

    def check_checksum(self, commit: str) -> None:
        """Raises ContextError if neither the commit nor its annotated tag is the one that the reference pins."""
        if not any(each.startswith(self.source.checksum) for each in self._objects):
            raise self.error(f"its commit is {commit}; expected is {self.source.checksum}")

    def commit_time(self, commit: str) -> int:
        """The committer's time of the commit, Unix seconds; 0 if it is none."""
        text = self._in_repository("show", "--no-patch", "--format=%ct", commit).decode().strip()
        return min(int(text), 1 << 33) if text.isdecimal() and len(text) < 12 else 0

    def check_tree(self, commit: str, budget: GitBudget) -> dict[str, str]:
        """Count what the commit would write, before it is written; the submodules' commits by path."""
        listing = self._git_dir_command(["ls-tree", "-r", "-l", "-z", "--full-tree", commit], 512 << 20)
        links: dict[str, str] = {}
        for line in listing.split(b"\0")[:-1]:
            match = _TREE_LINE.fullmatch(line)
            if match is None:
                raise self.error("git lists its files in a way that firebuild does not know")
            budget.files -= 1
            if match["mode"].decode() == _GITLINK:
                links[os.fsdecode(match["path"])] = match["id"].decode()
            else:
                budget.bytes -= int(match["size"]) if match["size"].isdigit() else 0
            if budget.files < 0:
                raise self.error(f"it has more than {self.limits.files} files")
            if budget.bytes < 0:
                raise self.error(f"its files have more than {self.limits.bytes} bytes")
        return links

    def write_files(self, commit: str, folder: Path) -> None:
        """Write the commit's files; attributes of the commit count, filters cannot, since no configuration names any."""
        options = ["-c", "core.bare=false", f"--git-dir={self.git_dir}", f"--work-tree={folder}"]
        self._git(*options, "read-tree", "--reset", "--no-recurse-submodules", commit)
        self._git(*options, "checkout-index", "--all", "--force", "--quiet")

    def finish_git_dir(self, commit: str, name: str) -> None:
        """Leave a repository that a step can use: detached at the commit, its origin named without credentials."""
        self._in_repository("update-ref", "--no-deref", "HEAD", commit)
        self._in_repository("update-ref", "-d", "refs/firebuild/fetched")
        self._in_repository("config", "remote.origin.url", redact_urls(self.source.remote))
        self._in_repository("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")

    def read_gitmodules(self, commit: str) -> str:
        """Paths and URLs in a commit's .gitmodules, as `git config --null --get-regexp` gives them; empty for none."""
        result = self._run(
            ["config", "--null", f"--blob={commit}:.gitmodules", "--get-regexp", r"^submodule\..*\.(path|url)$"],
            repository=True,
        )
        return result.stdout.decode("utf-8", "surrogateescape")

    # -- git -----------------------------------------------------------------------------------------------------------

    def error(self, why: str, *, hint: str | None = None, details: str | None = None) -> ContextError:
        return ContextError(f"the repository `{self.source.shown}` cannot be used: {why}", hint=hint, details=details)

    def _in_repository(self, *arguments: str) -> bytes:
        return self._git_dir_command(list(arguments), 1 << 20)

    def _git_dir_command(self, arguments: list[str], output_limit: int) -> bytes:
        result = self._run(arguments, repository=True, output_limit=output_limit)
        if result.returncode != 0:
            raise self._failure(result)
        return result.stdout

    def _git(self, *arguments: str) -> bytes:
        result = self._run(list(arguments))
        if result.returncode != 0:
            raise self._failure(result)
        return result.stdout

    def _run(self, arguments: list[str], *, repository: bool = False, output_limit: int = 16 << 20) -> Finished:
        settings = {f"GIT_CONFIG_KEY_{number}": name for number, name in enumerate(self._config)}
        settings |= {f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(self._config.values())}
        return run_confined(
            ["git", *([f"--git-dir={self.git_dir}"] if repository else []), *arguments],
            user=self.user,
            environment={**self._environment, **settings, "GIT_CONFIG_COUNT": str(len(self._config))},
            cwd=self.work,
            deadline=self.deadline,
            file_limit_bytes=self.limits.pack_bytes,
            output_limit_bytes=output_limit,
            canceled=self._canceled,
        )

    def _failure(self, result: Finished) -> FirebuildError:
        text = redact_urls(result.stderr.decode("utf-8", "replace"))
        lines = [neutralise(line) for line in text.splitlines() if line.strip()][-20:]
        why, hint = _explain(text, self.source)
        return self.error(why, hint=hint, details="\n".join(["git said:", *(f"  {line}" for line in lines)]))


def _explain(text: str, source: GitSource) -> tuple[str, str | None]:
    low = text.lower()
    if "host key verification failed" in low or "no matching host key" in low or "host key is known" in low:
        return (
            f"the key of the host `{source.url.host}` is not known",
            f"look at it with `ssh-keyscan {source.url.host}`, and add it to ~/.ssh/known_hosts",
        )
    if "cannot run ssh" in low:
        return "the program `ssh` is not installed", "run: apt-get install --no-install-recommends openssh-client"
    if "permission denied (" in low:
        return "the server accepts no key", "start an ssh agent, `ssh-add` the key, and keep SSH_AUTH_SOCK (sudo -E)"
    if "authentication failed" in low or "could not read username" in low:
        return "the server asks for other credentials", "give a token in the URL: https://TOKEN@host/…"
    if "not found" in low or "does not exist" in low or "returned error: 404" in low:
        return "there is no such repository", None
    return "git cannot fetch it", None
