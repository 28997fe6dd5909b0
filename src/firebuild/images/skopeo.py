"""Running skopeo(1): what it is told, what its failures mean, and nothing about which images are moved."""

from __future__ import annotations

import os
import re
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from firebuild.errors import DeadlineError, DiskFullError, FirebuildError, ImageError, RegistryError
from firebuild.events.text import neutralise
from firebuild.host.deadline import Deadline
from firebuild.host.files import write_atomic
from firebuild.host.process import OUTPUT_LIMIT, SYSTEM_PATH, run, start
from firebuild.names import Reference

ProgressLine = Callable[[str], None]

DEFAULT_TIMEOUT_S = 3600.0
INSPECT_TIMEOUT_S = 120.0
DEFAULT_RETRIES = 3
_TAIL_LINES = 20
_LINE_MAX = 2000
_TICK_S = 0.5
_POLICY_FILES = ("/etc/containers/policy.json", "/usr/share/containers/policy.json")
_LOG_LINE = re.compile(r'time="[^"]*" level=(?P<level>\w+) msg="(?P<text>(?:[^"\\]|\\.)*)"')
_MIRRORS = re.compile(r"\(Mirrors also failed: \[.*?\]\): ")
_QUIET_LEVELS = ("debug", "info", "trace")
_TALK = ("Copying ", "Getting ", "Writing ", "Storing ")


class Access(msgspec.Struct, frozen=True):
    """How registries are spoken to. `tls_verify`: None is "yes, but not for a registry on this host's loopback";
    `authfile`: credentials (containers-auth.json(5)) instead of the user's own files."""

    tls_verify: bool | None = None
    authfile: Path | None = None
    retries: int = DEFAULT_RETRIES
    timeout_s: float = DEFAULT_TIMEOUT_S

    def flags(self, domain: str, side: str = "") -> list[str]:
        """skopeo's flags for a registry. `side`: `src-`, `dest-` or nothing. Raises ImageError without the credentials file."""
        verify = self.tls_verify if self.tls_verify is not None else not is_loopback(domain)
        flags = [] if verify and self.tls_verify is None else [f"--{side}tls-verify={'true' if verify else 'false'}"]
        if self.authfile is not None:
            if not self.authfile.is_file():
                raise ImageError(f"the credentials file `{self.authfile}` does not exist")
            flags += [f"--{side}authfile", os.fspath(self.authfile)]
        return flags


# What skopeo says, in the order in which it is looked for: pattern, reason, hint.
_REASONS = (
    (r"no space left on device|disk quota exceeded", "disk-full", None),
    (
        r"unauthorized|authentication required|invalid username/password|denied|status(?: ?code)?:? 40[13]|40[13] Forbidden",
        "unauthorized",
        "log in with `firebuild login REGISTRY`, or name the credentials with --authfile; a private or misspelt repository looks the same",
    ),
    (
        r"manifest unknown|name unknown|repository name not known|not found|status(?: ?code)?:? 404",
        "not-found",
        "check the name and the tag",
    ),
    (
        r"server gave HTTP response to HTTPS client|x509:|tls: |certificate",
        "tls",
        "the registry's certificate is not trusted, or it speaks plain HTTP: see --tls-verify",
    ),
    (
        r"no image found in (?:manifest list|image index)|choosing (?:an )?image",
        "platform",
        "the image is not there for this platform: see --platform",
    ),
    (r"digest .*(?:mismatch|does not match|did not match)|does not match|unexpected EOF|corrupt", "damaged", None),
    (
        r"connection refused|no such host|i/o timeout|dial tcp|network is unreachable|no route to host|TLS handshake timeout"
        r"|connection reset|server misbehaving|proxyconnect|context deadline exceeded|status(?: ?code)?:? 5\d\d|: EOF",
        "unreachable",
        "check the network and the registry's name, or bring the image as a file: `firebuild image import`",
    ),
)


def classify_failure(stderr: str) -> tuple[str, str | None]:
    """The reason and a hint for what skopeo wrote when it failed; `other` if it is not one of the known ones."""
    # Of a registry that has mirrors it is the registry's own word that counts.
    own = _MIRRORS.sub("", stderr)
    for pattern, reason, hint in _REASONS:
        if re.search(pattern, own, re.IGNORECASE):
            return reason, hint
    return "other", None


