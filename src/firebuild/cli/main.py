"""The program `firebuild`: finds the command, runs it, and turns errors into messages and exit statuses."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from firebuild import __version__
from firebuild.cli.entry import INTERRUPTED_STATUS
from firebuild.cli.equip import equip
from firebuild.cli.output import print_error
from firebuild.errors import FirebuildError

USAGE_STATUS = 125
BUG_STATUS = 2

# Where each command is: nothing is imported before it is asked for. name → (module, attribute, one line of help).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "doctor": ("doctor", "doctor", "Show what this host offers and how to mend what is missing"),
    "kernel": ("kernel", "kernel", "Kernels: pull, import, ls, rm"),
    "volume": ("volume", "volume", "Volumes: create, ls, inspect, update, rm, prune"),
    "snapshot": ("snapshot", "snapshot", "Snapshots of running machines: create, ls, inspect, rm"),
    "machine": ("machine", "machine", "Machines: fork"),
    "firecracker": ("firecracker", "firecracker", "Firecracker's own programs: install, ls, rm"),
    "network": ("network", "network", "Networks: create, ls, inspect, rm, prune"),
    "image": ("image", "image", "Images: pull, push, save, load, import, export, ls, inspect, history, diff, tag, rm, prune"),
    "baseos": ("baseos", "baseos", "Build a base operating system from a Dockerfile, in a microVM"),
    "rootfs": ("rootfs", "rootfs", "Build a root file system from a Dockerfile, in a microVM"),
    "build": ("rootfs", "rootfs", "Alias of rootfs"),
    "run": ("run", "run", "Start a microVM from an image"),
    "ls": ("machine_list", "ls", "List machines"),
    "ps": ("machine_list", "ls", "Alias of ls"),
    "inspect": ("machine_list", "inspect", "Show everything about a machine, as JSON"),
    "logs": ("logs", "logs", "Show what a machine's entrypoint printed"),
    "attach": ("attach", "attach_", "Attach to the entrypoint of a running machine: its output, its input"),
    "exec": ("exec", "exec_", "Run a command in a running machine"),
    "cp": ("cp", "cp", "Copy files between the host and a machine"),
    "ssh": ("ssh", "ssh", "Log in to a running machine, or run a command in it, over its own sshd"),
    "start": ("life", "start", "Start ended machines again, with their own disks and logs"),
    "restart": ("life", "restart", "Stop machines and start them again"),
    "stats": ("stats", "stats", "Show what running machines use of the host"),
    "top": ("top", "top", "Show the processes in a running machine"),
    "pause": ("life", "pause", "Stop the processors of machines"),
    "resume": ("life", "resume", "Let paused machines go on"),
    "unpause": ("life", "resume", "Alias of resume"),
    "wait": ("life", "wait", "Wait until machines have ended, and print their exit codes"),
    "port": ("life", "port", "Show the published ports of a machine"),
    "update": ("update", "update", "Change machines: restart policy, labels, memory, disk …"),
    "rename": ("life", "rename", "Give a machine another name"),
    "events": ("events", "events", "Show what happens to machines, images and builds"),
    "stop": ("machines", "stop", "Stop machines: their stop signal, then force"),
    "kill": ("machines", "kill", "Terminate machines"),
    "rm": ("machines", "rm", "Remove ended machines with their disks and logs"),
    "purge": ("machines", "purge", "Remove all ended machines and everything that crashes left"),
    "login": ("registry", "login", "Log in to a registry"),
    "logout": ("registry", "logout", "Forget a registry's credentials"),
    "fsck": ("store", "fsck", "Verify every stored image, disk and record"),
    "cache": ("cache", "cache", "The build cache: ls, rm, prune"),
    "gc": ("store", "gc", "Free space: remove what no image, machine or cached step needs"),
    "profile": ("profile", "profile", "Profiles: create, ls, inspect, use, rm"),
    "profile-create": ("profile", "create", "As profile create"),
    "profile-ls": ("profile", "ls", "As profile ls"),
    "profile-inspect": ("profile", "inspect", "As profile inspect"),
    "config": ("config", "config", "Settings: show each value and where it came from"),
    "version": ("version", "version", "Show the version"),
    "machine-ended": ("machines", "machine_ended", ""),
    "machine-changed": ("machines", "machine_changed", ""),
}  # fmt: skip
# Docker's words for what has a command of its own here.
_DOCKER_WORDS = {
    "images": "image ls", "rmi": "image rm", "pull": "image pull", "tag": "image tag", "import": "image import",
    "builder": "cache", "buildx": "build", "system": "gc", "container": "ls",
}  # fmt: skip
_HIDDEN = frozenset(
    ("machine-ended", "machine-changed", "build", "ps", "unpause", "profile-create", "profile-ls", "profile-inspect")
)
# These are under no profile: they make them, or are told everything.
_PLAIN = frozenset(
    ("profile", "profile-create", "profile-ls", "profile-inspect", "machine-ended", "machine-changed", "version")
)


def load_command(name: str) -> click.Command:
    """A command, with what every command gets. An alias has the variables and the profile's table of what it stands for."""
    place = COMMANDS[name][:2]
    own_name = next(each for each, command in COMMANDS.items() if command[:2] == place)
    command = getattr(importlib.import_module(f"firebuild.cli.commands.{place[0]}"), place[1])
    assert isinstance(command, click.Command)
    equip(command, (own_name,), plain=name in _PLAIN)
    return command


