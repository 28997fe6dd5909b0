"""The proxies that a user's Docker configuration gives every build, as docker(1) gives them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import ConfigError

# docs.docker.com, "Use a proxy server with the Docker CLI": the keys of `proxies.default`.
_VARIABLES = {
    "httpProxy": "HTTP_PROXY",
    "httpsProxy": "HTTPS_PROXY",
    "ftpProxy": "FTP_PROXY",
    "noProxy": "NO_PROXY",
    "allProxy": "ALL_PROXY",
}
_LIMIT = 4 << 20


def load_proxy_args(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The build arguments of `proxies.default` in `$DOCKER_CONFIG/config.json`, or `~/.docker/config.json`; none without one.

    Raises ConfigError for a file that does not parse.
    """
    folder = environment.get("DOCKER_CONFIG") or os.path.join(environment.get("HOME") or "/root", ".docker")
    path = Path(folder) / "config.json"
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT)
    except OSError:
        return {}  # none, or not for this user: docker goes on without it too
    try:
        document: Any = msgspec.json.decode(data)
        default = (document.get("proxies") or {}).get("default") or {}
        return {name: str(default[key]) for key, name in _VARIABLES.items() if default.get(key)}
    except (msgspec.MsgspecError, AttributeError, RecursionError) as error:
        raise ConfigError(f"`{path}` does not parse: {error}", hint="it is Docker's own configuration file") from error
