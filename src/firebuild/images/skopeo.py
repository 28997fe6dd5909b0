"""Moving images with skopeo(1): registries and archives, through a private OCI layout, every digest verified again here."""

from __future__ import annotations

import os
import re
import select
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from firebuild.errors import ConflictError, DiskFullError, FirebuildError, ImageError, RegistryError, StoreError
from firebuild.events.text import neutralise
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, publish, write_atomic
from firebuild.host.process import start
from firebuild.images.archive import open_layer
from firebuild.images.blobs import BlobSink
from firebuild.names import Digest, Reference

D = TypeVar("D")
ProgressLine = Callable[[str], None]

DEFAULT_TIMEOUT_S = 3600.0
DEFAULT_RETRIES = 3
_MANIFEST_LIMIT = 4 << 20
_LAYERS_MAX = 1000
_TAIL_LINES = 20
_LINE_MAX = 2000
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_POLICY_FILES = ("/etc/containers/policy.json", "/usr/share/containers/policy.json")


class MovedImage(msgspec.Struct, Generic[D]):
    """An image whose blobs are in the store now, without a name. `names`: what an archive calls it."""

    manifest_digest: Digest
    blobs: list[D]
    names: list[str] = []


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0)]


class _Index(msgspec.Struct):
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor]


# What skopeo says, in the order in which it is looked for: pattern, reason, hint.
_REASONS = (
    (r"no space left on device|disk quota exceeded", "disk-full", None),
    (
        r"unauthorized|authentication required|invalid username/password|denied|status(?: code)?:? 40[13]|40[13] Forbidden",
        "unauthorized",
        "log in with `skopeo login REGISTRY`, or name the credentials with --authfile; a private or misspelt repository looks the same",
    ),
    (
        r"manifest unknown|name unknown|repository name not known|not found|status(?: code)?:? 404",
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
        r"|connection reset|server misbehaving|proxyconnect|context deadline exceeded|status(?: code)?:? 5\d\d|: EOF",
        "unreachable",
        "check the network and the registry's name, or bring the image as a file: `firebuild image import`",
    ),
)


_LOG_LINE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')


def classify_failure(stderr: str) -> tuple[str, str | None]:
    """The reason and a hint for what skopeo wrote when it failed; `other` if it is not one of the known ones."""
    for pattern, reason, hint in _REASONS:
        if re.search(pattern, stderr, re.IGNORECASE):
            return reason, hint
    return "other", None


