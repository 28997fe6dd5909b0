"""Builds that somebody looks into, against a fake machine: where they stop, what a new round repeats, and what stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from firebuild.build.build import build_image
from firebuild.build.debug.lines import get_step_at, list_changes
from firebuild.build.debug.model import Debugging
from firebuild.build.debug.shells import CONTINUE_CODE, EXIT_CODE, RETRY_CODE
from firebuild.build.plan import PlanOptions, plan_build
from firebuild.build.services import BuildRequest
from firebuild.build.steps import Plan
from firebuild.dockerfile.scope import Platform
from firebuild.dockerfile.stages import Dockerfile, parse_dockerfile
from firebuild.errors import BuildError, DockerfileError, FirebuildError, GuestError, StepFailedError, UsageError
from firebuild.guest.exec import ProcessEnd
from firebuild.names import parse_reference
from tests.unit.build.fakes import FakeGuest, FakeShell, Recorder, Tree, Workshop

RETRY, CONTINUE, EXIT = ProcessEnd(RETRY_CODE), ProcessEnd(CONTINUE_CODE), ProcessEnd(EXIT_CODE)
KILLED = ProcessEnd(137, 9)
Act = Callable[[FakeShell], ProcessEnd]


class Person:
    """A console: `acts` are what is done in each shell, `lines` what is typed at firebuild's prompt."""

    def __init__(self, *acts: Act | ProcessEnd, lines: tuple[str | None, ...] = ()) -> None:
        self.acts = list(acts)
        self.lines = list(lines)
        self.shells: list[FakeShell] = []
        self.said: list[str] = []
        self.taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        assert threading.current_thread() is threading.main_thread()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def say(self, text: str) -> None:
        assert self.taken == 1
        self.said.append(text)

    def ask(self, prompt: str) -> str | None:
        assert self.taken == 1 and prompt
        return self.lines.pop(0)

    def size(self) -> tuple[int, int]:
        return 30, 90

    def attach(self, session: Any) -> ProcessEnd:
        assert self.taken == 1
        self.shells.append(session)
        act = self.acts.pop(0)
        return act if isinstance(act, ProcessEnd) else act(session)

    @property
    def talk(self) -> str:
        return "\n".join(self.said)


class Round:
    """A build whose Dockerfile can be edited: `text` is the file."""

    def __init__(self, workshop: Workshop, text: str) -> None:
        self.workshop = workshop
        self.text = text
        self.recorder = Recorder()

    def build(self, person: Person, *, on_failure: bool = True, lines: tuple[int, ...] = (), **options: Any) -> Any:
        debug = Debugging(person, on_failure=on_failure, lines=lines)
        self.recorder = Recorder()
        request = BuildRequest(
            dockerfile=self.text.encode(), context=self.workshop.context, tags=[parse_reference("test/result:1")],
            progress=self.recorder, debug=debug, reread=lambda: replace(request, dockerfile=self.text.encode()), **options,
        )  # fmt: skip
        result = build_image(request, self.workshop.services())
        assert not person.acts and not person.lines and person.taken == 0
        return result

    def fail(self, person: Person, **options: Any) -> FirebuildError:
        with pytest.raises(FirebuildError) as caught:
            self.build(person, **options)
        assert person.taken == 0
        self.workshop.check_nothing_left()
        return caught.value

    def edit(self, old: str, new: str, end: ProcessEnd = RETRY) -> Act:
        """In the shell: change the file, and leave with `retry`."""

        def act(shell: FakeShell) -> ProcessEnd:
            assert old in self.text
            self.text = self.text.replace(old, new)
            return end

        return act


def failing(guest: FakeGuest, view: Tree, spec: Any, output: Any) -> int:
    view["left"] = b"by the failed command"
    output("stderr", b"no\n")
    return 3


@pytest.fixture
def shop(workshop: Workshop) -> Workshop:
    workshop.commands["fail"] = failing
    return workshop


STAGE = "FROM debian:12\nENV A=1\nWORKDIR /w\nUSER 7\nRUN one\nRUN fail\nRUN three\n"


