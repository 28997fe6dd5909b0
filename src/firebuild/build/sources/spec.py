"""What a user's word for a Dockerfile or a build context means: told from its text alone, and what exists. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from firebuild.build.sources.gitref import GitSource, looks_like_git, parse_git
from firebuild.build.sources.url import Url, parse_url
from firebuild.errors import UsageError
from firebuild.events.text import neutralise
from firebuild.names import Digest, Reference, parse_digest, parse_reference

_INSTRUCTIONS = (
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"
)  # fmt: skip
_BEGINS_DOCKERFILE = re.compile(rf"(?:{_INSTRUCTIONS})[ \t]", re.IGNORECASE)
_HTTP = re.compile(r"https?://", re.IGNORECASE)
_CONTEXT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:@-]{0,254}")


class StdinSource(msgspec.Struct, frozen=True):
    """`-`: standard input, a Dockerfile or an archive."""


class InlineSource(msgspec.Struct, frozen=True):
    """The text of a Dockerfile itself."""

    text: str


class LocalSource(msgspec.Struct, frozen=True):
    """A path on this host: a folder, a Dockerfile or an archive."""

    path: str


class HttpSource(msgspec.Struct, frozen=True):
    """A URL: of an archive, or of a Dockerfile with its files beside it."""

    url: Url


class OciLayout(msgspec.Struct, frozen=True):
    """An image in a folder of the OCI image layout. `name`: its tag there; `digest`: of its manifest or index; without
    both the only one."""

    path: str
    name: str
    digest: Digest | None = None


class ImageContext(msgspec.Struct, frozen=True):
    """An image as a named context. `reference`: None for `scratch`; of one in a layout a name that no registry has."""

    reference: Reference | None
    layout: OciLayout | None = None


Source = StdinSource | InlineSource | LocalSource | HttpSource | GitSource


def parse_context(text: str, exists: Callable[[str], bool]) -> Source:
    """The context argument. `exists`: whether a path is there, which wins over `github.com/…`. Raises UsageError."""
    if not text:
        raise UsageError("the build context is empty", hint="`.` is the current folder")
    if text == "-":
        return StdinSource()
    if exists(text) and "://" not in text:
        return LocalSource(text)
    if looks_like_git(text) or text.startswith("github.com/"):
        return parse_git(text)
    if _HTTP.match(text):
        return HttpSource(parse_url(text, ("http", "https")))
    if "://" in text:
        scheme = neutralise(text.partition("://")[0][:40])
        raise UsageError(
            f"`{scheme}://` is not a kind of build context",
            hint="a path, `-`, git+https://, git+http://, git+ssh://, ssh://, git://, https:// or http://",
        )
    return LocalSource(text)


def parse_dockerfile_source(text: str, exists: Callable[[str], bool]) -> Source:
    """The value of --dockerfile: as a context, or a Dockerfile's own text. Raises UsageError."""
    if "\n" in text or (_BEGINS_DOCKERFILE.match(text) and not exists(text)):
        return InlineSource(text)
    if not text:
        raise UsageError("--dockerfile is empty", hint="name a file, a URL or `-`, or give the Dockerfile's text")
    return parse_context(text, exists)


def parse_named_context(text: str, exists: Callable[[str], bool]) -> tuple[str, Source | ImageContext]:
    """The value of --build-context, `name=source`. The name comes back as `normalise_context_name` has it.

    Raises UsageError; for `docker-daemon:` and the like, which are no contexts here, by their name.
    """
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise UsageError(f"`{neutralise(text[:100])}` is not a build context", hint="write `name=path`, `name=URL`")
    if not _CONTEXT_NAME.fullmatch(name):
        raise UsageError(f"`{neutralise(name[:100])}` is not the name of a build context")
    if value.startswith("docker-image://"):
        image = value.removeprefix("docker-image://")
        return normalise_context_name(name), ImageContext(None if image == "scratch" else parse_reference(image))
    if value.startswith("oci-layout://"):
        return normalise_context_name(name), _parse_layout(name, value.removeprefix("oci-layout://"))
    if value.startswith(("target:", "input:", "container:", "docker-daemon:")):
        kind = re.split(r":", value, maxsplit=1)[0]
        raise UsageError(
            f"the build context `{name}` is an `{kind}:` source, which firebuild does not take",
            hint="import the image (firebuild image import) and name it as docker-image://REFERENCE",
        )
    source = parse_context(value, exists)
    if isinstance(source, StdinSource):
        raise UsageError(f"the build context `{name}` cannot be standard input")
    return normalise_context_name(name), source


def _parse_layout(name: str, text: str) -> ImageContext:
    text, at, digest = text.partition("@")
    folder, slash, last = text.rpartition("/")
    last, _, tag = last.partition(":")
    path = folder + slash + last
    if not path or ":" in tag or "," in text or ":" in path or "\0" in text:
        raise UsageError(
            f"the build context `{name}` names no image layout",
            hint="write oci-layout://FOLDER, oci-layout://FOLDER:TAG or oci-layout://FOLDER@sha256:DIGEST",
        )
    reference = Reference(domain="oci-layout", path=normalise_context_name(name), tag=None, digest=None)
    return ImageContext(reference, OciLayout(path, tag, parse_digest(digest) if at else None))


def normalise_context_name(name: str) -> str:
    """A context's name as BuildKit compares it: an image reference in its short form without `:latest`, else lower case."""
    try:
        return parse_reference(name).familiar.removesuffix(":latest")
    except UsageError:
        return name.lower()
