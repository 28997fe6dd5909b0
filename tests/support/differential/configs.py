"""How two image configurations differ. What is not set, null and empty are one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_FIELDS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "Healthcheck", "Shell", "OnBuild",
)  # fmt: skip
_TOP = ("architecture", "os", "author")


def compare_configs(docker: Mapping[str, Any], firebuild: Mapping[str, Any]) -> Iterator[str]:
    """A line for each difference: `config FIELD: Docker …, firebuild …`."""
    for name in _TOP:
        yield from _compare(name, docker.get(name), firebuild.get(name))
    theirs, ours = docker.get("config") or {}, firebuild.get("config") or {}
    for name in _FIELDS:
        yield from _compare(name, theirs.get(name), ours.get(name))
    # What stands in the history beside this is for people, and differs between Docker's versions.
    yield from _compare("layers of the history", _list_layers(docker), _list_layers(firebuild))


def _list_layers(config: Mapping[str, Any]) -> str:
    """A letter for each entry: `L`, a layer, or `-`, none."""
    return "".join("-" if entry.get("empty_layer") else "L" for entry in config.get("history") or ())


def _compare(name: str, docker: Any, firebuild: Any) -> Iterator[str]:
    if (docker or None) != (firebuild or None):
        yield f"config {name}: Docker {docker!r}, firebuild {firebuild!r}"