def describe_failure(stderr: str) -> str | None:
    """What skopeo said in the end, without its log's form: `the registry said: …`. None if it said nothing."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    if not lines:
        return None
    match = _LOG_LINE.search(lines[-1])
    text = match[1].replace('\\"', '"') if match else lines[-1]
    return f"skopeo says: {neutralise(text)[:500]}"


def pull(
    reference: Reference,
    blobs: BlobSink[D],
    *,
    architecture: str = "amd64",
    variant: str | None = None,
    tls_verify: bool | None = None,
    authfile: Path | None = None,
    retries: int = DEFAULT_RETRIES,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ProgressLine | None = None,
) -> MovedImage[D]:
    """Bring an image from its registry into the store; the caller names it.

    `tls_verify`: None is "yes, but not for a registry on this host's loopback". Credentials, mirrors and certificates are those of
    skopeo's own files (containers-registries.conf(5), containers-auth.json(5)). Raises RegistryError, DiskFullError,
    DeadlineError, MissingProgramError; nothing remains then but blobs that nothing names.
    """
    options = _platform_options(architecture, variant)
    # Without the second flag skopeo would compress plain layers, and their digests would be others.
    flags = ["--retry-times", str(retries), "--dest-oci-accept-uncompressed-layers"]
    if tls_verify is None:
        tls_verify = not is_loopback(reference.domain)
    if not tls_verify:
        flags.append("--src-tls-verify=false")
    if authfile is not None:
        if not authfile.is_file():
            raise ImageError(f"the credentials file `{authfile}` does not exist")
        flags += ["--src-authfile", os.fspath(authfile)]
    source = "docker://" + _registry_name(reference)
    with blobs.stage_folder() as stage:
        _copy(source, f"oci:{stage}/oci", f"the image `{reference}`", stage, options, flags, timeout_s, progress)
        return _adopt(stage / "oci", blobs, f"the image `{reference}`")


def load(
    path: Path,
    blobs: BlobSink[D],
    *,
    architecture: str = "amd64",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ProgressLine | None = None,
) -> list[MovedImage[D]]:
    """Take in every image of an archive that `docker save`, `podman save` or `firebuild image save` wrote.

    Raises ImageError if the file is neither, RegistryError, DiskFullError, DeadlineError.
    """
    from firebuild.images.listing import list_archive

    subject = f"the archive `{path}`"
    if ":" in os.fspath(path) or "," in os.fspath(path):
        raise ImageError(f"{subject} cannot be read: skopeo takes no `:` and no `,` in a path")
    listing = list_archive(path)
    moved = []
    for number, names in enumerate(listing.names):
        source = f"{listing.transport}:{path.absolute()}{listing.selector(number)}"
        with blobs.stage_folder() as stage:
            options = _platform_options(architecture, None)
            flags = ["--dest-oci-accept-uncompressed-layers"]
            _copy(source, f"oci:{stage}/oci", subject, stage, options, flags, timeout_s, progress)
            image = _adopt(stage / "oci", blobs, subject)
        image.names = names
        moved.append(image)
    return moved


def save(
    manifest_digest: Digest,
    manifest_size: int,
    names: Sequence[Reference],
    blobs: BlobSink[Any],
    target: Path,
    *,
    archive_format: str = "oci-archive",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: ProgressLine | None = None,
) -> None:
    """Write an image of the store to a file that appears whole or not at all. `archive_format`: oci-archive or docker-archive.

    Raises ConflictError if `target` exists, RegistryError, DiskFullError, DeadlineError.
    """
    if archive_format not in ("oci-archive", "docker-archive"):
        raise ImageError(f"`{archive_format}` is not an archive format", hint="oci-archive or docker-archive")
    if target.exists():
        raise ConflictError(f"`{target}` exists already")
    with blobs.stage_folder() as stage:
        plain = archive_format == "docker-archive"
        source = _stage_source(stage, blobs, manifest_digest, manifest_size, plain_layers=plain)
        # Beside the target, so that publishing is one rename; a name without characters that skopeo would read as syntax.
        partial = target.absolute().parent / f".firebuild-{stage.name}.tmp"
        if ":" in os.fspath(partial) or "," in os.fspath(partial):
            raise ImageError(f"`{target}` cannot be written: skopeo takes no `:` and no `,` in a path")
        flags = [f"--additional-tag={_registry_name(name)}" for name in names if name.tag and name.digest is None]
        suffix = f":{names[0].full}" if names and archive_format == "oci-archive" and names[0].digest is None else ""
        try:
            _copy(
                source, f"{archive_format}:{partial}{suffix}", f"the image {manifest_digest}", stage, [],
                flags if archive_format == "docker-archive" else [], timeout_s, progress,
            )  # fmt: skip
            publish(partial, target)
        finally:
            partial.unlink(missing_ok=True)


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


def _registry_name(reference: Reference) -> str:
    """skopeo takes a tag or a digest; of both, the digest says more."""
    if reference.digest is not None:
        return f"{reference.name}@{reference.digest}"
    return reference.full


def _platform_options(architecture: str, variant: str | None) -> list[str]:
    options = ["--override-os", "linux", "--override-arch", architecture]
    return [*options, "--override-variant", variant] if variant else options


def _copy(
    source: str,
    target: str,
    subject: str,
    stage: Path,
    options: Sequence[str],
    flags: Sequence[str],
    timeout_s: float,
    progress: ProgressLine | None,
) -> None:
    """Run `skopeo copy`. Its temporary files go below `stage`."""
    policy = _ensure_policy(stage)
    temporary = stage / "tmp"
    temporary.mkdir(exist_ok=True)
    argv = ["skopeo", *policy, *options, "--tmpdir", os.fspath(temporary), "copy", *flags, source, target]
    deadline = Deadline(timeout_s, f"moving {subject}")
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    show = progress or (lambda _: None)
    # What it logs is for the error; a user gets that in a sentence.
    status = _run_lines(argv, deadline, lambda line: None if line.startswith("time=") else show(line), tail.append)
    if status != 0:
        raise _failure(subject, status, "\n".join(tail))


def _run_lines(argv: Sequence[str], deadline: Deadline, on_line: ProgressLine, on_error: ProgressLine) -> int:
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
        process = stack.enter_context(start(argv, stdout=writers[0], stderr=writers[1]))
        ended = os.pidfd_open(process.pid)
        stack.callback(os.close, ended)
        for writer_file in writers:
            writer_file.close()
        running = True
        while running:
            # The end of the program ends this, not the end of its outputs: a helper of its may hold them open.
            ready, _, _ = select.select([ended, *outputs], [], [], deadline.check())
            running = ended not in ready
            for reader in list(outputs):
                if not _drain(reader, *outputs[reader]):
                    del outputs[reader]
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


def _failure(subject: str, status: int, stderr: str) -> FirebuildError:
    reason, hint = classify_failure(stderr)
    if reason == "disk-full":
        return DiskFullError(
            f"no space left on the device while moving {subject}", hint="free space with `firebuild gc`", details=stderr
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
    return RegistryError(message, reason=reason, hint=hint, details=describe_failure(stderr))


def _ensure_policy(stage: Path) -> list[str]:
    """skopeo refuses to work without a signature policy file; where the host has none, nothing is demanded."""
    home = os.environ.get("HOME")
    files = [*_POLICY_FILES, *([f"{home}/.config/containers/policy.json"] if home else [])]
    if any(os.path.exists(path) for path in files):
        return []
    policy = stage / "policy.json"
    write_atomic(policy, b'{"default":[{"type":"insecureAcceptAnything"}]}')
    return ["--policy", os.fspath(policy)]


def _stage_source(
    stage: Path, blobs: BlobSink[Any], manifest_digest: Digest, manifest_size: int, *, plain_layers: bool
) -> str:
    """A layout that holds one image and borrows the store's blobs: skopeo needs no reference to find it.

    `plain_layers`: zstd layers are uncompressed into it, under a manifest that says so (Docker's archives know no zstd).
    """
    layout = stage / "source"
    folder = layout / "blobs" / "sha256"
    try:
        folder.mkdir(parents=True)
        manifest = msgspec.json.decode(_read_bounded(blobs.path(manifest_digest)))
        for blob in (manifest["config"], *manifest["layers"]):
            digest = Digest(blob["digest"])
            if plain_layers and blob["mediaType"].endswith(("+zstd", ".zstd")):
                blob.update(_stage_plain(blobs.path(digest), blob["mediaType"], folder))
            elif not os.path.lexists(folder / digest[7:]):
                os.symlink(blobs.path(digest).absolute(), folder / digest[7:])
        if plain_layers:
            data = msgspec.json.encode(manifest)
            manifest_digest, manifest_size = _digest(data), len(data)
            write_atomic(folder / manifest_digest[7:], data)
        else:
            os.symlink(blobs.path(manifest_digest).absolute(), folder / manifest_digest[7:])
    except OSError as error:
        raise map_os_error(error, f"making `{layout}`") from error
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise ImageError(f"the manifest {manifest_digest} does not parse: {error}") from error
    write_atomic(layout / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    entry = {"mediaType": _MANIFEST_TYPE, "digest": manifest_digest, "size": manifest_size}
    write_atomic(layout / "index.json", msgspec.json.encode({"schemaVersion": 2, "manifests": [entry]}))
    return f"oci:{layout}"


def _stage_plain(path: Path, media_type: str, folder: Path) -> dict[str, Any]:
    """Uncompress a layer into a layout's blobs; what is to stand in its descriptor."""
    import hashlib

    total, size = hashlib.sha256(), 0
    partial = folder / "partial"
    with open_layer(path, media_type) as layer, open(partial, "wb") as file:
        for piece in layer:
            file.write(piece)
            total.update(piece)
            size += len(piece)
    os.rename(partial, folder / total.hexdigest())
    digest = f"sha256:{total.hexdigest()}"
    return {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}


def _digest(data: bytes) -> Digest:
    import hashlib

    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def _adopt(layout: Path, blobs: BlobSink[D], subject: str) -> MovedImage[D]:
    """Verify each blob of a layout with one image and move it into the store, the manifest last."""
    try:
        index = msgspec.json.decode(_read_bounded(layout / "index.json"), type=_Index)
        if len(index.manifests) != 1:
            raise ImageError(f"{subject} came as {len(index.manifests)} images, not one")
        entry = index.manifests[0]
        data = _read_bounded(_blob(layout, entry))
        if b'"manifests"' in data and "manifests" in msgspec.json.decode(data):
            raise ImageError(f"{subject} came as an index of several platforms, not as one image")
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RegistryError(f"{subject} has a manifest that does not parse: {error}", reason="damaged") from error
    if len(manifest.layers) > _LAYERS_MAX:
        raise ImageError(f"{subject} has {len(manifest.layers)} layers; {_LAYERS_MAX} are allowed")
    if manifest.config.size > _MANIFEST_LIMIT:
        raise ImageError(
            f"{subject} has a configuration of {manifest.config.size} bytes; {_MANIFEST_LIMIT} are allowed"
        )
    adopted = {}
    try:
        for blob in (*manifest.layers, manifest.config, entry):
            if blob.digest not in adopted:
                adopted[blob.digest] = blobs.adopt(_blob(layout, blob), Digest(blob.digest), blob.size, blob.media_type)
    except StoreError as error:
        raise RegistryError(f"{subject} arrived damaged: {error}", reason="damaged") from error
    return MovedImage(Digest(entry.digest), list(adopted.values()))


def _blob(layout: Path, descriptor: _Descriptor) -> Path:
    return layout / "blobs" / "sha256" / descriptor.digest[7:]


def _read_bounded(path: Path) -> bytes:
    data = b""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        data = file.read(_MANIFEST_LIMIT + 1)
    if not data or len(data) > _MANIFEST_LIMIT:
        raise ImageError(f"`{path.name[:80]}` of the image has {len(data)} bytes, which cannot be right")
    return data
