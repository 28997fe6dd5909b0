"""Runs cases with both builders at once, and judges what came out."""

from __future__ import annotations

import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from firebuild.errors import FirebuildError
from tests.support.differential.base import make_base
from tests.support.differential.case import BASE, Case, Older, make_context
from tests.support.differential.cases_config import CASES as CONFIG
from tests.support.differential.cases_copy import CASES as COPY
from tests.support.differential.cases_files import CASES as FILES
from tests.support.differential.cases_language import CASES as LANGUAGE
from tests.support.differential.cases_refused import CASES as REFUSED
from tests.support.differential.configs import compare_configs
from tests.support.differential.dockerd import Docker, start_docker
from tests.support.differential.firebuilds import Builder, open_builder
from tests.support.differential.tree import Tree, compare_trees

# In every case.
OLDER = (
    Older(r"\(directory\) mtime_s: Docker 'now'", (23, 0), "the time of a copied folder is lost when it is filled"),
)
CASES = (*COPY, *FILES, *LANGUAGE, *CONFIG, *REFUSED)
_LOG = logging.getLogger(__name__)
_WORKERS = 2
_DOCKER_WORKERS = 3
_BASE_CHANGES = ("ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 'CMD ["/bin/sh"]')
REMOTE_MODIFIED = "Sat, 03 Feb 2001 04:05:06 GMT"
REMOTE_CONTENT = b"from the web\n"


@dataclass(frozen=True)
class Built:
    """What a builder made."""

    config: Mapping[str, Any]
    tree: Tree


Outcome = Built | str
"""A string is what the builder said when it failed."""


@dataclass(frozen=True)
class Outcomes:
    """By the cases' names. `since_s`: when it all began; `docker_version`: of the daemon."""

    docker: Mapping[str, Outcome]
    firebuild: Mapping[str, Outcome]
    since_s: int
    docker_version: tuple[int, int]


def run_cases(cases: Sequence[Case], state: Path, run: Path) -> Outcomes:
    """Build every case with both. Raises DockerUnavailableError."""
    since_s = int(time.time())
    with ExitStack() as resources:
        scratch = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="fbdiff-", dir="/var/tmp")))
        http = resources.enter_context(_Web())
        base = make_base(scratch)
        docker = resources.enter_context(start_docker())
        docker.ok("import", *(word for change in _BASE_CHANGES for word in ("--change", change)), base, BASE)
        contexts = {case.name: scratch / case.name for case in cases}
        for case in cases:
            make_context(contexts[case.name], case, http.url)
        both: list[Future[dict[str, Outcome]]] = []
        with ThreadPoolExecutor(2) as pool:
            both.append(pool.submit(_run_docker, docker, cases, contexts, scratch))
            both.append(pool.submit(_run_firebuild, cases, contexts, state, run, base))
        theirs, ours = (future.result() for future in both)
        major, minor = docker.version.split(".")[:2]
        return Outcomes(theirs, ours, since_s, (int(major), int(minor)))


def _run_docker(
    docker: Docker, cases: Sequence[Case], contexts: Mapping[str, Path], scratch: Path
) -> dict[str, Outcome]:
    failed: dict[str, Outcome] = {}

    def build(case: Case) -> None:
        done = docker.build(contexts[case.name], case.tag, target=case.target, args=case.args)
        if done.returncode != 0:
            failed[case.name] = (done.stdout + done.stderr).decode(errors="replace")

    begin = time.monotonic()
    _in_order(cases, build, _DOCKER_WORKERS)
    _LOG.info("Docker: %.1f s", time.monotonic() - begin)
    saved = docker.save([case.tag for case in cases if case.name not in failed], scratch)
    return {case.name: failed[case.name] if case.name in failed else Built(*saved[case.tag]) for case in cases}


def _run_firebuild(
    cases: Sequence[Case], contexts: Mapping[str, Path], state: Path, run: Path, base: Path
) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}

    def build(builder: Builder, case: Case) -> None:
        try:
            outcomes[case.name] = Built(*builder.build(case, contexts[case.name]))
        except FirebuildError as error:
            outcomes[case.name] = f"{error.code}: {error.message}\n{error.details or ''}"

    with open_builder(state, run, base) as builder:
        begin = time.monotonic()
        _in_order(cases, lambda case: build(builder, case), _WORKERS)
        _LOG.info("firebuild: %.1f s", time.monotonic() - begin)
    return outcomes


def _in_order(cases: Sequence[Case], build: Callable[[Case], None], workers: int) -> None:
    """Some at once; a case that builds upon another one waits for it."""
    done = {case.name: threading.Event() for case in cases}

    def run(case: Case) -> None:
        try:
            for name in case.after:
                done[name].wait()
            build(case)
        finally:
            done[case.name].set()

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(run, case) for case in cases]:
            future.result()


def judge(case: Case, outcomes: Outcomes) -> list[str]:
    """What is not as it should be, a line each; none: firebuild does what Docker does, but for what is meant to differ."""
    docker, firebuild = outcomes.docker[case.name], outcomes.firebuild[case.name]
    if case.refused is not None:
        return [
            *(_judge_refusal("Docker", docker, case.refused.docker) if outcomes.docker_version >= case.since else ()),
            *_judge_refusal("firebuild", firebuild, case.refused.firebuild),
        ]
    if isinstance(docker, str) or isinstance(firebuild, str):
        sides = (("Docker", docker), ("firebuild", firebuild))
        lines = [f"{side} fails: {outcome}" for side, outcome in sides if isinstance(outcome, str)]
    else:
        lines = list(compare_configs(docker.config, firebuild.config))
        lines += compare_trees(docker.tree, firebuild.tree, outcomes.since_s)
    return [*_sort_out(case, lines, outcomes.docker_version)]


def _judge_refusal(builder: str, outcome: Outcome, pattern: str) -> list[str]:
    if not isinstance(outcome, str):
        return [f"{builder} builds what it should refuse"]
    return [] if re.search(pattern, outcome) else [f"{builder} does not say /{pattern}/ but: {outcome}"]


def _sort_out(case: Case, lines: Sequence[str], version: tuple[int, int]) -> Iterator[str]:
    known = dict(case.differs)
    known |= {old.pattern: old.why for old in case.older if version < old.since}
    everywhere = [old.pattern for old in OLDER if version < old.since]
    seen = set()
    for line in lines:
        meant = [pattern for pattern in known if re.search(pattern, line)]
        seen.update(meant)
        if not meant and not any(re.search(pattern, line) for pattern in everywhere):
            yield line
    for pattern in set(known) - seen:
        yield f"no difference /{pattern}/ any longer: {known[pattern]}"


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(REMOTE_CONTENT)

    def _answer(self, body: bytes) -> None:
        self.send_response(404 if "missing" in self.path else 200)
        if "dated" in self.path:
            self.send_header("Last-Modified", REMOTE_MODIFIED)
        if "named" in self.path:
            self.send_header("Content-Disposition", 'attachment; filename="given.txt"')
        self.send_header("Content-Length", str(len(REMOTE_CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Web:
    """A web server for ADD of a URL."""

    def __enter__(self) -> _Web:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
