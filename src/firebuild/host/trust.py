"""The certificate authorities that this host trusts, as one PEM text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from firebuild.errors import HostError
from firebuild.host.files import map_os_error

# Debian and Alpine, Fedora, openSUSE, FreeBSD-like layouts: the first that is there counts.
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# It goes to a guest in one frame of the protocol, which holds a megabyte.
MAX_BUNDLE_BYTES = 800 << 10
_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"


def load_ca_bundle(environment: Mapping[str, str] = os.environ) -> str:
    """The PEM text: of the file that SSL_CERT_FILE names, else of the first of BUNDLES. Only its certificates are taken.

    Raises HostError if there is none, or if it holds no certificate or too many.
    """
    named = environment.get("SSL_CERT_FILE")
    paths = [Path(named)] if named else [Path(path) for path in BUNDLES if os.path.exists(path)]
    if not paths:
        raise HostError(
            "this host has no bundle of certificate authorities", hint="install ca-certificates, or set SSL_CERT_FILE"
        )
    try:
        text = paths[0].read_bytes().decode("ascii", "replace")
    except OSError as error:
        raise map_os_error(error, f"reading the certificate authorities `{paths[0]}`") from error
    bundle = "".join(_list_certificates(text))
    if not bundle:
        raise HostError(f"the file of certificate authorities `{paths[0]}` holds no certificate")
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise HostError(
            f"the certificate authorities in `{paths[0]}` have {len(bundle)} bytes; {MAX_BUNDLE_BYTES} can be handed on",
            hint="name a smaller file with SSL_CERT_FILE",
        )
    return bundle


def _list_certificates(text: str) -> list[str]:
    """Whole certificates and nothing between them: a key in the same file is not given away."""
    found = []
    for part in text.split(_BEGIN)[1:]:
        body, end, _ = part.partition(_END)
        if end:
            found.append(f"{_BEGIN}{body}{_END}\n")
    return found
