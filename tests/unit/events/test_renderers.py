"""The renderers: the same events as plain lines, a live view, JSON, or nothing."""

from __future__ import annotations

import io
import json

import pytest

from firebuild.cli.renderers import choose_mode, open_renderer
from firebuild.errors import BuildError, UsageError
from firebuild.events.model import StepFailed, StepOutput
from firebuild.events.progress import Canceled, ProgressSink, Reporter

SECOND = 10**9


class Screen(io.StringIO):
    """A terminal of 80 columns that remembers what was written."""

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def tell(sink: ProgressSink) -> None:
    """A build with everything in it."""
    clock = Clock()
    reporter = Reporter(sink, clock)
    with reporter.step("[1/3] FROM debian") as report:
        report.cached()
    reporter.warn("careful\x1b[2J")
    with reporter.step("[a 2/3] RUN \x1b[31mmake") as report:
        clock.now += SECOND // 2
        report.output("stdout", b"one\x1b[1m\ntw")
        other = reporter.start("[b 1/1] RUN other")
        report.output("stdout", b"o\n")
        report.note("rebuilt: file a changed")
        clock.now += SECOND
        report.output("stderr", b"no newline")
    other.end(Canceled())
    with pytest.raises(BuildError), reporter.step("[3/3] RUN bad"):
        raise BuildError("it \x07 broke")


def test_plain() -> None:
    stream = io.StringIO()
    with open_renderer("plain", stream) as sink:
        tell(sink)
    assert (
        stream.getvalue()
        == """\
#1 [1/3] FROM debian
#1 CACHED

WARNING: careful
#2 [a 2/3] RUN make
#2 0.500 one
#2 ...

#3 [b 1/1] RUN other
#3 ...

#2 [a 2/3] RUN make
#2 0.500 two
#2 rebuilt: file a changed
#2 1.500 no newline
#2 DONE 1.5s

#3 [b 1/1] RUN other
#3 CANCELED

#4 [3/3] RUN bad
#4 ERROR: it \\x07 broke

"""
    )


def test_plain_shows_what_an_unfinished_step_wrote_last() -> None:
    stream = io.StringIO()
    with open_renderer("plain", stream) as sink:
        Reporter(sink, Clock()).start("RUN x").output("stdout", b"half a line")
    assert stream.getvalue() == "#1 RUN x\n#1 0.000 half a line\n"


def test_rawjson() -> None:
    stream = io.StringIO()
    with open_renderer("rawjson", stream) as sink:
        tell(sink)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0] == {"event": "step-started", "step": 1, "name": "[1/3] FROM debian", "at_ns": 0}
    assert {event["event"] for event in events} >= {"step-output", "step-cached", "warning", "step-failed", "step-note"}


@pytest.mark.parametrize("mode", ["quiet", "none"])
def test_quiet(mode: str) -> None:
    stream = io.StringIO()
    with open_renderer(mode, stream) as sink:
        tell(sink)
    assert stream.getvalue() == ""


def test_tty_ends_with_the_whole_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    screen = Screen()
    with open_renderer("tty", screen, {"TERM": "xterm", "NO_COLOR": "1"}) as sink:
        tell(sink)
    last = screen.getvalue().rpartition("\x1b[J")[2]
    lines = last.splitlines()
    assert lines[0].startswith("[+] Building ") and lines[0].endswith("(4/4)")
    assert lines[1] == "WARNING: careful"
    assert lines[2].startswith(" => CACHED [1/3] FROM debian") and all(len(line) <= 60 for line in lines)
    assert lines[3].startswith(" => [a 2/3] RUN make") and lines[3].endswith("1.5s")
    assert " => => rebuilt: file a changed" in lines
    assert any(line.startswith(" => ERROR [3/3] RUN bad") for line in lines)
    assert "\x07" not in last and "\x1b" not in last


def test_tty_shows_the_last_lines_of_what_runs() -> None:
    screen = Screen()
    with open_renderer("tty", screen, {"TERM": "xterm", "NO_COLOR": "1", "FIREBUILD_TTY_LOG_LINES": "2"}) as sink:
        report = Reporter(sink).start("RUN x")
        report.output("stdout", b"one\ntwo\nthree\n")
    last = screen.getvalue().rpartition("\x1b[J")[2]
    assert " => => # two" in last and " => => # three" in last and "# one" not in last


def test_modes() -> None:
    assert choose_mode("auto", io.StringIO(), {}) == "plain"
    assert choose_mode("auto", Screen(), {"TERM": "xterm"}) == "tty"
    assert choose_mode("auto", Screen(), {"TERM": "dumb"}) == "plain"
    assert choose_mode("auto", Screen(), {"TERM": "xterm", "FIREBUILD_PROGRESS": "rawjson"}) == "rawjson"
    assert choose_mode("plain", Screen(), {"FIREBUILD_PROGRESS": "rawjson"}) == "plain"
    with pytest.raises(UsageError, match="loud"):
        choose_mode("loud", Screen(), {})
    with pytest.raises(UsageError, match="terminal"):
        choose_mode("tty", io.StringIO(), {})


def test_how_a_step_ends_is_reported_and_errors_pass() -> None:
    found: list[object] = []

    class Sink:
        def emit(self, event: object) -> None:
            found.append(event)

    reporter = Reporter(Sink(), Clock())
    with pytest.raises(ZeroDivisionError), reporter.step("x"):
        raise ZeroDivisionError("fault")
    failed = found[-1]
    assert isinstance(failed, StepFailed) and failed.code == "internal"
    reporter.start("y").output("stdout", b"")
    assert not any(isinstance(event, StepOutput) for event in found)
