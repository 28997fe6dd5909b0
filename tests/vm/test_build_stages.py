"""Stages on a real guest: what is copied between them, as whom it runs, and what is left to collect afterwards."""

from __future__ import annotations

from pathlib import Path

from tests.support.cli import BUILD_TIMEOUT_S, Cli
from tests.vm.conftest import BASE

TAG = "tests/stages:1"

DOCKERFILE = f"""
FROM {BASE} AS one
RUN mkdir /made && echo first >/made/file && chown 7:8 /made/file && chmod 4755 /made/file && ln /made/file /made/again
RUN rm /etc/issue && mkdir -p /gone && touch /gone/x

FROM {BASE} AS unused
RUN exit 1

FROM one AS two
RUN rm -r /gone && echo second >>/made/file

FROM {BASE}
COPY --from=one /made/file /by-name
COPY --from=0 /made /linked/
COPY --from=2 /made /by-number/
COPY --from={BASE} /etc/debian_version /from-image
COPY .hidden visible/ /both/
USER nobody
RUN echo "to stdout as $(id -un)" >/dev/stdout && echo "to stderr" >/dev/stderr
COPY --chmod=755 show /show
CMD ["/show"]
"""


SHOW = """#!/bin/sh
echo out >/dev/stdout
echo err >/dev/stderr
cat /by-name /by-number/file
stat -c '%a %u %g %h %n' /by-name /linked/again
ls -A /both
"""


def test_stages_users_and_what_is_left(cli: Cli, context: Path) -> None:
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "show").write_text(SHOW)
    (context / ".hidden").write_text("h")
    (context / "visible").mkdir()
    (context / "visible" / "inside").write_text("i")
    cli.ok("rootfs", context, "--tag", TAG, timeout_s=BUILD_TIMEOUT_S)
    result = cli.run("run", "--rm", "--name", "stages1", "--network", "none", "--from", TAG)
    assert result.status == 0, result.describe()
    assert result.stdout.splitlines() == [
        "out", "first", "first", "second", "4755 7 8 1 /by-name", "4755 7 8 2 /linked/again", ".hidden", "inside",
    ]  # fmt: skip
    assert "err" in result.stderr.splitlines()
    by_id = cli.json("image", "inspect", cli.json("image", "inspect", TAG)[0]["Id"][7:19])
    assert by_id[0]["RepoTags"] == [TAG]

    # An interrupted test may not leave its image: the next build of it would be cached.
    cli.ok("image", "rm", TAG)
    assert "0 disks" not in cli.ok("gc", "--dry-run")
    cli.ok("gc", "--all")
    cli.ok("fsck")
    assert "0 disks, 0 blobs, 0 cached steps" in cli.ok("gc", "--all", "--dry-run")
    assert cli.run("run", "--rm", "--name", "stages2", "--network", "none", "--from", BASE, "--", "true").status == 0
