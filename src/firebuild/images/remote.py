"""Looking at an image in its registry with skopeo(1) without bringing it here."""

from __future__ import annotations

from pathlib import Path

from firebuild.errors import ImageError
from firebuild.host.process import run
from firebuild.images.skopeo import Access, failure, platform_options, registry_name
from firebuild.names import Reference

DEFAULT_TIMEOUT_S = 60.0
_CONFIG_LIMIT = 900 << 10


def load_remote_config(
    reference: Reference,
    *,
    architecture: str,
    tls_verify: bool | None = None,
    authfile: Path | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> bytes:
    """The configuration (JSON) of an image in a registry; none of its layers is moved, and nothing is stored.

    `tls_verify`: None is "yes, but not for a registry on this host's loopback". Raises RegistryError, ImageError,
    DeadlineError, MissingProgramError.
    """
    access = Access(tls_verify=tls_verify, authfile=authfile)
    argv = ["skopeo", *platform_options(architecture), "inspect", "--config", "--raw", *access.flags(reference.domain)]
    result = run([*argv, f"docker://{registry_name(reference)}"], timeout_s=timeout_s, check=False)
    if result.returncode != 0:
        subject = f"the configuration of the image `{reference}`"
        raise failure(subject, result.returncode, result.stderr.decode("utf-8", "replace"))
    output = result.stdout
    if len(output) > _CONFIG_LIMIT:
        raise ImageError(f"the configuration of the image `{reference}` is larger than {_CONFIG_LIMIT >> 10} KiB")
    return output
