"""The conversation at a stop: a shell, or firebuild's own prompt where there is none, until a word ends it."""

from __future__ import annotations

import shlex
import stat
from contextlib import closing
from typing import TYPE_CHECKING

from firebuild.build.debug.lines import shorten
from firebuild.build.debug.model import Console, Debugging, PrepareAgain, Retry, Stop
from firebuild.build.debug.shells import CONTINUE_CODE, RETRY_CODE, StepShells
from firebuild.build.steps import RunAction
from firebuild.errors import BuildError, FirebuildError, GuestError
from firebuild.events.text import decode_output, neutralise
from firebuild.guest.build import FolderEntry

if TYPE_CHECKING:
    from firebuild.guest.exec import ProcessEnd

PROMPT = "(debug) "
_LISTED = 500
_CAT_BYTES = 64 * 1024
_KINDS = {"file": "-", "directory": "d", "symlink": "l", "other": "?"}


class Talk:
    """One stop's conversation, in the main thread. `shells`: opened for it and closed after."""

    def __init__(self, wish: Debugging, stop: Stop, shells: StepShells, prepare: PrepareAgain) -> None:
        self._console: Console = wish.console
        self._stop = stop
        self._shells = shells
        self._prepare = prepare

    def run(self) -> None:
        """Return when the stage is to go on. Raises Retry for a new round, and the error that ends the build."""
        with closing(self._shells):
            word = self._talk(self._stop.error)
            while True:
                if word == "retry":
                    word = self._talk(self._retry(), "retry: with this there is no build; mend it and `retry` again")
                elif word == "continue":
                    return
                else:
                    raise self._stop.error or _ended(self._stop)

    def _retry(self) -> FirebuildError:
        """Raises Retry; returns only what is wrong with the inputs as they now are."""
        try:
            prepared, changes = self._prepare(self._stop.step)
        except FirebuildError as error:
            return error
        with self._console.take():
            for sentence in changes:
                self._console.say(f"retry: {sentence}")
        raise Retry(prepared)

    def _talk(self, error: FirebuildError | None, note: str = "") -> str:
        """Have the terminal, show the error, open the shell; the word that ends it."""
        with self._console.take():
            if error is not None:
                self._show(error)
            if note:
                self._console.say(note)
            return self._open_shell()

    def _show(self, error: FirebuildError) -> None:
        self._console.say(f"error: {error.message}")
        for more in (error.details, f"hint: {error.hint}" if error.hint else None):
            if more:
                self._console.say(more)

    def _open_shell(self) -> str:
        """The shell until its end; the word that it ended with, or that the prompt after it gave."""
        path = self._shells.find_shell()
        if path is None:
            self._console.say(
                f"debug: there is no shell in {self._name_files()}. Commands: {self._list_commands(shell=False)}"
            )
            return self._ask(None)
        while True:
            place = self._shells.place
            try:
                with self._shells.open_shell(path, *self._console.size()) as session:
                    if place.note:
                        self._console.say(f"debug: {neutralise(place.note)}: the shell is root's, in /")
                    self._console.say(self._make_help(path))
                    end = self._console.attach(session)
            except GuestError as error:
                self._refuse_lost(error)
                if self._shells.settle(error):
                    continue
                self._console.say(f"debug: the shell {path} cannot be started: {neutralise(error.message)}")
                return self._ask(None)
            return self._judge(end, path)

    def _judge(self, end: ProcessEnd, path: str) -> str:
        if end.signal is not None:
            self._console.say(f"debug: the shell was ended by signal {end.signal}")
            return self._ask(path)
        if end.code == RETRY_CODE:
            return "retry"
        if end.code == CONTINUE_CODE and self._stop.error is None:
            return "continue"
        if end.code in (126, 127):
            # It could not be started after all.
            self._console.say(f"debug: the shell {path} ended with {end.code}")
            return self._ask(path)
        return "exit"

    def _make_help(self, path: str) -> str:
        user, workdir = self._shells.place.user or "root", self._shells.place.workdir
        where = f"as {neutralise(user)} in {neutralise(workdir)}"
        if self._stop.error is None:
            start = f"debug: {path} before `{shorten(self._stop.step)}`, {where}"
            words = "`continue` runs the step, `retry` reads the Dockerfile again first, `exit` ends the build"
        else:
            start = f"debug: {path} in {self._name_files()}, {where}"
            words = "`retry` runs the step again with the Dockerfile as it is by then, `exit` ends the build"
        return f"{start}. {words}; what is changed in here is thrown away"

    def _name_files(self) -> str:
        if self._stop.error is None:
            return "the files before this step"
        if isinstance(self._stop.step.action, RunAction) and self._stop.attempt.layer is not None:
            return "the failed step"
        return "the stage as it was before the failed step"

    def _refuse_lost(self, error: GuestError) -> None:
        if error.guest_code in ("lost", "protocol"):
            raise error

    # -- firebuild's own prompt ------------------------------------------------------------------------------------

    def _list_commands(self, *, shell: bool) -> str:
        goes_on = ["continue"] if self._stop.error is None else []
        own = ["shell"] if shell else []
        return ", ".join(["retry", *goes_on, "exit", *own, "ls [PATH]", "cat PATH", "run PROGRAM [ARGUMENT ...]"])

    def _ask(self, shell: str | None) -> str:
        """firebuild's prompt, until a word leaves it. `shell`: the one that may be opened again."""
        if shell is not None:
            self._console.say(f"debug: {self._list_commands(shell=True)}")
        while True:
            line = self._console.ask(PROMPT)
            if line is None:
                return "exit"
            try:
                words = shlex.split(line)
            except ValueError as error:
                self._console.say(f"debug: {error}")
                continue
            if not words:
                continue
            if words[0] in ("retry", "exit") or (words[0] == "continue" and self._stop.error is None):
                return words[0]
            if words[0] == "shell" and shell is not None:
                return self._open_shell()
            self._obey(words[0], words[1:], shell)

    def _obey(self, word: str, arguments: list[str], shell: str | None) -> None:
        try:
            if word == "ls" and len(arguments) < 2:
                self._list(arguments[0] if arguments else ".")
            elif word == "cat" and len(arguments) == 1:
                self._show_file(arguments[0])
            elif word == "run" and arguments:
                with self._shells.open_program(arguments, *self._console.size()) as session:
                    end = self._console.attach(session)
                if end.code:
                    self._console.say(f"debug: it ended with {end.code}")
            else:
                self._console.say(f"debug: {self._list_commands(shell=shell is not None)}")
        except GuestError as error:
            self._refuse_lost(error)
            self._console.say(f"debug: {neutralise(error.message)}")

    def _list(self, path: str) -> None:
        found = self._shells.stat(path, list_entries=_LISTED)
        if found.kind == "missing":
            self._console.say(f"debug: there is no {neutralise(path)}")
        elif found.entries is None:
            self._console.say(_row(FolderEntry(path, found.kind, found.mode, found.uid, found.gid, found.size)))
        else:
            for entry in found.entries:
                self._console.say(_row(entry))
            if len(found.entries) >= _LISTED:
                self._console.say("… and more")

    def _show_file(self, path: str) -> None:
        found = self._shells.stat(path, read_bytes=_CAT_BYTES)
        content = found.content
        if found.kind != "file" or content is None:
            self._console.say(f"debug: {neutralise(path)} is {'not there' if found.kind == 'missing' else found.kind}")
            return
        for line in decode_output(content).splitlines():
            self._console.say(neutralise(line))
        if found.size > len(content):
            self._console.say(f"… {found.size - len(content)} more bytes")


def _row(entry: FolderEntry) -> str:
    mode = stat.filemode(entry.mode)[1:]
    target = f" -> {neutralise(entry.target)}" if entry.target is not None else ""
    kind = _KINDS.get(entry.kind, "?")
    return f"{kind}{mode} {entry.uid:>5} {entry.gid:>5} {entry.size:>10} {neutralise(entry.name)}{target}"


def _ended(stop: Stop) -> BuildError:
    line = stop.step.location.start_line
    return BuildError(f"the build was ended in the shell before line {line}, `{shorten(stop.step)}`")
