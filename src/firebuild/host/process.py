"""Running programs: argument lists only, a fixed environment, no stdin, a deadline, and failures explained in words."""

from __future__ import annotations

import logging
import os
import select
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from firebuild.errors import DeadlineError, MissingProgramError, ProcessError

logger = logging.getLogger(__name__)

OUTPUT_LIMIT = 1 << 20
DEFAULT_TIMEOUT_S = 120.0
_PASSED_ON = (
    "HOME",
    "LANG",
    "TERM",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
)
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Debian's package for each program that firebuild runs: what `doctor` and MissingProgramError advise.
PACKAGES = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "e2fsck": "e2fsprogs",
    "git": "git",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
    "iptables": "iptables",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "skopeo": "skopeo",
    "ssh": "openssh-client",
}


def find_program(name: str) -> str | None:
    """The absolute path of a program on the system's PATH (not only the caller's), or None."""
    if "/" in name:
        return name if os.access(name, os.X_OK) else None
    return shutil.which(name, path=os.environ.get("PATH", "") + ":" + SYSTEM_PATH)


def get_program(name: str) -> str:
    """As find_program; raises MissingProgramError naming the package that brings it."""
    path = find_program(name)
    if path is None:
        package = PACKAGES.get(Path(name).name)
        hint = f"run: apt-get install --no-install-recommends {package}" if package else None
        raise MissingProgramError(f"the program `{name}` is not installed", hint=hint)
    return path


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that programs get: PATH, a C locale, and an allow-list of the caller's variables, then `extra`."""
    environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    for name in (*_PASSED_ON, *_PROXIES, *_CERTIFICATES):
        if name in os.environ:
            environment[name] = os.environ[name]
    environment.update(extra or {})
    return environment


def run(
    argv: Sequence[str],
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output (the last MiB of each stream).

    The program gets its own process group, which is killed as a whole when `timeout_s` passes or the caller is interrupted.
    Raises MissingProgramError, DeadlineError, and, with `check`, ProcessError with the last output lines as details.
    """
    with start(
        argv, environment=environment, cwd=cwd, pass_fds=pass_fds,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise DeadlineError(
                f"`{Path(argv[0]).name}` took longer than {timeout_s:g} s", details=f"command: {shlex.join(argv)}"
            ) from None
    result = subprocess.CompletedProcess(list(argv), process.returncode, out[-OUTPUT_LIMIT:], err[-OUTPUT_LIMIT:])
    if check and result.returncode != 0:
        raise failure(result)
    return result


def become(argv: Sequence[str]) -> NoReturn:
    """Let a program take this process's place, with its terminal and the whole environment of the caller. Raises ProcessError,
    MissingProgramError."""
    program = get_program(argv[0])
    try:
        os.execv(program, [program, *argv[1:]])
    except OSError as error:
        raise ProcessError(f"`{program}` cannot be run: {error.strerror}") from error


@contextmanager
def start(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] = subprocess.DEVNULL,
    grace_s: float = 5.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program in its own session; on leaving the block it is gone: terminated, then after `grace_s` killed, and waited for."""
    program = get_program(argv[0])
    logger.debug("run: %s", shlex.join(argv))
    process = subprocess.Popen(
        [program, *argv[1:]],
        env=child_environment(environment),
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_process(process, grace_s=grace_s)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def start_detached(
    argv: Sequence[str], *, log: Path, pass_fds: Sequence[int] = (), environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that outlives this one, in its own session, its output appended to `log`. The caller owns its end."""
    program = get_program(argv[0])
    logger.debug("start: %s", shlex.join(argv))
    with open(log, "ab") as output:
        return subprocess.Popen(
            [program, *argv[1:]],
            env=child_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,
        )


def end_process(process: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """Terminate a process group and wait for its leader; kill what is left of the group then, or after `grace_s`.

    The group ends also where its leader has ended before: it may have left children.
    """
    if process.returncode is None:
        _signal_group(process.pid, signal.SIGTERM)
        # Seen without being waited for: until then its number, which is the group's, is nobody else's.
        descriptor = os.pidfd_open(process.pid)
        try:
            select.select([descriptor], [], [], grace_s)
        finally:
            os.close(descriptor)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
    elif not Path(f"/proc/{process.pid}").exists():
        # A number is not given away while a group has it; a process that has it now is another one.
        _signal_group(process.pid, signal.SIGKILL)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def failure(result: subprocess.CompletedProcess[bytes]) -> ProcessError:
    """The error that explains why a finished program failed."""
    name = Path(result.args[0]).name
    if result.returncode < 0:
        reason = f"was killed by {signal.Signals(-result.returncode).name}"
    else:
        reason = f"failed with exit status {result.returncode}"
    output = (result.stderr or result.stdout or b"").decode("utf-8", "replace").strip()
    tail = "\n".join(output.splitlines()[-20:])
    details = f"command: {shlex.join(result.args)}" + (f"\n{tail}" if tail else "")
    return ProcessError(f"`{name}` {reason}", status=result.returncode, details=details)
