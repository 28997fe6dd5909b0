"""Options of the original that scripts still carry and that have nothing left to do: taken, and said to have no effect; or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from firebuild.cli.output import note
from firebuild.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_NO_BOOTSTRAP = "a build talks to its machine over a private channel, and nothing is bootstrapped over a network"
_NO_SSH = "nothing logs in to a build machine"
_OWN_USER = "each machine has a user and group of its own, out of --jailer-ids"
_NO_NODE = "VMMs are not bound to a NUMA node"

# Option → why it does nothing. Those of `flags` take no value.
BUILD_OPTIONS: Mapping[str, str] = {
    "--bootstrap-initial-communication-timeout": _NO_BOOTSTRAP,
    "--bootstrap-certs-key-size": _NO_BOOTSTRAP,
    "--bootstrap-certs-validity": _NO_BOOTSTRAP,
    "--bootstrap-server-bind-interface": _NO_BOOTSTRAP,
    "--ssh-user": _NO_SSH,
    "--identity-file": _NO_SSH,
    "--hostname": "steps of a build have the same host name everywhere",
    "--ip-address": "a build machine takes any free address of its network",
    "--cpu-template": "a build machine has the processor's own features",
    "--ht-enabled": "a build machine has the processor's own features",
    "--kernel-args": "a build machine has no root drive of its own to name",
    "--no-mmds": "a build machine has no metadata service",
    "--allow-mmds": "a build machine has no metadata service",
    "--shutdown-graceful-timeout-seconds": "a build machine ends when its disks are written",
    "--netns": "a build machine has a network namespace of its own",
    "--jailer-uid": _OWN_USER,
    "--jailer-gid": _OWN_USER,
    "--jailer-numa-node": _NO_NODE,
}
# Those of the original's machine and jailer flags that mean nothing to a machine of an image.
RUN_OPTIONS: Mapping[str, str] = {
    "--ht-enabled": "a machine has the processor's own features",
    "--allow-mmds": "the metadata service is there, unless --no-mmds says otherwise",
    "--netns": "each machine has a network namespace of its own",
    "--jailer-uid": _OWN_USER,
    "--jailer-gid": _OWN_USER,
    "--jailer-numa-node": _NO_NODE,
}
# What asks for something that would not be there: going on without it would not be what was meant.
REFUSED: Mapping[str, str] = {
    "--root-drive-partuuid": "a root disk of firebuild's is one file system without partitions",
}
FLAGS = frozenset(("--no-mmds", "--allow-mmds", "--ht-enabled"))


def retired_options(options: Mapping[str, str]) -> Callable[[F], F]:
    """Take these options, hidden from the help. The command's function does not see them."""

    def decorate(function: F) -> F:
        for option, reason in options.items():
            function = click.option(
                option, is_flag=option in FLAGS, multiple=option not in FLAGS, hidden=True, expose_value=False,
                callback=_make_notice(option, reason),
            )(function)  # fmt: skip
        return function

    return decorate


def refused_options(options: Mapping[str, str]) -> Callable[[F], F]:
    """Refuse these options by name, hidden from the help."""

    def decorate(function: F) -> F:
        for option, reason in options.items():
            refuse = _make_refusal(option, reason)
            function = click.option(option, hidden=True, expose_value=False, callback=refuse)(function)
        return function

    return decorate


def _make_refusal(option: str, reason: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def refuse(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            raise UsageError(f"{option} does not go: {reason}", hint=f"leave out {option}")

    return refuse


def _make_notice(option: str, reason: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def notice(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            note(f"note: {option} has no effect: {reason}")

    return notice
