"""RUN --mount and COPY's flags in a real build machine: what steps see, what stays, and that no secret leaves a trace."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import BUILD_TIMEOUT_S, Cli, Result
from tests.support.ledger import Watch
from tests.support.sparse import find_files_with
from tests.support.ssh_agent import ASK, serve_agent
from tests.vm.conftest import BASE

CANARY = "canary-51d7-of-the-mounts"
TAG = "tests/mounts-and-flags:1"


def build(
    cli: Cli, context: Path, text: str, *options: str | Path, environment: dict[str, str] | None = None
) -> Result:
    """Build a Dockerfile in its context; its progress is in the result's stderr."""
    (context / "Dockerfile").write_text(f"FROM {BASE}\n{text}")
    return cli.run(
        "rootfs", "--dockerfile", context / "Dockerfile", context, "--tag", TAG, "--progress", "plain", *options,
        timeout_s=BUILD_TIMEOUT_S, environment=environment,
    )  # fmt: skip


def built(cli: Cli, context: Path, text: str, *options: str | Path, environment: dict[str, str] | None = None) -> str:
    result = build(cli, context, text, *options, environment=environment)
    assert result.status == 0, result.describe()
    return result.stderr


@pytest.fixture(autouse=True)
def _forget(cli: Cli) -> Iterator[None]:
    yield
    cli.run("image", "rm", TAG)


def test_a_cache_is_kept_between_builds_and_is_in_no_layer(cli: Cli, context: Path) -> None:
    run = "RUN --mount=type=cache,target=/var/cache/it,mode=0750,uid=7 echo {} >>/var/cache/it/log && cat /var/cache/it/log"
    text = f"{run}\nRUN test ! -e /var/cache/it && stat -c %a /var/cache | grep -qx 755\n"
    first = built(cli, context, text.format("one"))
    assert "open the caches" in first
    assert "CACHED" in built(cli, context, text.format("one")) and "open the caches" not in cli.transcript[-1].stderr
    second = built(cli, context, text.format("two"))
    assert "one\n" in second.replace("\r", "") and "two\n" in second
    look = "RUN --mount=type=cache,target=/var/cache/it,mode=0750,uid=7,ro stat -c '%a %u' /var/cache/it; ! touch /var/cache/it/x\n"
    assert "750 7" in built(cli, context, look)
    # Another id, or another owner, is another cache.
    other = 'RUN --mount=type=cache,target=/var/cache/it test -z "$(ls -A /var/cache/it)"\n'
    built(cli, context, other)


def test_a_failed_step_and_a_killed_build_lose_no_cache(cli: Cli, context: Path) -> None:
    mount = "RUN --mount=type=cache,target=/c,id=killed"
    assert build(cli, context, f"{mount} echo failed >>/c/log; exit 3\n").status == 1
    (context / "Dockerfile").write_text(f"FROM {BASE}\n{mount} echo hangs >>/c/log; echo now hanging; sleep 1000\n")
    with cli.start("rootfs", "--dockerfile", context / "Dockerfile", "--tag", TAG, "--progress", "plain") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rstrip().endswith("now hanging"):
                break
        os.kill(process.pid, signal.SIGKILL)
    output = built(cli, context, f"{mount} cat /c/log\n")
    assert "failed" in output and "begins anew" not in output


