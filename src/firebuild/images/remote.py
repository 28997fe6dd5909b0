"""Looking at an image in its registry with skopeo(1) without bringing it here."""

from __future__ import annotations

import os
from pathlib import Path

from firebuild.errors import ImageError, ProcessError, RegistryError
from firebuild.host.process import run
from firebuild.images.skopeo import classify_failure, describe_failure, is_loopback
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
    if tls_verify is None:
        tls_verify = not is_loopback(reference.domain)
    name = f"{reference.name}@{reference.digest}" if reference.digest is not None else reference.full
    argv = ["skopeo", "--override-os", "linux", "--override-arch", architecture, "inspect", "--config", "--raw"]
    argv += [] if tls_verify else ["--tls-verify=false"]
    argv += ["--authfile", os.fspath(authfile)] if authfile is not None else []
    try:
        output = run([*argv, f"docker://{name}"], timeout_s=timeout_s).stdout
    except ProcessError as error:
        reason, hint = classify_failure(error.details or "")
        raise RegistryError(
            f"the configuration of the image `{reference}` cannot be read from its registry",
            reason=reason,
            hint=hint,
            details=describe_failure(error.details or ""),
        ) from error
    if len(output) > _CONFIG_LIMIT:
        raise ImageError(f"the configuration of the image `{reference}` is larger than {_CONFIG_LIMIT >> 10} KiB")
    return output
