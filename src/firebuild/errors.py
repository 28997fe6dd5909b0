"""The one tree of errors.

FirebuildError                      anything that a user can be told in a sentence
├── UsageError                      the request itself is malformed
├── NotFoundError                   a named object does not exist
├── ConflictError                   a name, port or file is taken
├── BusyError                       an object is in use
├── DeadlineError                   something took longer than it may
├── HostError                       this host lacks or refuses something
│   ├── MissingProgramError         a program that firebuild runs is not installed
│   ├── ProcessError                a program failed
│   ├── DiskFullError               no space left
│   └── PathTooLongError            a path exceeds what the kernel takes
├── ConfigError                     a setting or profile is wrong
├── DockerfileError                 a Dockerfile does not parse or means nothing
├── BuildError                      a build cannot go on
│   ├── ContextError                the build context lacks or hides something
│   └── StepFailedError             a step's command failed
├── StoreError                      the store refuses or is damaged
├── ImageError                      an image cannot be taken in, moved or used
│   └── RegistryError               a registry refused, failed or lied
├── KernelError                     a kernel cannot be taken in or used
├── VmmError                        the VMM failed
│   └── ApiError                    the VMM's API answered with an error
├── GuestError                      the guest failed or broke the protocol
├── NetworkError                    a network could not be set up or taken down
│   └── CniError                    a CNI plugin failed
├── MachineError                    a machine is in the wrong state, or was lost
└── InternalError                   a fault of firebuild's own

Each class has a stable `code` (documented, never reused), an `exit_status`, and carries a message that names
the object, optionally a `hint` that says what to do, and `details` (several lines: a program's output, an excerpt).
The library raises; only `firebuild.cli` prints and exits.
"""

from __future__ import annotations


class FirebuildError(Exception):
    """Base of all errors. `message`: one sentence without a final period; `hint`: what to do; `details`: further lines."""

    code = "error"
    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None, details: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return self.message


class UsageError(FirebuildError):
    """The request itself is malformed: a bad flag value, a bad name."""

    code = "usage"
    exit_status = 125


class NotFoundError(FirebuildError):
    """A named object does not exist."""

    code = "not-found"


class ConflictError(FirebuildError):
    """A name, a port or a file is already taken."""

    code = "conflict"


class NameTakenError(ConflictError):
    """Another machine has that name."""


class BusyError(FirebuildError):
    """An object is in use by somebody else."""

    code = "busy"


class DeadlineError(FirebuildError):
    """Something took longer than it may."""

    code = "deadline"


class HostError(FirebuildError):
    """This host lacks or refuses something."""

    code = "host"


class MissingProgramError(HostError):
    """A program that firebuild runs is not installed."""

    code = "missing-program"


class ProcessError(HostError):
    """A program that firebuild ran failed. `status`: its exit status, negative for a signal, as in subprocess."""

    code = "process"

    def __init__(
        self, message: str, *, status: int | None = None, hint: str | None = None, details: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.status = status


class DiskFullError(HostError):
    """No space left on a file system."""

    code = "disk-full"


class PathTooLongError(HostError):
    """A path exceeds what the kernel takes (a Unix socket's path: 107 bytes, unix(7))."""

    code = "path-too-long"


class ConfigError(FirebuildError):
    """A setting or a profile is wrong."""

    code = "config"


class DockerfileError(FirebuildError):
    """A Dockerfile does not parse, or an instruction in it means nothing. `details` is an excerpt of the file."""

    code = "dockerfile"


class BuildError(FirebuildError):
    """A build cannot go on."""

    code = "build"


class ContextError(BuildError):
    """The build context lacks something, or hides something that firebuild will not follow."""

    code = "context"


class StepFailedError(BuildError):
    """A step's command failed. `status`: the command's exit status."""

    code = "step-failed"

    def __init__(self, message: str, *, status: int, hint: str | None = None, details: str | None = None) -> None:
        super().__init__(message, hint=hint, details=details)
        self.status = status


class StoreError(FirebuildError):
    """The store refuses, or holds something damaged."""

    code = "store"


class ImageError(FirebuildError):
    """An image cannot be taken in, moved or used."""

    code = "image"


def damaged_blob(digest: str, found: str) -> StoreError:
    """The error of whoever reads a blob that is not what its name says. `found`: the digest that its bytes have."""
    return StoreError(
        f"the blob {digest} is damaged: its content has the digest {found}",
        hint="pull, load or build the image again; `firebuild fsck --repair` finds and sets aside whatever else is damaged",
    )


class RegistryError(ImageError):
    """A registry refused, failed or lied. `reason`: unreachable, unauthorized, not-found, tls, platform, damaged or other."""

    code = "registry"

    def __init__(self, message: str, *, reason: str, hint: str | None = None, details: str | None = None) -> None:
        super().__init__(message, hint=hint, details=details)
        self.reason = reason


class KernelError(FirebuildError):
    """A kernel cannot be taken in or used."""

    code = "kernel"


class VmmError(FirebuildError):
    """The VMM failed."""

    code = "vmm"


class ApiError(VmmError):
    """The VMM's API answered with an error. `status`: the HTTP status; the message holds its `fault_message`."""

    code = "vmm-api"

    def __init__(self, message: str, *, status: int, hint: str | None = None, details: str | None = None) -> None:
        super().__init__(message, hint=hint, details=details)
        self.status = status


class GuestError(FirebuildError):
    """The guest failed, or broke the protocol. `guest_code`: the protocol's error code, if the guest sent one."""

    code = "guest"

    def __init__(
        self, message: str, *, guest_code: str | None = None, hint: str | None = None, details: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.guest_code = guest_code


class NetworkError(FirebuildError):
    """A network could not be set up or taken down."""

    code = "network"


class CniError(NetworkError):
    """A CNI plugin failed. `cni_code`: the code of its error object (CNI specification, section 5), 0 if it gave none."""

    code = "cni"

    def __init__(self, message: str, *, cni_code: int = 0, hint: str | None = None, details: str | None = None) -> None:
        super().__init__(message, hint=hint, details=details)
        self.cni_code = cni_code


class MachineError(FirebuildError):
    """A machine is in the wrong state for what is asked, or was lost."""

    code = "machine"


class SnapshotError(FirebuildError):
    """A snapshot cannot be made of this machine, or cannot be restored here."""

    code = "snapshot"


class InternalError(FirebuildError):
    """A fault of firebuild's own: worth a report."""

    code = "internal"
    exit_status = 2