def test_two_builds_that_want_one_cache_take_turns(cli: Cli, context: Path, tmp_path: Path) -> None:
    run = "RUN --mount=type=cache,target=/c,id=shared,sharing={} echo {} >>/c/log; sleep 2; wc -l </c/log\n"
    results: list[Result] = []

    def one(name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "Dockerfile").write_text(f"FROM {BASE}\n" + run.format("locked", name))
        results.append(
            cli.run(
                "rootfs",
                "--dockerfile",
                folder / "Dockerfile",
                "--tag",
                f"tests/turns:{name}",
                "--progress",
                "plain",
                timeout_s=BUILD_TIMEOUT_S,
            )
        )

    threads = [threading.Thread(target=one, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.status for result in results] == [0, 0], [result.describe() for result in results]
    cli.ok("image", "rm", "tests/turns:one")
    cli.ok("image", "rm", "tests/turns:two")
    assert "2\n" in built(cli, context, "RUN --mount=type=cache,target=/c,id=shared wc -l </c/log; wc -c </c/log\n")


def test_a_secret_leaves_no_trace(cli: Cli, context: Path, tmp_path: Path, watched: Watch) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{CANARY}-file\n")
    text = (
        "RUN --mount=type=secret,id=one,required test $(wc -c </run/secrets/one) = {} && stat -c %a:%u /run/secrets/one\n"
        "RUN --mount=type=secret,id=two,env=TOKEN,required test ${{#TOKEN}} = {}\n"
        "RUN --mount=type=secret,id=one,target=/etc/app/key,mode=0440,gid=50 stat -c %a:%g /etc/app/key\n"
        "RUN --mount=type=secret,id=three test ! -e /run/secrets && test ! -e /etc/app\n"
    ).format(len(f"{CANARY}-file\n"), len(f"{CANARY}-env"))
    options = ("--secret", f"id=one,src={secret}", "--secret", "id=two,env=THE_TOKEN")
    output = built(cli, context, text, *options, environment={"THE_TOKEN": f"{CANARY}-env"})
    assert "400:0" in output and "440:50" in output
    # The same build without them is cached: what they held is part of nothing.
    assert "build machine: not needed" in built(cli, context, text)
    assert find_files_with(CANARY.encode(), watched.state, watched.run, context) == []
    for blob in (watched.state / "store" / "blobs" / "sha256").iterdir():
        data = blob.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        elif data.startswith(b"\x28\xb5\x2f\xfd"):
            data = subprocess.run(["zstd", "-dcq", blob], check=True, capture_output=True).stdout
        assert CANARY.encode() not in data, blob
    inspected = cli.ok("image", "inspect", TAG)
    assert CANARY not in inspected and all(CANARY not in result.stderr for result in cli.transcript)


def test_a_required_secret_that_is_missing_boots_nothing(cli: Cli, context: Path) -> None:
    result = build(cli, context, "RUN echo first\nRUN --mount=type=secret,id=token,required true\n")
    assert result.status == 1 and "`token` is required" in result.stderr and "Dockerfile:3" in result.stderr
    assert "boot the build machine" not in result.stderr


def test_binds_and_memory(cli: Cli, context: Path) -> None:
    (context / "src" / "deep").mkdir(parents=True)
    (context / "src" / "deep" / "main.c").write_text("int main(void)")
    (context / "script").write_text("#!/bin/sh\necho ran from $0\n")
    (context / "script").chmod(0o755)
    (context / ".dockerignore").write_text("secret\n")
    (context / "secret").write_text("no")
    text = (
        "RUN mkdir -p /out && echo made >/out/app\n"
        f"FROM {BASE}\n"
        "WORKDIR /work\n"
        "RUN --mount=type=bind,target=. cat src/deep/main.c && ! touch x && test ! -e secret\n"
        "RUN --mount=source=script,target=/usr/local/bin/script script\n"
        "RUN --mount=from=0,source=/out,target=/out,rw cat /out/app && rm /out/app && echo other >/out/new\n"
        "RUN --mount=from=0,source=/out,target=/out ls /out | grep -qx app\n"
        f"RUN --mount=from={BASE},source=/etc,target=/mnt/etc test -e /mnt/etc/debian_version\n"
        "RUN --mount=type=tmpfs,target=/mem,size=4m --mount=target=/mem/src,source=src "
        "df -P /mem | grep -q ' 4096 ' && cat /mem/src/deep/main.c && echo x >/mem/x\n"
        'RUN test -z "$(ls -A /work; ls -A /mnt)" && test ! -e /out && test ! -e /mem && test ! -e /usr/local/bin/script\n'
    )
    output = built(cli, context, text)
    assert "int main(void)" in output and "ran from /usr/local/bin/script" in output and "made" in output


def test_scripts_of_their_own_and_open_files(cli: Cli, context: Path) -> None:
    text = 'RUN <<FILE\n#!/usr/bin/perl\nprint "perl says $0\\n";\nFILE\nRUN ulimit -Sn; ulimit -Hn; test ! -e /dev/pipes\n'
    output = built(cli, context, text)
    assert "perl says /dev/pipes/FILE" in output and "1024" in output and "524288" in output


def test_copies_with_flags(cli: Cli, context: Path) -> None:
    for name in ("a/b/one.txt", "a/b/two.md", "a/three.txt"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(name)
        (context / name).chmod(0o600)
    (context / "a" / "b").chmod(0o700)
    find = "find {} -mindepth 1 -printf '%P %m %u\\n' | sort"
    text = (
        "COPY a /all\n"
        f"FROM {BASE}\n"
        "RUN ln -s /srv /link && mkdir /srv/kept\n"
        "COPY --parents a/b/*.txt a/./b/two.md /p/\n"
        "COPY --exclude=**/*.md --chmod=go+rX a /x\n"
        "COPY --from=0 --exclude=b /all /fx/\n"
        "COPY --from=0 --parents /all/./b/*.md /fp\n"
        "COPY --from=0 /all/*.t* /glob/\n"
        "COPY --link --chown=5:6 a/three.txt /linked/deep/\n"
        "COPY --link a/three.txt /srv/\n"
        "COPY --chown=daemon a/three.txt /owned/by/\n"
        f"RUN {'; '.join(find.format(path) for path in ('/p', '/x', '/fx', '/fp', '/glob', '/srv'))}; "
        "stat -c '%n %u:%g' /linked/deep /linked/deep/three.txt /owned/by; readlink /link\n"
    )
    output = built(cli, context, text)
    for line in (
        "a 755 root", "a/b 700 root", "a/b/one.txt 600 root", "b 700 root", "b/two.md 600 root",
        "b 755 root", "b/one.txt 644 root", "three.txt 644 root",
        "three.txt 600 root", "kept 755 root",
        "/linked/deep 5:6", "/linked/deep/three.txt 5:6", "/owned/by 1:1", "/srv",
    ):  # fmt: skip
        assert any(each.endswith(f" {line}") for each in output.splitlines()), (line, output)
    # A linked copy is taken again whatever is below it.
    assert "CACHED" in built(cli, context, "RUN echo another base\nCOPY --link a/three.txt /srv/\n")


AGENT = f"""\
RUN --mount=type=ssh,required perl -e '{" ".join(ASK.split())}' 11 17
RUN test ! -e /run/buildkit
"""


def test_an_agent_is_lent_to_the_step_alone(cli: Cli, context: Path, tmp_path: Path) -> None:
    with serve_agent(tmp_path / "agent") as path:
        output = built(cli, context, AGENT, "--ssh", f"default={path}")
    # Listing keys passes; adding one is refused before the agent hears of it.
    assert "asked 11, got 12" in output and "asked 17, got 5" in output
    refused = build(cli, context, AGENT.replace("asked", "again"))
    assert refused.status == 1 and "SSH agent `default` is required" in refused.stderr
