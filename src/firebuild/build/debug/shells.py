"""Programs in a stopped step's own surroundings: its files with a layer of their own on top, its user, mounts and network."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from firebuild.build.copy import InlineContent
from firebuild.build.stepmounts import ReadyMounts, StepMounts
from firebuild.build.steps import RunAction
from firebuild.errors import FirebuildError, GuestError
from firebuild.guest.build import RunSpec, TreeEntry

if TYPE_CHECKING:
    from firebuild.build.debug.model import Stop
    from firebuild.build.session import BuildSession
    from firebuild.guest.exec import ExecSession

# What a shell ends with for firebuild's own words: nothing else uses these.
RETRY_CODE = 170
CONTINUE_CODE = 171
EXIT_CODE = 172
# Shells that read the file below when they start, the most comfortable first.
_SHELLS = ("bash", "sh", "ash", "dash", "busybox")
_READS_FILE = (*_SHELLS, "ksh", "mksh")
_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin", "/busybox")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FOLDER = "/run/firebuild-debug"
_FILE = "debug.rc"
_MAX_FOLDERS = 32
_FORGIVEN = ("no-such-user", "not-a-directory", "no-such-directory")


class Place(msgspec.Struct, frozen=True):
    """Where programs of a stop run. `note`: why that is not where the step does, or empty."""

    user: str
    workdir: str
    note: str = ""


class StepShells:
    """Runs programs for one stop, in the main thread. Each gets a new layer on the step's files; what one has written the
    next one sees, until `close`. None of it is ever captured."""

    def __init__(
        self, session: BuildSession, mounts: StepMounts, stop: Stop, *, ca_bundle: str | None = None
    ) -> None:  # fmt: skip
        self._session = session
        self._mounts = mounts
        self._stop = stop
        self._ca_bundle = ca_bundle
        self._guest = session.guest
        self._layers: list[str] = []
        step = stop.step
        self._around = step.around
        self._action = step.action if isinstance(step.action, RunAction) else None
        env = [*self._action.env, *self._action.proxies] if self._action else list(step.around.env)
        self._env = env
        run = self._action or step.around
        self._network = run.network
        self.place = Place(run.user, run.workdir)
        base = stop.attempt.stack
        self._base = session.ensure_stack(stop.below) if base is None else base

    @property
    def stack(self) -> list[str]:
        """The guest's layers, topmost first."""
        return [*reversed(self._layers), *self._base]

    def close(self) -> None:
        """Drop everything that was written. Never raises: a guest that is lost has nothing any more."""
        for name in reversed(self._layers):
            with suppress(FirebuildError):
                self._guest.drop_layer(name)
        self._layers.clear()

    def stat(self, path: str, *, read_bytes: int = 0, list_entries: int = 0) -> TreeEntry:
        """What stands at a path, relative to the step's folder. Raises GuestError."""
        absolute = str(PurePosixPath(self.place.workdir) / path)
        return self._guest.stat(self.stack, absolute, read_bytes, list_entries)

    def find_shell(self) -> str | None:
        """The shell to open: the stage's own if it is one that people use, else the best that the image has. Raises GuestError."""
        if not self.stack:
            return None
        names = list(_SHELLS)
        own = self._around.shell[0] if self._around.shell else ""
        if own not in ("", "/bin/sh", "sh") and PurePosixPath(own).name in _READS_FILE:
            names.insert(0, own)
        for name in names:
            for path in [name] if "/" in name else self._list_candidates(name):
                found = self._guest.stat(self.stack, path)
                if found.kind == "file" and found.mode & 0o111:
                    return path
        own_program = self._action.argv[0] if self._action else ""
        # One that a mount brings is no part of the files.
        mounts = self._action.mounts if self._action else ()
        targets = [target for mount in mounts if (target := mount.target)]
        if PurePosixPath(own_program).name in _READS_FILE and any(
            own_program.startswith(target.rstrip("/") + "/") for target in targets
        ):
            return own_program
        return None

    def _list_candidates(self, name: str) -> list[str]:
        path = next((pair[5:] for pair in self._env if pair.startswith("PATH=")), _DEFAULT_PATH)
        folders = [folder.rstrip("/") or "/" for folder in path.split(":") if folder.startswith("/")]
        return [f"{folder}/{name}" for folder in dict.fromkeys([*folders[:_MAX_FOLDERS], *_FOLDERS])]

    @contextmanager
    def open_shell(self, path: str, rows: int, cols: int) -> Iterator[ExecSession]:
        """A shell on a terminal, in which firebuild's words work. Raises GuestError."""
        name = PurePosixPath(path).name
        file = f"{_FOLDER}/{_FILE}"
        variable = next((pair for pair in self._env if pair.startswith("ENV=")), None)
        env = list(self._env)
        if name == "bash":
            argv = [path, "--rcfile", file, "-i"]
        else:
            argv = [path, *(["sh"] if name == "busybox" else []), "-i"]
            env = [*(pair for pair in env if pair is not variable), f"ENV={file}"]
        content = make_startup(self._stop, variable, is_bash=name == "bash")
        script = InlineContent(_FILE, content.encode("utf-8", "surrogateescape"))
        with self._open(argv, env, rows, cols, script) as session:
            yield session

    @contextmanager
    def open_program(self, argv: list[str], rows: int, cols: int) -> Iterator[ExecSession]:
        """A program on a terminal. Raises GuestError."""
        with self._open(argv, self._env, rows, cols, None) as session:
            yield session

    @contextmanager
    def _open(
        self, argv: list[str], env: list[str], rows: int, cols: int, script: InlineContent | None
    ) -> Iterator[ExecSession]:
        with self._open_mounts() as ready:
            mounts = list(ready.mounts)
            if script is not None:
                mounts.append(self._mounts.mount_script(script, _FOLDER, self._guest))
            spec = RunSpec(
                argv=argv, env=env, user=self.place.user, workdir=self.place.workdir, network=self._network,
                mounts=mounts, tty=True, stdin=True, rows=rows, cols=cols, ca_bundle=self._ca_bundle,
            )  # fmt: skip
            layer = self._session.new_layer()
            run = self._guest.open_run(layer, self.stack, spec, secrets=ready.secrets, started=ready.start)
            with run as session:
                # It is kept after the program's end, and dropped by the guest if the block ends before.
                yield session
            self._layers.append(layer)

    @contextmanager
    def _open_mounts(self) -> Iterator[ReadyMounts]:
        if self._action is None:
            yield ReadyMounts()
            return
        mounts = self._mounts.open(self._stop.step, self._action, self._guest, self._stop.mounted, keep=False)
        with mounts as ready:
            yield ready

    def settle(self, error: GuestError) -> bool:
        """After a failed start: whether another place is worth a try, which is then taken."""
        if error.guest_code not in _FORGIVEN or self.place.note:
            return False
        self.place = Place("", "/", note=error.message)
        return True


