"""Running the real `firebuild` program as a user would, in a state of its own, and keeping evidence of what went wrong."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Under TCG, with both cores busy, everything is slow: these are there to end a hang, not to measure.
COMMAND_TIMEOUT_S = 300.0
BUILD_TIMEOUT_S = 900.0
INTERRUPT_TIMEOUT_S = 120.0
EVIDENCE = (
    "console.log",
    "vmm.log",
    "output.log",
    "supervisor.log",
    "exit.json",
    "spec.json",
    "boot.json",
    "network.json",
)
# What setup_venv installed beside the interpreter that runs the tests.
PROGRAM = Path(sys.executable).with_name("firebuild")


@dataclass(frozen=True)
class Result:
    """How a command ended. `status`: its exit status, negative for a signal."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    def describe(self) -> str:
        """The whole visible result, for a failing assertion."""
        return f"$ {shlex.join(self.argv)}\nstatus {self.status}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}"


@dataclass
class Cli:
    """firebuild with a private state and run folder. It keeps the names of machines it started, so that a test's end can end them."""

    state: Path
    run_folder: Path
    prefix: tuple[str, ...] = ()
    transcript: list[Result] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """The caller's environment, with this state and without what would colour the output."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FIREBUILD_", "PYTHON"))}
        own = {
            "FIREBUILD_STATE": self.state,
            "FIREBUILD_RUN": self.run_folder,
            "FIREBUILD_PROFILE_CONF_DIR": self.profiles,
        }
        return {**kept, **{name: str(path) for name, path in own.items()}, "NO_COLOR": "1"}

    @property
    def profiles(self) -> Path:
        """Its folder of profiles: the user's own must not count."""
        return self.state / "profiles"

    def run(
        self,
        *arguments: str | Path,
        timeout_s: float = COMMAND_TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
        stdin: str | None = None,
        cwd: Path | None = None,
    ) -> Result:
        """Run one command to its end, whatever the end is."""
        argv = self._argv(arguments)
        try:
            done = subprocess.run(
                argv,
                env={**self.environment(), **(environment or {})},
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                cwd=cwd,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
            )
            result = Result(argv, done.returncode, done.stdout, done.stderr)
        except subprocess.TimeoutExpired as error:
            result = Result(argv, -signal.SIGKILL, _text(error.stdout), _text(error.stderr))
            self.transcript.append(result)
            raise AssertionError(f"no end within {timeout_s:g} s\n{result.describe()}") from None
        self.transcript.append(result)
        return result

    def ok(self, *arguments: str | Path, timeout_s: float = COMMAND_TIMEOUT_S, **options: Any) -> str:
        """Run a command that must succeed; returns its standard output."""
        result = self.run(*arguments, timeout_s=timeout_s, **options)
        assert result.status == 0, result.describe()
        return result.stdout

    def refused(self, *arguments: str | Path, timeout_s: float = COMMAND_TIMEOUT_S, **options: Any) -> Result:
        """Run a command that must fail with a clear error: one on stderr, no traceback, nothing on stdout but data."""
        result = self.run(*arguments, timeout_s=timeout_s, **options)
        assert result.status not in (0, 2) and result.status > 0, result.describe()
        assert result.stderr.strip(), result.describe()
        assert "Traceback" not in result.stderr, result.describe()
        return result

    def json(self, *arguments: str | Path) -> Any:
        """The JSON document that a command prints."""
        return json.loads(self.ok(*arguments))

    @contextmanager
    def start(self, *arguments: str | Path, merged: bool = False) -> Iterator[subprocess.Popen[str]]:
        """Start a command in its own process group, as a shell does; leaving the block interrupts and then kills it.

        `merged`: its standard error comes with its standard output.
        """
        argv = self._argv(arguments)
        process = subprocess.Popen(
            argv,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def await_output(self, machine: str, text: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Follow a machine's output until `text` is in a line of it: `run -d` returns when the entrypoint has been started."""
        seen: list[str] = []
        with self.start("logs", "--follow", machine, merged=True) as process:
            killer = threading.Timer(timeout_s, process.kill)
            killer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    seen.append(line)
                    if text in line:
                        return
            finally:
                killer.cancel()
        raise AssertionError(f"{machine} did not say `{text}` but:\n{''.join(seen)}")

    def interrupt(self, process: subprocess.Popen[str]) -> Result:
        """Press Ctrl-C once: SIGINT to the process group; returns how the command ended."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=INTERRUPT_TIMEOUT_S)
        assert isinstance(process.args, tuple)
        result = Result(process.args, process.returncode, stdout, stderr)
        self.transcript.append(result)
        return result

    def clean(self) -> None:
        """End every machine that this object started and purge; a test's last act, also when it failed."""
        if not self.state.exists():
            return
        for name in self.started:
            self.run("kill", name)
        self.started.clear()
        self.run("purge")

    def _argv(self, arguments: Sequence[str | Path]) -> tuple[str, ...]:
        words = tuple(str(argument) for argument in arguments)
        if words[0] == "run" and "--name" in words:
            self.started.append(words[words.index("--name") + 1])
        return (*self.prefix, str(PROGRAM), *words)


def find_free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def save_evidence(cli: Cli, folder: Path) -> list[Path]:
    """Copy every machine's logs and records, and the commands that were run, below `folder`. Returns the copies."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    transcript = folder / "commands.txt"
    transcript.write_text("\n\n".join(result.describe() for result in cli.transcript))
    copies = [transcript]
    machines = cli.state / "machines"
    for machine in sorted(machines.iterdir()) if machines.is_dir() else ():
        for source in (machine / name for name in EVIDENCE):
            if source.is_file():
                target = folder / machine.name / source.name
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target)
                copies.append(target)
    return copies


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