def ran(shop: Workshop) -> list[str]:
    return [spec.argv[-1] for guest in shop.guests for spec in guest.ran]


def test_a_failed_step_is_looked_at_and_run_again(shop: Workshop) -> None:
    build = Round(shop, STAGE)

    def look(shell: FakeShell) -> ProcessEnd:
        assert shell.files["left"] == b"by the failed command" and "ran/1" in shell.files
        shell.written["mine"] = b"of the shell"
        return build.edit("RUN fail", "RUN mended")(shell)

    person = Person(look)
    result = build.build(person)
    spec = person.shells[0].spec
    assert (spec.user, spec.workdir, spec.tty, spec.stdin, spec.rows, spec.cols) == ("7", "/w", True, True, 30, 90)
    assert "A=1" in spec.env and spec.network == "default"
    assert ran(shop) == ["one", "fail", "mended", "three"] and shop.boots == 1
    assert "line 6 runs as it is now: `RUN mended`" in person.talk
    assert "failed with exit code 3" in person.said[0] and ">>> RUN fail" in person.talk
    assert person.said[2].startswith("debug: /bin/sh in the failed step, as 7 in /w.")
    tree = shop.disks.trees[result.disk.path]
    assert "left" not in tree and "mine" not in tree and "ran/3" in tree
    # A build without a person has all of it, and nothing else.
    again, _ = shop.build(build.text)
    assert again.cached == again.steps == 4 and again.image.id == result.image.id


def test_exit_ends_the_build_with_the_error(shop: Workshop) -> None:
    for end in (EXIT, ProcessEnd(0), ProcessEnd(130)):
        error = Round(shop, STAGE).fail(Person(end))
        assert isinstance(error, StepFailedError) and error.status == 3


def test_a_file_that_makes_no_build_leads_back_into_the_shell(shop: Workshop) -> None:
    build = Round(shop, STAGE)

    def first(shell: FakeShell) -> ProcessEnd:
        shell.written["mine"] = b"kept"
        return build.edit("RUN fail", "NONSENSE")(shell)

    def second(shell: FakeShell) -> ProcessEnd:
        assert shell.files["mine"] == b"kept" and "left" in shell.files
        return build.edit("NONSENSE", "RUN well")(shell)

    person = Person(first, second)
    build.build(person)
    assert "NONSENSE" in person.talk and "no build" in person.talk
    assert ran(shop)[-2:] == ["well", "three"]
    # The shells' layers and the failed one are gone from the guest.
    assert len(shop.guest.dropped) == 3


def test_earlier_steps_that_an_edit_changes_run_again(shop: Workshop) -> None:
    build = Round(shop, STAGE.replace("RUN fail", "RUN fail\nRUN never"))
    person = Person(build.edit("RUN one", "RUN uno"), build.edit("RUN fail", "RUN well"))
    build.build(person)
    assert ran(shop) == ["one", "fail", "uno", "fail", "well", "never", "three"]
    assert (
        "line 5, before the step that was stopped at, changed: `RUN uno` and what follows it run again" in person.talk
    )


def test_without_the_cache_earlier_rounds_count_all_the_same(shop: Workshop) -> None:
    shop.build("FROM debian:12\nRUN one\n")
    build = Round(shop, "FROM debian:12\nRUN one\nRUN fail\n")
    build.build(Person(RETRY, build.edit("fail", "well")), no_cache=True)
    assert ran(shop) == ["one", "one", "fail", "fail", "well"]


def test_a_stop_before_a_line_runs_what_is_cached(shop: Workshop) -> None:
    text = "FROM debian:12\nRUN one\nRUN two\n"
    shop.build(text)
    person = Person(CONTINUE)
    Round(shop, text).build(person, on_failure=False, lines=(3,))
    assert ran(shop) == ["one", "two", "two"]
    assert "ran/1" in person.shells[0].files and "ran/2" not in person.shells[0].files
    assert "`continue` runs the step" in person.talk
    error = Round(shop, text).fail(Person(EXIT), on_failure=False, lines=(2,))
    assert type(error) is BuildError and "before line 2, `RUN one`" in error.message


