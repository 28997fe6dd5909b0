"""RUN --mount in whole builds against a fake machine: what the guest is asked for, what counts, what is refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from firebuild.build.secrets import Lent, SecretSource
from firebuild.errors import BuildError, ContextError, DockerfileError, UsageError
from firebuild.guest.mounts import BindMount, CacheMount, Mount, SecretMount, TmpfsMount
from tests.unit.build.fakes import Workshop

CANARY = "canary-9b1c"
M = TypeVar("M")


def of_kind(kind: type[M], mounts: Sequence[Mount]) -> list[M]:
    """The mounts, which must all be of that kind."""
    found: list[M] = [mount for mount in mounts if isinstance(mount, kind)]
    assert len(found) == len(mounts)
    return found


def mounts_of(workshop: Workshop, run: str, **options: Any) -> list[Any]:
    """The mounts of the only RUN of a build, as the guest got them."""
    workshop.build(f"FROM debian:12\nWORKDIR /w\nRUN {run}\n", no_cache=True, **options)
    return workshop.guest.ran[-1].mounts


def lend(tmp_path: Path, **secrets: str) -> Lent:
    """These secrets, from files."""
    sources = {}
    for name, content in secrets.items():
        (tmp_path / f"{name}.secret").write_text(content)
        sources[name] = SecretSource(path=tmp_path / f"{name}.secret")
    return Lent(sources)


def test_what_a_bind_of_the_context_sends(workshop: Workshop) -> None:
    (workshop.context / "sub").mkdir()
    (workshop.context / "sub" / "x").write_text("x")
    (workshop.context / "a[1].txt").write_text("one")
    (workshop.context / ".dockerignore").write_text("secret*\n")
    (workshop.context / "secret.txt").write_text("no")
    [mount] = mounts_of(workshop, "--mount=target=. make")
    assert mount == BindMount("/w", mount.stack, "/source", read_only=True)
    tree = workshop.guest.merged(mount.stack)
    assert tree["source/sub/x"] == b"x" and "source/secret.txt" not in tree
    [mount] = mounts_of(workshop, "--mount=type=bind,source=sub/../sub,dst=/t,rw make")
    assert (mount.target, mount.read_only) == ("/t", False)
    assert workshop.guest.merged(mount.stack)["source/x"] == b"x"
    # A source is no pattern, and cannot leave the context.
    [mount] = mounts_of(workshop, "--mount=source=../../a[1].txt,target=f make")
    assert mount.target == "/w/f" and workshop.guest.merged(mount.stack)["source"] == b"one"


def test_a_context_that_is_mounted_often_is_sent_once(workshop: Workshop) -> None:
    (workshop.context / "x").write_text("x")
    run = "RUN --mount=target=/src --mount=target=/again make"
    workshop.build(f"FROM debian:12\n{run} 1\n{run} 2\n")
    assert len(workshop.guest.copies) == 1
    assert len({mount.stack[0] for spec in workshop.guest.ran for mount in of_kind(BindMount, spec.mounts)}) == 1


def test_what_a_bind_of_a_stage_or_an_image_names(workshop: Workshop) -> None:
    workshop.add_image("tools:1", {"bin/tool": b"t"})
    workshop.build(
        "FROM debian:12 AS made\nRUN make\n"
        "FROM debian:12 AS unused\nRUN never\n"
        "FROM debian:12\n"
        "RUN --mount=from=made,source=out,target=/made --mount=from=tools:1,target=/tools,rw "
        "--mount=from=scratch,target=/none go\n"
    )
    [made, tools, none] = of_kind(BindMount, workshop.guest.ran[-1].mounts)
    assert (made.source, made.read_only) == ("/out", True) and "ran/1" in workshop.guest.merged(made.stack)
    assert workshop.guest.merged(tools.stack) == {"bin/tool": b"t"} and not tools.read_only
    assert none == BindMount("/none", [])
    assert [spec.argv[-1] for spec in workshop.guest.ran] == ["make", "go"]


def test_memory_and_defaults(workshop: Workshop) -> None:
    [memory, small] = mounts_of(workshop, "--mount=type=tmpfs,target=/a --mount=type=tmpfs,target=/b,size=2m make")
    assert (memory, small) == (TmpfsMount("/a"), TmpfsMount("/b", 2 << 20))


@pytest.mark.parametrize(
    ("run", "names"),
    [
        ("--mount=target=/", "root"),
        ("--mount=type=tmpfs,target=../..", "root"),
        ("--mount=source=nope,target=/x", "nope"),
        ("--mount=from=nowhere/at/all:1,target=/x", "nowhere"),
        ("--mount=type=secret,id=a,env=A=B", "variable"),
        ("--mount=type=ssh,source=/x", "source"),
        ("--network=host", "--network=host"),
        ("--security=insecure", "--security=insecure"),
    ],
)
def test_what_is_refused_before_a_machine_boots(workshop: Workshop, run: str, names: str) -> None:
    error = workshop.fail(f"FROM debian:12\nRUN {run} make\n")
    assert names in error.message and "Dockerfile:2" in error.message
    assert workshop.boots == 0


def test_a_later_stage_cannot_be_mounted(workshop: Workshop) -> None:
    error = workshop.fail(
        "FROM debian:12\nRUN --mount=from=later,target=/x make\nFROM debian:12 AS later\n", target="0"
    )
    assert "later" in error.message and workshop.boots == 0


# -- keys ------------------------------------------------------------------------------------------------------------


def test_contents_of_binds_count_and_say_so(workshop: Workshop) -> None:
    (workshop.context / "a.txt").write_text("1")
    (workshop.context / "b.txt").write_text("1")
    text = "FROM debian:12\nRUN --mount=source=a.txt,target=/a make\n"
    assert workshop.build(text)[0].cached == 0
    (workshop.context / "b.txt").write_text("2")
    assert workshop.build(text)[0].cached == 1
    (workshop.context / "a.txt").write_text("2")
    result, recorder = workshop.build(text)
    assert result.cached == 0 and recorder.reason("make") == "rebuilt: file a.txt changed"


def test_stages_and_images_that_are_mounted_count(workshop: Workshop) -> None:
    text = "FROM debian:12 AS s\nRUN first {}\nFROM debian:12\nRUN --mount=from=s,target=/s make\n"
    workshop.build(text.format(1))
    assert workshop.build(text.format(1))[0].cached == 2
    result, recorder = workshop.build(text.format(2))
    assert result.cached == 0 and "what is mounted at /s changed" in recorder.reason("make")


def test_definitions_count_but_not_contents_of_secrets_and_caches(workshop: Workshop, tmp_path: Path) -> None:
    run = "RUN --mount=type=secret,id=one{} --mount=type=cache,target=/c{} make\n"
    text = "FROM debian:12\n" + run
    workshop.build(text.format("", ""), lent=lend(tmp_path, one=CANARY))
    assert workshop.build(text.format("", ""), lent=lend(tmp_path, one="other"))[0].cached == 1
    assert workshop.build(text.format("", ""))[0].cached == 1, "what is in the cache needs no secret"
    assert workshop.build(text.format("", ",sharing=locked"))[0].cached == 1
    for changes in ((",env=A", ""), (",target=/x", ""), (",mode=0444", ""), ("", ",id=other"), ("", ",uid=5")):
        result, recorder = workshop.build(text.format(*changes), lent=lend(tmp_path, one=CANARY))
        assert result.cached == 0 and recorder.reason("make") == "rebuilt: its mounts changed"


def test_a_run_without_mounts_has_the_key_that_it_had(workshop: Workshop) -> None:
    workshop.build("FROM debian:12\nRUN make\n")
    row = workshop.database.query_one("SELECT explain FROM steps", ())
    assert row is not None and "mounts" not in row["explain"]


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_go_over_the_stream_alone(
    workshop: Workshop, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("THE_TOKEN", f"{CANARY}-env")
    lent = Lent({**lend(elsewhere, one=f"{CANARY}-file").secrets, "token": SecretSource(env="THE_TOKEN")})
    mounts = mounts_of(
        workshop,
        "--mount=type=secret,id=one --mount=type=secret,id=token,env=TOKEN "
        "--mount=type=secret,target=/etc/one,source=one,uid=5,mode=0444 --mount=type=secret,id=absent make",
        lent=lent,
    )
    assert mounts == [
        SecretMount("/run/secrets/one", None),
        SecretMount(None, "TOKEN"),
        SecretMount("/etc/one", None, 0o444, 5),
    ]
    spec, secrets = workshop.guest.ran[-1], workshop.guest.secrets[-1]
    assert secrets == [f"{CANARY}-{kind}".encode() for kind in ("file", "env", "file")]
    assert CANARY not in repr(spec)
    for path in workshop.folder.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


def test_a_required_secret_that_is_missing_ends_the_build_before_it_boots(workshop: Workshop) -> None:
    error = workshop.fail(
        "FROM debian:12 AS one\nRUN first\nFROM one\nCOPY --from=one /x /y\n"
        "RUN --mount=type=secret,id=token,required make\n"
    )
    assert isinstance(error, BuildError)
    assert "`token`" in error.message and "Dockerfile:5" in error.message and "--secret" in (error.hint or "")
    assert workshop.boots == 0


def test_a_required_agent_that_is_missing(workshop: Workshop) -> None:
    error = workshop.fail("FROM debian:12\nRUN --mount=type=ssh,required make\n")
    assert "SSH agent `default`" in error.message and workshop.boots == 0


def test_an_agent_that_is_not_lent_leaves_its_variable(workshop: Workshop) -> None:
    assert mounts_of(workshop, "--mount=type=ssh --mount=type=ssh,id=b,target=/b make") == []
    assert "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0" in workshop.guest.ran[-1].env
    assert mounts_of(workshop, "--mount=type=ssh,target=/mine make") == []
    assert "SSH_AUTH_SOCK=/mine" in workshop.guest.ran[-1].env


def test_secrets_that_cannot_be_read(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * (500 * 1024 + 1))
    for source in (SecretSource(path=tmp_path / "nope"), SecretSource(env="NOT_SET_AT_ALL"), SecretSource(path=big)):
        with pytest.raises(UsageError, match="one"):
            Lent({"one": source}).check()
    with pytest.raises(UsageError, match="no socket"):
        Lent(agents={"default": big}).check()


# -- caches ----------------------------------------------------------------------------------------------------------


def test_caches_are_attached_for_the_steps_that_run(workshop: Workshop) -> None:
    text = (
        "FROM debian:12\nRUN --mount=type=cache,target=/root/.cache/ one\n"
        "RUN --mount=type=cache,target=/x,id=/root/.cache,ro {}\nRUN --mount=type=cache,target=/y,mode=0700,uid=5 {}\n"
    )
    workshop.build(text.format("two", "three"))
    assert workshop.caches.attached == [["/root/.cache", "/y"]]
    one, two, three = (spec.mounts for spec in workshop.guest.ran)
    assert one == [CacheMount("/root/.cache", "cache0")]
    assert two == [CacheMount("/x", "cache0", read_only=True)]
    assert three == [CacheMount("/y", "cache1", mode=0o700, uid=5)]
    workshop.build(text.format("two", "more"))
    assert workshop.caches.attached[1:] == [["/y"]]
    workshop.build(text.format("two", "more"))
    assert len(workshop.caches.attached) == 2 and workshop.boots == 2


def test_a_cache_begins_with_what_it_comes_from(workshop: Workshop) -> None:
    (workshop.context / "x").write_text("x")
    text = "FROM debian:12 AS s\nRUN first {}\nFROM debian:12\nRUN --mount=type=cache,from=s,source=/a,target=/c {}\n"
    seeds = []
    for stage, run in ((1, "one"), (1, "two"), (2, "two")):
        workshop.build(text.format(stage, run))
        [mount] = of_kind(CacheMount, workshop.guest.ran[-1].mounts)
        assert mount.seed is not None and mount.seed.source == "/a" and workshop.guest.merged(mount.seed.stack)
        seeds.append(mount.seed.id)
    assert seeds[0] == seeds[1] != seeds[2]


def test_private_caches_of_several_stages_are_several(workshop: Workshop) -> None:
    cache = "--mount=type=cache,target=/c,sharing={}"
    text = "".join(f"FROM debian:12 AS s{n}\nRUN {cache} {n}\nRUN {cache} {n} again\n" for n in range(2))
    text += "FROM debian:12\nRUN --mount=from=s0,target=/0 --mount=from=s1,target=/1 both\n"
    for sharing, count in (("private", 2), ("shared", 1), ("locked", 1)):
        workshop.caches.attached.clear()
        workshop.build(text.replace("{}", sharing), no_cache=True)
        assert [len(names) for names in workshop.caches.attached] == [count], sharing
        drives: dict[str, set[str]] = {}
        for spec in workshop.guest.ran[:-1]:
            drives.setdefault(spec.argv[-1][0], set()).add(of_kind(CacheMount, spec.mounts)[0].drive)
        assert all(len(names) == 1 for names in drives.values()), "a stage keeps its own"
        assert (drives["0"] == drives["1"]) is (count == 1)


def test_a_locked_cache_is_for_one_step_at_a_time(workshop: Workshop) -> None:
    users: list[int] = []
    together: list[int] = []

    def use(guest: Any, view: Any, spec: Any, output: Any) -> int:
        users.append(1)
        together.append(len(users))
        threading.Event().wait(0.1)
        users.pop()
        return 0

    workshop.commands = {str(n): use for n in range(3)}
    text = "".join(f"FROM debian:12 AS s{n}\nRUN --mount=type=cache,target=/c,sharing=locked {n}\n" for n in range(3))
    text += "FROM debian:12\nRUN " + " ".join(f"--mount=from=s{n},target=/{n}" for n in range(3)) + " all\n"
    workshop.build(text)
    assert together == [1, 1, 1]


def test_too_many_caches(workshop: Workshop) -> None:
    runs = "".join(f"RUN --mount=type=cache,target=/c{n} {n}\n" for n in range(17))
    error = workshop.fail(f"FROM debian:12\n{runs}")
    assert "17 cache mounts" in error.message and workshop.boots == 0


# -- heredocs --------------------------------------------------------------------------------------------------------


def test_a_script_of_its_own_is_mounted_and_counts(workshop: Workshop) -> None:
    text = "FROM debian:12\nRUN <<EOF\n#!/usr/bin/env python3\nprint({})\nEOF\n"
    result, _ = workshop.build(text.format(1))
    spec = workshop.guest.ran[-1]
    assert spec.argv == ["/bin/sh", "-c", "/dev/pipes/EOF"]
    [mount] = of_kind(BindMount, spec.mounts)
    assert (mount.target, mount.source, mount.read_only) == ("/dev/pipes", "/source", True)
    assert workshop.guest.merged(mount.stack)["source/EOF"] == b"#!/usr/bin/env python3\nprint(1)\n"
    assert workshop.guest.copies[-1]["chmod"] == "755"
    assert result.image.config.history[-1].created_by == "RUN /bin/sh -c /dev/pipes/EOF # buildkit"
    result, recorder = workshop.build(text.format(2))
    assert result.cached == 0 and recorder.reason("EOF") == "rebuilt: its heredoc changed"


# -- copies ----------------------------------------------------------------------------------------------------------


def test_a_linked_copy_does_not_depend_on_what_is_below(workshop: Workshop) -> None:
    (workshop.context / "x").write_text("x")
    text = "FROM debian:12\nRUN {}\nCOPY {} x /app/\n"
    workshop.build(text.format("one", "--link"))
    assert workshop.build(text.format("two", "--link"))[0].cached == 1
    # With a mode of its own it is a copy like any other, as in BuildKit.
    workshop.build(text.format("one", "--link --chmod=755"))
    assert workshop.build(text.format("three", "--link --chmod=755"))[0].cached == 0


def test_flags_of_a_copy_from_a_stage_reach_the_guest(workshop: Workshop) -> None:
    asked: list[dict[str, Any]] = []

    def copy(self: Any, layer: str, *arguments: Any, **options: Any) -> Any:
        asked.append({"paths": list(arguments[2]), **options})
        self.layers[layer] = {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.unit.build.fakes.FakeGuest.copy_from_stack", copy)
        workshop.build(
            "FROM debian:12 AS s\nRUN make\nFROM debian:12\n"
            "COPY --from=s --exclude=*.md --exclude=!a.md --chmod=u+x /src /d\n"
            "COPY --from=s --parents a/./b/*.c /x/y* /e/\nCOPY --from=s /lib/*.so /f/\n"
        )
    assert [each["exclude"] for each in asked] == [["*.md", "!a.md"], [], []]
    assert [each["include"] for each in asked] == [None, ["b/*.c", "x/y*"], None]
    assert [each["paths"] for each in asked] == [["/src"], ["/a", "/"], ["/lib/*.so"]]
    assert asked[0]["chmod"] == "u+x" and asked[1]["dest_is_directory"]
    times = {each["mtime_s"] for each in asked}
    assert all(time >= 1_700_000_000 for time in times)


def test_source_date_epoch_is_the_time_of_what_is_made(workshop: Workshop) -> None:
    (workshop.context / "x").write_text("x")
    text = "FROM debian:12\nARG SOURCE_DATE_EPOCH\nCOPY x /app/\nWORKDIR /new/dir\nCOPY <<A /a\nA\n"
    workshop.build(text, build_args={"SOURCE_DATE_EPOCH": "1234567890"})
    assert [copy["mtime_s"] for copy in workshop.guest.copies] == [1234567890] * 3


@pytest.mark.parametrize(
    ("flags", "names"),
    [("--chmod=999", "octal"), ("--chmod=u+q", "mode"), ("--chmod=77777", "octal"), ("--exclude=[", "malformed")],
)
def test_flags_that_mean_nothing(workshop: Workshop, flags: str, names: str) -> None:
    (workshop.context / "x").write_text("x")
    error = workshop.fail(f"FROM debian:12\nCOPY {flags} x /\n")
    assert isinstance(error, DockerfileError) and names in error.message


def test_a_bind_without_a_context(workshop: Workshop) -> None:
    error = workshop.fail("FROM debian:12\nRUN --mount=target=/src make\n", context=None)
    assert isinstance(error, ContextError) and "no context" in error.message


def test_the_environment_of_the_tests_is_untouched() -> None:
    assert CANARY not in "".join(os.environ.values())