def describe_failure(stderr: str) -> str | None:
    """What skopeo said, without its log's form: warnings and errors, each once. None if it said nothing."""
    sentences = []
    for line in stderr.splitlines():
        match = _LOG_LINE.match(line.strip())
        if match is None:
            sentences.append(line.strip())
        elif match["level"] not in _QUIET_LEVELS:
            sentences.append(re.sub(r"\\(.)", r"\1", match["text"].replace("\\n", " ").replace("\\t", " ")))
    failures = [neutralise(line)[:500] for line in sentences if line and not line.startswith(_TALK)]
    return "\n".join(f"skopeo says: {line}" for line in dict.fromkeys(failures)) or None


def failure(subject: str, status: int, stderr: str) -> FirebuildError:
    """The error that says why skopeo failed with `subject` (`the image …`)."""
    reason, hint = classify_failure(stderr)
    details = describe_failure(stderr)
    if reason == "disk-full":
        return DiskFullError(
            f"no space left on the device while moving {subject}",
            hint="free space with `firebuild gc`",
            details=details,
        )
    words = {
        "unreachable": f"the registry of {subject} cannot be reached",
        "unauthorized": f"the registry refuses access to {subject}",
        "not-found": f"the registry does not have {subject}",
        "tls": f"there is no trusted connection to the registry of {subject}",
        "platform": f"{subject} does not exist for this platform",
        "damaged": f"{subject} arrived damaged: its content does not match its digest",
    }
    message = words.get(reason, f"{subject} cannot be moved: skopeo failed with exit status {status}")
    return RegistryError(message, reason=reason, hint=hint, details=details)


def is_loopback(domain: str) -> bool:
    """Whether a registry's name means this very host: `localhost`, 127.0.0.0/8 or ::1 written out, with or without a port."""
    import ipaddress

    host = domain[1:].partition("]")[0] if domain.startswith("[") else domain.partition(":")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def registry_name(reference: Reference) -> str:
    """skopeo takes a tag or a digest; of both, the digest says more."""
    if reference.digest is not None:
        return f"{reference.name}@{reference.digest}"
    return reference.full


def platform_options(architecture: str, variant: str | None = None) -> list[str]:
    """Which image of an index is meant."""
    options = ["--override-os", "linux", "--override-arch", architecture]
    return [*options, "--override-variant", variant] if variant else options


def copy(
    source: str,
    target: str,
    subject: str,
    stage: Path,
    *,
    options: Sequence[str] = (),
    flags: Sequence[str] = (),
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ProgressLine | None = None,
    tick: Callable[[int], None] | None = None,
) -> None:
    """Run `skopeo copy`. Its temporary files go below `stage`; `tick` gets its process id twice a second.

    Raises RegistryError, DiskFullError, DeadlineError, MissingProgramError.
    """
    policy = ensure_policy(stage)
    temporary = stage / "tmp"
    temporary.mkdir(exist_ok=True)
    argv = ["skopeo", *policy, *options, "--tmpdir", os.fspath(temporary), "copy", *flags, source, target]
    deadline = Deadline(timeout_s, f"moving {subject}")
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    status = _run_lines(argv, deadline, progress or (lambda _: None), tail.append, tick)
    if status != 0:
        raise failure(subject, status, "\n".join(tail))


def get_raw_manifest(source: str, access: Access, subject: str, *, domain: str = "") -> bytes:
    """The manifest or index of an image as its bytes. `domain`: of its registry, empty for none. Raises as `copy` does;
    ImageError for one of a MiB or more."""
    flags = ["--retry-times", str(access.retries), *(access.flags(domain) if domain else [])]
    timeout_s = min(access.timeout_s, INSPECT_TIMEOUT_S)
    try:
        argv = ["skopeo", "inspect", "--raw", *flags, source]
        result = run(argv, environment=_environment(), timeout_s=timeout_s, check=False)
    except DeadlineError:
        raise Deadline(timeout_s, f"moving {subject}").error() from None
    if result.returncode != 0:
        raise failure(subject, result.returncode, result.stderr.decode("utf-8", "replace"))
    if len(result.stdout) >= OUTPUT_LIMIT:
        raise ImageError(f"{subject} has a manifest of {OUTPUT_LIMIT} bytes or more, which cannot be right")
    return result.stdout


def find_raw_manifest(reference: Reference, access: Access, *, subject: str) -> bytes | None:
    """A manifest or index of a registry as its bytes, or None if the registry does not have it. Raises as `copy` does."""
    try:
        return get_raw_manifest(f"docker://{registry_name(reference)}", access, subject, domain=reference.domain)
    except RegistryError as error:
        if error.reason == "not-found":
            return None
        raise