def load_commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that works under a profile, with its words, each once."""
    for name in COMMANDS:
        if name not in _HIDDEN and name not in _PLAIN:
            yield from _list_leaves((name,), load_command(name))


def _list_leaves(section: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield section, command
        return
    for name, child in command.commands.items():
        yield from _list_leaves((*section, name), child)


class _Commands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name not in _HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, COMMANDS[name][2]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            near = [_DOCKER_WORDS[name]] if name in _DOCKER_WORDS else near
            hint = f"did you mean `{near[0]}`?" if near else "see `firebuild --help`"
            raise click.UsageError(f"`{name}` is not a firebuild command\nhint: {hint}")
        return super().resolve_command(ctx, args)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-v", "--version", message="firebuild %(version)s")
@click.option("--debug", is_flag=True, help="Log every program that is run, to standard error.")
def cli(debug: bool) -> None:
    """Build bootable root file systems for Firecracker microVMs from Dockerfiles, and run the microVMs."""
    if debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(name)s: %(message)s")


# What a host has no more of, or does no more.
_OF_THE_HOST = (
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EAGAIN, errno.ENOLCK,
)  # fmt: skip


def run_cli(arguments: list[str]) -> int:
    """Run one command line; returns the exit status."""
    try:
        result: Any = cli.main(arguments, prog_name="firebuild", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except FirebuildError as error:
        print_error(error)
        return _failure_status(arguments) if error.exit_status == 1 else error.exit_status
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        click.echo(f"error: {error.format_message()}", err=True)
        if context is not None:
            click.echo(f"hint: see `{context.command_path} --help`", err=True)
        return USAGE_STATUS
    except (KeyboardInterrupt, click.Abort):
        click.echo("error: interrupted", err=True)
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain at exit that it cannot flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the last line of defence: a fault of ours becomes a report
        if isinstance(error, MemoryError):
            error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if isinstance(error, OSError) and error.errno in _OF_THE_HOST:
            # It may come from anywhere, an import too, and is no fault of ours.
            from firebuild.host.files import map_os_error

            print_error(map_os_error(error, f"using `{error.filename}`" if error.filename else "this command"))
            return _failure_status(arguments)
        import traceback

        click.echo(traceback.format_exc(), err=True)
        click.echo("error: this is a fault of firebuild: please report it with the lines above", err=True)
        return BUG_STATUS


def _failure_status(arguments: list[str]) -> int:
    """As docker run and docker exec: 125 says that firebuild failed, not the command in the machine."""
    return USAGE_STATUS if arguments[:1] in (["run"], ["exec"], ["ssh"], ["attach"]) else 1