def test_a_line_stops_the_build_once(shop: Workshop) -> None:
    text = "FROM debian:12\nRUN one\nRUN two\nRUN three\n"
    build = Round(shop, text)
    # After the edit line 4 is RUN two, which ran; line 9 is nothing.
    person = Person(CONTINUE, build.edit("RUN one", "RUN zero\nRUN one"), CONTINUE)
    build.build(person, lines=(2, 3, 4))
    assert ran(shop) == ["one", "zero", "one", "two", "three"]
    assert ["ran/2" in shell.files for shell in person.shells] == [False, False, True]


def test_continue_is_no_word_for_a_failed_step(shop: Workshop) -> None:
    error = Round(shop, STAGE).fail(Person(CONTINUE))
    assert isinstance(error, StepFailedError)
    error = Round(shop, STAGE).fail(Person(KILLED, lines=("continue", None)))
    assert isinstance(error, StepFailedError)


def test_a_killed_shell_leaves_the_prompt(shop: Workshop) -> None:
    build = Round(shop, STAGE)
    person = Person(KILLED, build.edit("fail", "well"), lines=("", "'", "shell"))
    build.build(person)
    assert "ended by signal 9" in person.talk and "No closing quotation" in person.talk


def test_an_image_without_a_shell(shop: Workshop) -> None:
    shop.add_image("bare:1", {"app": b"program"})
    build = Round(shop, 'FROM bare:1\nRUN ["fail"]\n')
    person = Person(ProcessEnd(4), lines=("ls missing", "run /app -v", "exit"))
    error = build.fail(person)
    assert isinstance(error, StepFailedError)
    assert "there is no shell in the failed step" in person.talk
    assert person.shells[0].spec.argv == ["/app", "-v"] and "ended with 4" in person.talk


def test_a_copy_that_fails_shows_the_files_before_it(shop: Workshop) -> None:
    build = Round(shop, "FROM debian:12 AS a\nRUN one\nFROM debian:12\nUSER u\nCOPY --from=a /nope /x\n")
    person = Person(build.edit("/nope", "/ran/1"))
    build.build(person)
    assert person.shells[0].spec.user == "u" and "ran/1" not in person.shells[0].files
    assert "the stage as it was before the failed step" in person.talk


def test_a_context_that_changed_counts(shop: Workshop) -> None:
    (shop.context / "f").write_text("old")
    build = Round(shop, "FROM debian:12\nCOPY f /f\nRUN fail\n")

    def change(shell: FakeShell) -> ProcessEnd:
        (shop.context / "f").write_text("new")
        return build.edit("fail", "well")(shell)

    person = Person(change)
    result = build.build(person)
    assert shop.disks.trees[result.disk.path]["f"] == b"new"
    assert "line 2, before the step that was stopped at, changed" in person.talk


def test_a_machine_that_lacks_a_disk_is_started_anew(shop: Workshop) -> None:
    build = Round(shop, "FROM debian:12\nRUN one\nRUN fail\n")
    build.build(Person(build.edit("RUN fail", "RUN --mount=type=cache,target=/c well")))
    assert shop.boots == 2 and ran(shop) == ["one", "fail", "well"]
    assert shop.caches.attached == [["/c"]]


def test_a_cache_is_shown_but_not_kept(shop: Workshop) -> None:
    build = Round(shop, "FROM debian:12\nRUN --mount=type=cache,target=/c,sharing=locked fail\n")
    person = Person(build.edit("fail", "well"))
    build.build(person)
    mounts = [mount for mount in person.shells[0].spec.mounts if mount.target == "/c"]
    assert [getattr(mount, "keep", None) for mount in mounts] == [False] and shop.boots == 1


