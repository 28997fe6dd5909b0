"""Whole builds against a fake machine: what runs, what is cached, what is said, what the image says afterwards."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from firebuild.build.build import build_image
from firebuild.build.output import OUTPUT_CAP
from firebuild.build.services import BuildRequest
from firebuild.errors import (
    BuildError,
    ContextError,
    DockerfileError,
    GuestError,
    NotFoundError,
    StepFailedError,
    StoreError,
)
from firebuild.events.model import StepCanceled, StepFailed, StepOutput, WarningRaised
from firebuild.guest.build import RunSpec
from firebuild.names import parse_reference
from firebuild.store.images import RunConfig
from tests.unit.build.fakes import FakeGuest, Tree, Workshop

REDIS = """\
FROM debian:12
ARG VERSION=7
RUN apt-get install redis=$VERSION
COPY redis.conf /etc/redis/
ENV PORT=6379
WORKDIR /data
USER redis
EXPOSE $PORT
ENTRYPOINT ["redis-server"]
CMD ["/etc/redis/redis.conf"]
"""


@pytest.fixture
def redis(workshop: Workshop) -> Workshop:
    (workshop.context / "redis.conf").write_text("port 6379\n")
    return workshop


def test_a_build_makes_layers_an_image_and_its_disk(redis: Workshop) -> None:
    result, recorder = redis.build(REDIS)
    assert (result.steps, result.cached, result.booted) == (3, 0, True)
    assert redis.boots == 1 and len(redis.ensured) == 1
    assert len(result.image.layers) == 4
    assert redis.guest.ran[0].argv == ["/bin/sh", "-c", "apt-get install redis=$VERSION"]
    assert redis.guest.ran[0].env == ["LANG=C", "PATH=/bin", "VERSION=7"]
    assert result.disk is not None and redis.disks.trees[result.disk.path]["etc/redis/redis.conf"] == b"port 6379\n"
    titles = list(recorder.titles().values())
    assert titles[:3] == [
        "[internal] load build definition from Dockerfile",
        "[internal] load metadata for docker.io/library/debian:12",
        "[internal] load build context",
    ]
    assert "[2/4] RUN apt-get install redis=7" in titles and "[3/4] COPY redis.conf /etc/redis/" in titles
    assert redis.images.get_image(parse_reference("test/result:1")).id == result.image.id


def test_the_configuration_and_history_are_docker_s(redis: Workshop) -> None:
    image = redis.build(REDIS)[0].image
    run = image.config.config
    assert run.env == ["PATH=/bin", "LANG=C", "PORT=6379"]
    assert (run.user, run.working_dir, run.entrypoint, run.cmd) == (
        "redis", "/data", ["redis-server"], ["/etc/redis/redis.conf"],
    )  # fmt: skip
    assert run.exposed_ports == {"6379/tcp": {}}
    assert [(entry.created_by, entry.empty_layer) for entry in image.config.history] == [
        ("", False),
        ("ARG VERSION=7", True),
        ("RUN |1 VERSION=7 /bin/sh -c apt-get install redis=$VERSION # buildkit", False),
        ("COPY redis.conf /etc/redis/ # buildkit", False),
        ("ENV PORT=6379", True),
        ("WORKDIR /data", False),
        ("USER redis", True),
        ("EXPOSE [6379/tcp]", True),
        ('ENTRYPOINT ["redis-server"]', True),
        ('CMD ["/etc/redis/redis.conf"]', True),
    ]
    assert image.config.created == image.config.history[-1].created
    assert len(image.config.rootfs.diff_ids) == 4


def test_a_build_from_the_cache_boots_no_machine_and_gives_the_same_image(redis: Workshop) -> None:
    first, _ = redis.build(REDIS)
    second, recorder = redis.build(REDIS, tag="other:2")
    assert redis.boots == 1
    assert (second.steps, second.cached, second.booted) == (3, 3, False)
    assert second.image.manifest_digest == first.image.manifest_digest
    assert second.disk == first.disk
    assert [title.partition("] ")[2] for title in recorder.cached()] == [
        f"FROM docker.io/library/debian:12@{redis.images.get_image(parse_reference('debian:12')).manifest_digest}",
        "RUN apt-get install redis=7",
        "COPY redis.conf /etc/redis/",
        "WORKDIR /data",
    ]


def test_only_the_configuration_changed(redis: Workshop) -> None:
    redis.build(REDIS)
    second, _ = redis.build(REDIS.replace("CMD", "STOPSIGNAL SIGINT\nCMD"))
    assert redis.boots == 1 and second.cached == 3
    assert second.image.config.config.stop_signal == "SIGINT"


def test_a_missing_disk_is_made_from_the_image(redis: Workshop) -> None:
    redis.build(REDIS, make_disk=False)
    base = redis.images.get_image(parse_reference("debian:12"))
    assert [disk.chain_id for disk in redis.disks.disks.values()] == [base.chain_id]
    result, _ = redis.build(REDIS)
    assert redis.boots == 1 and [image.id for image in redis.ensured] == [base.id, result.image.id]


def test_a_base_is_mounted_as_a_disk_that_is_made_once(redis: Workshop) -> None:
    redis.build(REDIS, no_cache=True)
    assert redis.guest.applied == [] and "b0" in redis.guest.layers
    result, _ = redis.build(REDIS, no_cache=True)
    assert redis.guest.applied == [] and len(redis.ensured) == 1
    # The result began as a copy of the base's disk: only the layers above were carried out on it.
    assert result.disk is not None
    assert all("b0" not in stack for stack in redis.guest.written)
    assert redis.disks.trees[result.disk.path]["bin/sh"] == b"shell"


@pytest.mark.parametrize(
    ("change", "part", "reason"),
    [
        (lambda w: (w.context / "redis.conf").write_text("port 1\n"), "COPY", "rebuilt: file redis.conf changed"),
        (lambda w: (w.context / "redis.conf").chmod(0o600), "COPY", "rebuilt: file redis.conf changed"),
        (lambda w: w.add_image("debian:12", {"bin/sh": b"new"}), "RUN", "rebuilt: the base image debian:12 changed"),
    ],
    ids=["content", "mode", "base"],
)
def test_a_miss_explains_itself(redis: Workshop, change: Any, part: str, reason: str) -> None:
    redis.build(REDIS)
    change(redis)
    _, recorder = redis.build(REDIS)
    assert reason in recorder.reason(part)


def test_other_reasons_for_a_miss(redis: Workshop) -> None:
    redis.build(REDIS)
    _, recorder = redis.build(REDIS, build_args={"VERSION": "8"})
    assert recorder.reason("RUN") == "rebuilt: build argument VERSION changed"
    assert recorder.reason("COPY") == "rebuilt: an earlier step changed"
    _, recorder = redis.build(REDIS.replace("apt-get", "apt"), build_args={"VERSION": "8"})
    assert recorder.reason("RUN") == "rebuilt: the command changed"
    _, recorder = redis.build(REDIS.replace("ARG VERSION=7", "ARG VERSION=7\nENV DEBUG=1"))
    assert "environment variable DEBUG is new" in recorder.reason("RUN")
    text = REDIS.replace("WORKDIR /data\n", "WORKDIR /data\nCOPY . /srv\n")
    redis.build(text)
    (redis.context / "app.py").write_text("1")
    _, recorder = redis.build(text)
    assert recorder.reason("COPY . /srv") == "rebuilt: file app.py is new"
    assert recorder.cached()[1:] == [
        "[2/5] RUN apt-get install redis=7",
        "[3/5] COPY redis.conf /etc/redis/",
        "[4/5] WORKDIR /data",
    ]


def test_a_layer_that_is_gone_is_made_again(redis: Workshop) -> None:
    first, _ = redis.build(REDIS)
    redis.blobs.remove(first.image.layers[1].digest)
    second, recorder = redis.build(REDIS)
    assert recorder.reason("RUN") == "rebuilt: its layer is no longer in the store"
    # The step made the same bytes again, so what is above it is still good.
    assert second.cached == 2 and second.image.layers == first.image.layers


def test_a_cached_layer_that_was_changed_is_not_used(redis: Workshop) -> None:
    """Its size as before, and a step of the cache points to it: no machine builds on it."""
    first, _ = redis.build(REDIS)
    blob = redis.blobs.path(first.image.layers[1].digest)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)
    with pytest.raises(StoreError, match=f"{first.image.layers[1].digest} is damaged"):
        redis.build(REDIS + "RUN look\n")


def test_touching_a_file_changes_nothing(redis: Workshop) -> None:
    redis.build(REDIS)
    os.utime(redis.context / "redis.conf", (1, 1))
    assert redis.build(REDIS)[0].cached == 3


def test_values_of_arguments_are_not_in_the_database(redis: Workshop) -> None:
    redis.build(REDIS, build_args={"VERSION": "canary-4711"})
    rows = redis.database.query("SELECT explain FROM steps")
    assert len(rows) == 3 and not any("canary-4711" in row["explain"] for row in rows)


def test_no_cache_runs_everything_and_what_it_made_counts_afterwards(redis: Workshop) -> None:
    redis.build(REDIS)
    again, _ = redis.build(REDIS, no_cache=True)
    assert again.cached == 0 and redis.boots == 2
    assert redis.build(REDIS)[0].cached == 3


def test_cached_layers_below_a_miss_are_sent_to_the_machine(redis: Workshop) -> None:
    redis.build(REDIS)
    seen: list[Tree] = []

    def look(guest: FakeGuest, view: Tree, spec: RunSpec, output: Any) -> int:
        seen.append(dict(view))
        view["new"] = b"1"
        return 0

    redis.commands["look"] = look
    result, _ = redis.build(REDIS + "RUN look\n")
    assert result.cached == 3
    assert seen[0]["etc/redis/redis.conf"] == b"port 6379\n" and "bin/sh" in seen[0]


def test_stages(workshop: Workshop) -> None:
    text = """\
