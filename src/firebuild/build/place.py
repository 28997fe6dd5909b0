"""Errors with their place in the Dockerfile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from firebuild.build.sources.url import redact_urls
from firebuild.dockerfile.errors import LocatedDockerfileError, printable
from firebuild.dockerfile.location import Location
from firebuild.dockerfile.stages import Dockerfile
from firebuild.errors import BuildError, ContextError, DockerfileError, FirebuildError, GuestError, NotFoundError


def locate(dockerfile: Dockerfile, location: Location, error: FirebuildError, *, details: str = "") -> FirebuildError:
    """`error` with `file:line:column` before its message and the excerpt behind its details; its type and code stay.

    An error that has its place already comes back as it is, and so does one whose type has nothing to do with the file.
    """
    placed = _locate(dockerfile, location, error, details)
    # The excerpt shows the file's own lines, and the message may show what they expand to.
    placed.message = redact_urls(placed.message)
    placed.args = (placed.message,)
    placed.details = redact_urls(placed.details) if placed.details else placed.details
    return placed


def _locate(dockerfile: Dockerfile, location: Location, error: FirebuildError, details: str) -> FirebuildError:
    if isinstance(error, LocatedDockerfileError) or error.message.startswith(f"{printable(dockerfile.source.name)}:"):
        return error
    if isinstance(error, DockerfileError):
        return dockerfile.locate(error, location)
    plain = DockerfileError(error.message, hint=error.hint)
    placed = dockerfile.locate(plain, location)
    details = "\n".join(part for part in (error.details, details, placed.details) if part)
    if isinstance(error, ContextError):
        return ContextError(placed.message, hint=error.hint, details=details)
    if isinstance(error, NotFoundError):
        return NotFoundError(placed.message, hint=error.hint, details=details)
    if isinstance(error, GuestError):
        return GuestError(placed.message, guest_code=error.guest_code, hint=error.hint, details=details)
    if type(error) is BuildError:
        return BuildError(placed.message, hint=error.hint, details=details)
    return error


@contextmanager
def located(dockerfile: Dockerfile, location: Location) -> Iterator[None]:
    """Errors of the block get the place of `location`."""
    try:
        yield
    except FirebuildError as error:
        placed = locate(dockerfile, location, error)
        if placed is error:
            raise
        raise placed from error
