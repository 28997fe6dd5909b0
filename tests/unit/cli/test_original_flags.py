"""Every flag of the original firebuild, command by command: taken, and whether it acts, is a setting, has no effect, or is refused."""

from __future__ import annotations

import click
import pytest

from firebuild.cli.equip import _Refusal
from firebuild.cli.main import load_command
from firebuild.cli.retired import BUILD_OPTIONS, REFUSED, RUN_OPTIONS
from firebuild.config.settings import PROPERTY_FLAGS, SETTINGS

EVERY = "log-level log-as-json log-color log-force-color profile profile-conf-dir"
TRACING = "tracing-enable tracing-collector-host-port tracing-log-enable"
CREATE = (
    "profile binary-firecracker binary-jailer chroot-base run-cache storage-provider storage-provider-property-string "
    "storage-provider-property-int64 overwrite"
)
JAILER = "binary-firecracker binary-jailer chroot-base jailer-uid jailer-gid jailer-numa-node netns"
CNI = "cni-bin-dir cni-conf-dir cni-cache-dir"
STORAGE = (
    "run-cache storage-provider storage-provider-property-string storage-provider-property-int64 "
    "storage-provider.directory.rootfs-storage-root storage-provider.directory.kernel-storage-root"
)
MACHINE = (
    "cni-network-name cpu cpu-template ht-enabled ip-address kernel-args mem no-mmds root-drive-partuuid ssh-user "
    "vmlinux-id log-firecracker-http-calls shutdown-graceful-timeout-seconds allow-mmds"
)
COMMANDS = {
    "profile-create": f"{CREATE} {TRACING}",
    "baseos": f"dockerfile filesystem-size-mbs tag {EVERY} {TRACING}",
    "rootfs": (
        "dockerfile dockerfile-stage build-arg docker-image docker-image-base pre-build-command post-build-command tag "
        "bootstrap-initial-communication-timeout bootstrap-certs-key-size bootstrap-certs-validity "
        f"bootstrap-server-bind-interface {MACHINE} {JAILER} {CNI} {STORAGE} {EVERY} {TRACING}"
    ),
    "run": (
        f"from name hostname env env-file identity-file port daemonize {MACHINE} {JAILER} {CNI} {STORAGE} {EVERY} {TRACING}"
    ),
    "ls": f"run-cache {EVERY} {TRACING}",
    "purge": f"run-cache {EVERY} {TRACING}",
    "inspect": f"vmm-id run-cache {EVERY} {TRACING}",
    "kill": f"vmm-id shutdown-timeout run-cache {EVERY} {TRACING}",
    "profile-ls": "profile-conf-dir log-as-json",
    "profile-inspect": "profile profile-conf-dir log-as-json",
}
TABLE = [(command, f"--{flag}") for command, flags in COMMANDS.items() for flag in flags.split()]


def find_option(command: str, flag: str) -> click.Parameter | None:
    return next((option for option in load_command(command).params if flag in option.opts), None)


@pytest.mark.parametrize(("command", "flag"), TABLE, ids=[" ".join(row) for row in TABLE])
def test_it_is_taken(command: str, flag: str) -> None:
    option = find_option(command, flag)
    assert option is not None
    if "--tracing" in flag:
        # Until traces are sent: not swallowed.
        assert isinstance(option, _Refusal)
    elif flag in {"run": RUN_OPTIONS, "rootfs": BUILD_OPTIONS}.get(command, {}) or flag in REFUSED:
        assert isinstance(option, click.Option) and option.hidden and option.callback is not None
    elif flag == "--log-firecracker-http-calls":
        # It acts as it is read, and the command sees nothing of it.
        assert isinstance(option, click.Option) and option.callback is not None and option.help
    elif not option.expose_value:
        known = {f"--{setting.key}" for setting in SETTINGS} | {f"--{key}" for key in PROPERTY_FLAGS}
        assert flag in known or flag in {f"--{name}" for name in EVERY.split()}
    else:
        assert isinstance(option, click.Option) and not option.hidden and option.help


def test_the_defaults_that_scripts_rely_on() -> None:
    for command, flag, value in (("run", "--cpu", 1), ("run", "--mem", "256"), ("kill", "--shutdown-timeout", 15.0)):
        option = find_option(command, flag)
        assert option is not None and option.default == value, flag