FROM debian:12 AS builder
RUN compile
FROM debian:12 AS unused
RUN never
FROM scratch
COPY --from=builder /ran/1 /app
COPY --from=0 /bin/sh /sh
"""
    result, recorder = workshop.build(text)
    assert [spec.argv[-1] for spec in workshop.guest.ran] == ["compile"]
    assert len(result.image.layers) == 2
    assert "[builder 2/2] RUN compile" in recorder.titles().values()
    assert "[stage-2 1/2] COPY --from=builder /ran/1 /app" in recorder.titles().values()
    assert result.image.config.config.env[0].startswith("PATH=/usr/local/sbin")
    assert result.image.config.config.working_dir == "/"


def test_a_changed_stage_is_the_reason_of_its_copy(workshop: Workshop) -> None:
    text = "FROM debian:12 AS a\nRUN one\nFROM scratch\nCOPY --from=a /ran/1 /x\n"
    workshop.build(text)
    _, recorder = workshop.build(text.replace("one", "two"))
    assert recorder.reason("COPY") == "rebuilt: stage a changed"


def test_copy_from_an_image_and_a_target(workshop: Workshop) -> None:
    workshop.add_image("tools:1", {"tool": b"1"})
    text = "FROM debian:12 AS one\nCOPY --from=tools:1 /tool /usr/bin/\nFROM one\nRUN never\n"
    result, _ = workshop.build(text, target="ONE")
    assert workshop.guest.ran == [] and len(result.image.layers) == 2
    assert workshop.disks.trees[result.disk.path]["usr/bin/tool"] == b"1"  # type: ignore[union-attr]
    assert isinstance(workshop.fail(text, target="nothing"), NotFoundError)


def test_independent_stages_run_at_once(workshop: Workshop) -> None:
    both = threading.Barrier(2, timeout=60)

    def meet(guest: FakeGuest, view: Tree, spec: RunSpec, output: Any) -> int:
        both.wait()
        view[spec.argv[-1]] = b"met"
        return 0

    workshop.commands |= {"a": meet, "b": meet}
    workshop.build(
        "FROM debian:12 AS a\nRUN a\nFROM debian:12 AS b\nRUN b\nFROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n"
    )
    assert workshop.boots == 1


def test_equal_steps_of_two_stages_run_once(workshop: Workshop) -> None:
    text = "FROM debian:12 AS a\nRUN same\nFROM debian:12 AS b\nRUN same\nFROM scratch\nCOPY --from=a /ran/1 /a\nCOPY --from=b /ran/1 /b\n"
    result, _ = workshop.build(text)
    assert len(workshop.guest.ran) == 1 and result.cached == 1


def fail_with(code: int, lines: int) -> Any:
    def command(guest: FakeGuest, view: Tree, spec: RunSpec, output: Any) -> int:
        for number in range(lines):
            output("stderr", f"line {number}\n".encode())
        output("stdout", b"\x1b[2Jbye\x1b]0;title\x07")
        return code

    return command


def test_a_command_that_fails(workshop: Workshop) -> None:
    workshop.commands["bad"] = fail_with(42, 100)
    error = workshop.fail("FROM debian:12\n\nRUN bad\nRUN never\n", name="box/Dockerfile")
    assert isinstance(error, StepFailedError) and error.status == 42
    assert error.message == "box/Dockerfile:3:1: `RUN bad` failed with exit code 42"
    assert error.details is not None
    lines = error.details.splitlines()
    assert "  line 51" in lines and "  line 50" not in lines and "  bye" in lines
    assert "3 | >>> RUN bad" in lines and "\x1b" not in error.details
    assert workshop.guest.dropped == ["l1"] and len(workshop.guest.ran) == 1
    # What was done before it is kept.
    workshop.commands.clear()
    assert workshop.build("FROM debian:12\nRUN ok\nRUN bad\n")[0].cached == 0


def test_a_failure_ends_the_other_stages(workshop: Workshop) -> None:
    started = threading.Event()

    def hang(guest: FakeGuest, view: Tree, spec: RunSpec, output: Any) -> int:
        started.set()
        guest.dead.wait(60)
        return 0

    def bad(guest: FakeGuest, view: Tree, spec: RunSpec, output: Any) -> int:
        started.wait(60)
        return 3

    workshop.commands |= {"hang": hang, "bad": bad}
    recorder: list[Any] = []

    class Sink:
        def emit(self, event: Any) -> None:
            recorder.append(event)

    text = "FROM debian:12 AS a\nRUN hang\nFROM debian:12\nRUN bad\nCOPY --from=a /x /\n"
    with pytest.raises(StepFailedError, match="RUN bad"):
        build_image(BuildRequest(text.encode(), progress=Sink(), context=workshop.context), workshop.services())
    assert sum(isinstance(event, StepFailed) for event in recorder) == 1
    assert sum(isinstance(event, StepCanceled) for event in recorder) == 1


def test_an_interrupt_leaves_nothing(workshop: Workshop) -> None:
    def interrupt(guest: FakeGuest, view: Tree, spec: RunSpec, output: Any) -> int:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        guest.dead.wait(60)
        return 0

    workshop.commands["wait"] = interrupt
    # A shell starts what it runs in the background with SIGINT ignored, and Python leaves that as it is.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            workshop.build("FROM debian:12\nRUN wait\n")
    finally:
        signal.signal(signal.SIGINT, before)
    workshop.check_nothing_left()
    assert workshop.images.find_image(parse_reference("test/result:1")) is None


def test_an_interrupt_while_the_machine_boots(workshop: Workshop) -> None:
    workshop.boot_error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        workshop.build("FROM debian:12 AS a\nRUN a\nFROM debian:12\nRUN b\nCOPY --from=a / /\n")
    workshop.check_nothing_left()


def test_a_machine_that_does_not_boot(workshop: Workshop) -> None:
    workshop.boot_error = GuestError("the guest did not become ready")
    assert workshop.fail("FROM debian:12\nRUN a\n") is workshop.boot_error


def test_a_machine_that_dies_during_a_step_names_it(workshop: Workshop) -> None:
    def die(guest: FakeGuest, view: Tree, spec: RunSpec, output: Any) -> int:
        output("stdout", b"last words\n")
        guest.dead.set()
        return 0

    workshop.commands["die"] = die
    error = workshop.fail("FROM debian:12\nRUN die\n")
    assert isinstance(error, GuestError) and error.message.startswith(
        "Dockerfile:2:1: the build machine failed during `RUN die`"
    )
    assert error.details is not None and "last words" in error.details


def test_output_is_capped(workshop: Workshop) -> None:
    def flood(guest: FakeGuest, view: Tree, spec: RunSpec, output: Any) -> int:
        block = b"x" * 99 + b"\n"
        for _ in range(OUTPUT_CAP // 1_000_000 + 3):
            output("stdout", block * 10_000)
        output("stdout", b"the end\n")
        return 1

    workshop.commands["flood"] = flood
    total = 0
    texts: list[bytes] = []

    class Sink:
        def emit(self, event: Any) -> None:
            nonlocal total
            if isinstance(event, StepOutput):
                total += len(event.data)
                texts.append(event.data[-200:])

    with pytest.raises(StepFailedError) as caught:
        build_image(BuildRequest(b"FROM debian:12\nRUN flood\n", progress=Sink()), workshop.services())
    assert total <= OUTPUT_CAP + 200 and b"4 MiB" in texts[-1]
    assert caught.value.details is not None and "the end" in caught.value.details


@pytest.mark.parametrize(
    ("line", "error", "text"),
    [
        ("COPY missing.txt /", ContextError, "missing.txt"),
        ("COPY ../x /", ContextError, "outside the build context"),
        ("COPY pipe /", ContextError, "a FIFO"),
        ("COPY secret.txt /", ContextError, ".dockerignore leaves it out"),
        ("RUN --network=host true", DockerfileError, "--network=host"),
        ("RUN --security=insecure true", DockerfileError, "--security"),
        ("COPY --chmod=99 a /", DockerfileError, "octal"),
        ("COPY --from=nobody/nothing a /", NotFoundError, "nobody/nothing"),
        ("COPY [a /", BuildError, "not a valid pattern"),
        ("COPY [a b* /", BuildError, "not a valid pattern"),
    ],
)  # fmt: skip
def test_refusals_before_any_machine(workshop: Workshop, line: str, error: type[Exception], text: str) -> None:
    os.mkfifo(workshop.context / "pipe")
    (workshop.context / ".dockerignore").write_text("secret*\n")
    (workshop.context / "secret.txt").write_text("x")
    found = workshop.fail(f"FROM debian:12\nENV A=1\n{line}\n")
    assert isinstance(found, error) and text in found.message
    assert found.message.startswith("Dockerfile:3:") and ">>>" in (found.details or "")
    assert workshop.boots == 0


def test_faults_of_copies_in_the_machine_have_their_place(workshop: Workshop) -> None:
    error = workshop.fail("FROM debian:12 AS a\nFROM debian:12\nCOPY --from=a /nothing /x\n")
    assert type(error) is BuildError and error.message.startswith("Dockerfile:3:1: ")
    assert "`/nothing` does not exist" in error.message


def test_workdir(workshop: Workshop) -> None:
    result, _ = workshop.build("FROM debian:12\nUSER app\nWORKDIR /etc\nWORKDIR sub\nWORKDIR /\nRUN pwd\n")
    assert [(copy["dest"], copy["chown"]) for copy in workshop.guest.copies] == [("/etc/sub/", "app")]
    assert len(result.image.layers) == 4
    assert [entry.created_by for entry in result.image.config.history[2:5]] == [
        "WORKDIR /etc",
        "WORKDIR /etc/sub",
        "WORKDIR /",
    ]
    assert result.image.config.history[4].empty_layer
    assert workshop.guest.ran[0].workdir == "/" and workshop.guest.ran[0].user == "app"
    assert isinstance(workshop.fail("FROM debian:12\nWORKDIR /bin/sh\n"), BuildError)


def test_onbuild(workshop: Workshop) -> None:
    workshop.add_image("onbuild:1", {"bin/sh": b"s"}, RunConfig(on_build=["RUN triggered", "ENV A=1"]))
    result, recorder = workshop.build("FROM onbuild:1 AS x\nONBUILD RUN later\nFROM x\nRUN own\n")
    assert [spec.argv[-1] for spec in workshop.guest.ran] == ["triggered", "later", "own"]
    assert workshop.guest.ran[1].env[0] == "A=1"
    assert result.image.config.config.on_build == []
    assert "[x 2/2] ONBUILD RUN triggered" in recorder.titles().values()
    kept, _ = workshop.build("FROM debian:12\nONBUILD COPY . /app\n")
    assert kept.image.config.config.on_build == ["COPY . /app"]


def test_heredocs(workshop: Workshop) -> None:
    workshop.build(
        'FROM debian:12\nARG N=x\nRUN <<EOF\necho a\necho $N\nEOF\nCOPY <<one <<"two" /etc/\nsay $N\none\nsay $N\ntwo\n'
    )
    assert workshop.guest.ran[0].argv == ["/bin/sh", "-c", "echo a\necho $N\n"]
    copy = workshop.guest.copies[0]
    assert [item.name for item in copy["items"]] == ["one", "two"]
    assert copy["tar"] == {"0": b"say x\n", "1": b"say $N\n"}


def test_proxies_reach_the_step_and_are_no_part_of_its_key(workshop: Workshop) -> None:
    text = "FROM debian:12\nRUN fetch\n"
    workshop.build(text, build_args={"http_proxy": "http://proxy-1"})
    assert "HTTP_PROXY=http://proxy-1" in workshop.guest.ran[0].env
    result, _ = workshop.build(text, build_args={"http_proxy": "http://two"})
    assert result.cached == 1 and "proxy-1" not in str(result.image.config)


def test_labels_epoch_and_warnings(workshop: Workshop) -> None:
    workshop.add_image("arm:1", {"bin/sh": b"s"}, architecture="arm64")
    args = {"SOURCE_DATE_EPOCH": "86400", "TYPO": "1"}
    result, recorder = workshop.build("FROM arm:1\nRUN a\nCOPY no* /x\n", labels={"a": "b"}, build_args=args)
    assert result.image.config.config.labels == {"a": "b"}
    assert result.image.config.created == "1970-01-02T00:00:00Z"
    warnings = [event.text for event in recorder.events if isinstance(event, WarningRaised)]
    assert any("TYPO" in text for text in warnings) and any("arm64" in text for text in warnings)
    assert any("no*" in text for text in warnings)


def test_a_build_without_layers_of_its_own_is_stable(workshop: Workshop) -> None:
    first, _ = workshop.build("FROM debian:12\nENV A=1\n")
    second, _ = workshop.build("FROM debian:12\nENV A=1\n")
    assert workshop.boots == 0 and first.image.id == second.image.id
    assert first.image.config.created == "2026-01-02T03:04:05Z"


def test_a_build_without_a_context(workshop: Workshop) -> None:
    assert workshop.build("FROM debian:12\nRUN a\n", context=None)[0].cached == 0
    assert "no context" in workshop.fail("FROM debian:12\nCOPY a /\n", context=None).message
    assert isinstance(workshop.fail("FROM debian:12\nCOPY a /\n", context=Path("/nonexistent")), ContextError)


def test_network_none_is_for_every_run(workshop: Workshop) -> None:
    workshop.build("FROM debian:12\nRUN a\n", network="none")
    workshop.build("FROM debian:12\nRUN --network=none b\nRUN c\n")
    assert [spec.network for guest in workshop.guests for spec in guest.ran] == ["none", "none", "default"]