def test_other_stages_wait_while_somebody_looks(shop: Workshop) -> None:
    started, looking = threading.Event(), threading.Event()

    def slow(guest: FakeGuest, view: Tree, spec: Any, output: Any) -> int:
        started.set()
        assert looking.wait(30)
        return 0

    def fail_then(guest: FakeGuest, view: Tree, spec: Any, output: Any) -> int:
        assert started.wait(30)
        return 1

    shop.commands |= {"slow": slow, "fail then": fail_then}
    build = Round(
        shop, "FROM debian:12 AS a\nRUN slow\nRUN after\nFROM debian:12 AS b\nRUN fail then\nFROM debian:12\n"
        "COPY --from=a /bin/sh /a\nCOPY --from=b /bin/sh /b\n",
    )  # fmt: skip

    def look(shell: FakeShell) -> ProcessEnd:
        looking.set()
        return build.edit("fail then", "well")(shell)

    build.build(Person(look))
    commands = ran(shop)
    # What ran went on, once; nothing else began meanwhile; its result counts in the next round.
    assert commands.count("slow") == 1 and commands.count("after") == 1
    assert commands.index("after") >= 2


def test_two_failures_are_looked_at_one_after_the_other(shop: Workshop) -> None:
    shop.commands["fail2"] = failing
    build = Round(
        shop, "FROM debian:12 AS a\nRUN fail\nFROM debian:12 AS b\nRUN fail2\nFROM debian:12\n"
        "COPY --from=a /bin/sh /a\nCOPY --from=b /bin/sh /b\n",
    )  # fmt: skip

    def mend(shell: FakeShell) -> ProcessEnd:
        build.text = build.text.replace("RUN fail2", "RUN well2").replace("RUN fail\n", "RUN well\n")
        return RETRY

    build.build(Person(mend))
    assert ran(shop).count("well") == 1 and ran(shop).count("well2") == 1


def test_a_lost_machine_ends_the_build(shop: Workshop) -> None:
    def crash(shell: FakeShell) -> ProcessEnd:
        shop.guest.dead.set()
        raise GuestError("the connection to the guest was lost", guest_code="lost")

    error = Round(shop, STAGE).fail(Person(crash))
    assert isinstance(error, GuestError)


def test_an_interrupt_in_the_shell_ends_the_build(shop: Workshop) -> None:
    def interrupt(shell: FakeShell) -> ProcessEnd:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Round(shop, STAGE).build(Person(interrupt))
    shop.check_nothing_left()


def test_a_user_that_is_not_there_does_not_keep_the_shell_away(shop: Workshop, monkeypatch: Any) -> None:
    inner = FakeGuest.open_run

    @contextmanager
    def refuse(self: FakeGuest, layer: str, stack: Any, spec: Any, **options: Any) -> Iterator[Any]:
        if spec.user:
            raise GuestError(f"no user {spec.user}", guest_code="no-such-user")
        with inner(self, layer, stack, spec, **options) as shell:
            yield shell

    monkeypatch.setattr(FakeGuest, "open_run", refuse)
    person = Person(EXIT)
    Round(shop, "FROM debian:12\nWORKDIR /w\nUSER ghost\nRUN fail\n").fail(person)
    assert "no user ghost: the shell is root's, in /" in person.talk and person.shells[0].spec.workdir == "/"


def test_a_missing_secret_opens_no_shell(shop: Workshop) -> None:
    error = Round(shop, "FROM debian:12\nRUN --mount=type=secret,id=s,required=true cat\n").fail(Person())
    assert "the secret `s` is required" in error.message


# -- lines and plans ---------------------------------------------------------------------------------------------------

LINES = """\
# a comment
FROM debian:12 AS unused
RUN skipped
FROM debian:12 AS base
ENV A=1
RUN one \\
    # a comment inside

    two
RUN <<EOF
three
EOF
FROM base
COPY <<X /x
y
X
"""


def plan(shop: Workshop, text: str) -> tuple[Plan, Dockerfile]:
    dockerfile = parse_dockerfile(text.encode())
    options = PlanOptions(name="Dockerfile", platform=Platform("linux", "amd64"))
    return plan_build(dockerfile, options, shop.resolve), dockerfile