def login(registry: str, username: str, password: bytes, access: Access) -> None:
    """Check credentials with a registry and keep them in the user's own file. The password goes through a pipe only.

    Raises RegistryError, DeadlineError, MissingProgramError.
    """
    argv = ["skopeo", "login", *_login_flags(registry, access), "--username", username, "--password-stdin", registry]
    result = run(argv, environment=_environment(), timeout_s=INSPECT_TIMEOUT_S, stdin=password, check=False)
    if result.returncode != 0:
        error = failure(f"`{registry}`", result.returncode, result.stderr.decode("utf-8", "replace"))
        if isinstance(error, RegistryError) and error.reason == "unauthorized":
            error.message, error.hint = f"`{registry}` does not take this user name and password", None
        raise error


def logout(registry: str | None, access: Access) -> None:
    """Forget the credentials of a registry, or of all. Raises ImageError if there were none."""
    argv = ["skopeo", "logout", *_login_flags("", access)[1 if access.tls_verify is not None else 0 :]]
    argv.append(registry or "--all")
    result = run(argv, environment=_environment(), timeout_s=INSPECT_TIMEOUT_S, check=False)
    if result.returncode != 0:
        raise ImageError(
            f"there are no credentials to forget for {f'`{registry}`' if registry else 'any registry'}",
            details=describe_failure(result.stderr.decode("utf-8", "replace")),
        )


def _login_flags(registry: str, access: Access) -> list[str]:
    """Unlike for a pull, the credentials file need not exist: it is made."""
    verify = access.tls_verify if access.tls_verify is not None else not is_loopback(registry)
    flags = [] if verify and access.tls_verify is None else [f"--tls-verify={'true' if verify else 'false'}"]
    return flags + (["--authfile", os.fspath(access.authfile)] if access.authfile else [])


def _environment() -> dict[str, str]:
    """The caller's whole environment: skopeo starts credential helpers, which are the user's own programs with their own words
    in it (`AWS_PROFILE`), and it looks for them on PATH."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}", "LC_ALL": "C.UTF-8"}


def ensure_policy(stage: Path) -> list[str]:
    """skopeo refuses to work without a signature policy file; where the host has none, nothing is demanded."""
    home = os.environ.get("HOME")
    files = [*_POLICY_FILES, *([f"{home}/.config/containers/policy.json"] if home else [])]
    if any(os.path.exists(path) for path in files):
        return []
    policy = stage / "policy.json"
    write_atomic(policy, b'{"default":[{"type":"insecureAcceptAnything"}]}')
    return ["--policy", os.fspath(policy)]


def _run_lines(
    argv: Sequence[str],
    deadline: Deadline,
    on_line: ProgressLine,
    on_error: ProgressLine,
    tick: Callable[[int], None] | None,
) -> int:
    """Run a program and hand on its lines as they come, those of its standard error to `on_error` too; its exit status.

    Raises DeadlineError; the program is gone then.
    """
    with ExitStack() as stack:
        outputs: dict[int, tuple[bytearray, tuple[ProgressLine, ...]]] = {}
        writers = []
        for receivers in ((on_line,), (on_error, on_line)):
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, reader)
            os.set_blocking(writer, True)
            writers.append(stack.enter_context(os.fdopen(writer, "wb")))
            outputs[reader] = (bytearray(), receivers)
        process = stack.enter_context(start(argv, environment=_environment(), stdout=writers[0], stderr=writers[1]))
        ended = os.pidfd_open(process.pid)
        stack.callback(os.close, ended)
        for writer_file in writers:
            writer_file.close()
        running, told = True, time.monotonic()
        while running:
            # The end of the program ends this, not the end of its outputs: a helper of its may hold them open.
            left = deadline.check()
            ready, _, _ = select.select([ended, *outputs], [], [], left if tick is None else min(left, _TICK_S))
            running = ended not in ready
            for reader in list(outputs):
                if not _drain(reader, *outputs[reader]):
                    del outputs[reader]
            if tick is not None and running and time.monotonic() - told >= _TICK_S:
                told = time.monotonic()
                tick(process.pid)
        return process.wait()


def _drain(reader: int, pending: bytearray, receivers: Sequence[ProgressLine]) -> bool:
    """Hand on the whole lines that are there now; False at the end of the output."""
    while True:
        try:
            data = os.read(reader, 65536)
        except BlockingIOError:
            return True
        pending += data
        *lines, rest = bytes(pending).split(b"\n")
        if len(rest) > _LINE_MAX or not data:
            lines, rest = [*lines, rest], b""
        pending[:] = rest
        for raw in lines:
            line = raw[:_LINE_MAX].decode("utf-8", "replace").rstrip()
            for receive in receivers if line else ():
                receive(line)
        if not data:
            return False