def make_startup(stop: Stop, variable: str | None, *, is_bash: bool) -> str:
    """What a shell reads when it starts: firebuild's words, a mark in the prompt, and the command to be had with ↑.

    `variable`: the step's own ENV=, which a POSIX shell's start takes the place of.
    """
    lines = []
    if is_bash:
        # What bash would have read without a file of ours.
        lines.append("[ -r ~/.bashrc ] && . ~/.bashrc")
    elif variable is None:
        lines.append("unset ENV")
    else:
        lines.append(f"export ENV={shlex.quote(variable[4:])}")
    leave = "builtin exit" if is_bash else "exit"
    lines.append(f"retry() {{ {leave} {RETRY_CODE}; }}")
    if stop.error is None:
        # A builtin of that name is there; an alias comes before it.
        lines.append(f"firebuild_continue() {{ {leave} {CONTINUE_CODE}; }}")
        lines.append("alias continue=firebuild_continue")
    # Last: what stands above means the builtin. Else a shell ends with its last command's status.
    lines.append(f"exit() {{ builtin exit {EXIT_CODE}; }}" if is_bash else f"alias exit='exit {EXIT_CODE}'")
    lines.append('PS1="(debug) ${PS1-\\$ }"')
    action = stop.step.action
    if is_bash and isinstance(action, RunAction):
        shell = stop.step.around.shell
        written = shell and action.argv[:-1] == shell
        command = action.argv[-1] if written else shlex.join(action.argv)
        lines.append(f"history -s -- {shlex.quote(command)}")
    return "\n".join(lines) + "\n"