@pytest.mark.parametrize(
    ("line", "text"), [(6, "RUN one"), (9, "RUN one"), (10, "RUN <<EOF"), (12, "RUN <<EOF"), (15, "COPY")]
)
def test_a_line_belongs_to_the_step_around_it(shop: Workshop, line: int, text: str) -> None:
    assert get_step_at(*plan(shop, LINES), line).text.startswith(text)


@pytest.mark.parametrize(
    ("line", "reason", "nearest"),
    [
        (1, "", "line 6 (`RUN one two`)"),
        (3, ": the stage `unused` is not needed for it", "line 6 (`RUN one two`)"),
        (5, ": ENV makes no layer", "line 6 (`RUN one two`)"),
        (13, ": FROM makes no layer", "line 10 (`RUN <<EOF`) and line 14 (`COPY <<X /x`)"),
        (99, "", "line 14 (`COPY <<X /x`)"),
    ],
)
def test_a_line_without_a_step_names_the_nearest(shop: Workshop, line: int, reason: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        get_step_at(*plan(shop, LINES), line)
    expected = f"--debug-at {line}: line {line} of `Dockerfile` belongs to no step of this build{reason}"
    assert caught.value.message == expected
    assert caught.value.hint is not None and caught.value.hint.endswith(nearest)


def test_a_line_without_a_step_ends_the_build_before_it_begins(shop: Workshop) -> None:
    error = Round(shop, STAGE).fail(Person(), lines=(1,))
    assert isinstance(error, UsageError) and shop.boots == 0
    with pytest.raises(DockerfileError):
        Round(shop, "FROM debian:12\nNOTHING\n").build(Person(), lines=(1,))


BEFORE = "FROM debian:12 AS a\nRUN x\nFROM debian:12 AS b\nRUN one\nRUN two\nRUN three\nCOPY --from=a /x /x\n"
SAME = "`RUN two` is as it was: it runs again"
AGAIN = "and what follows it run again"


@pytest.mark.parametrize(
    ("old", "new", "sentences"),
    [
        ("", "", [SAME]),
        ("RUN three", "RUN four", [SAME]),
        ("RUN two", "RUN 2", ["line 5 runs as it is now: `RUN 2`"]),
        ("RUN two\n", "", ["line 5 runs as it is now: `RUN three`"]),
        ("RUN one\n", "", [f"line 4, before the step that was stopped at, changed: `RUN two` {AGAIN}"]),
        ("RUN one", "ENV A=1\nRUN one", [f"line 5, before the step that was stopped at, changed: `RUN one` {AGAIN}"]),
        ("RUN x", "RUN y", ["the stage `a` changed at line 2: its steps from there run again", SAME]),
        ("RUN x\n", "", ["the stage `a` changed: its steps from there run again", SAME]),
        ("FROM debian:12 AS b", "FROM a AS b", ["the base of the stage `b` changed: its steps run again"]),
        (" AS b", " AS c", ["the stage `c` is new", "the stage `b` is no longer part of the build"]),
        ("RUN two\nRUN three\nCOPY --from=a /x /x\n", "", ["the step that was stopped at is no longer there"]),
    ],
)
def test_what_an_edit_changes(shop: Workshop, old: str, new: str, sentences: list[str]) -> None:
    before, _ = plan(shop, BEFORE)
    after, _ = plan(shop, BEFORE.replace(old, new) if old else BEFORE)
    step = next(step for stage in before.stages for step in stage.steps if step.text == "RUN two")
    assert list_changes(before, after, step, {}, {}) == sentences


def test_files_that_changed_are_changes_too(shop: Workshop) -> None:
    planned, _ = plan(shop, BEFORE)
    step = next(step for stage in planned.stages for step in stage.steps if step.text == "RUN two")
    (sentence,) = list_changes(planned, planned, step, {"1/0": "x"}, {"1/0": "y"})
    assert sentence.startswith("line 4, before the step")
