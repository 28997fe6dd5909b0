"""`firebuild run`: start a microVM from an image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firebuild.cli import terminal
from firebuild.cli.detach_keys import DEFAULT_DETACH_KEYS, parse_detach_keys
from firebuild.cli.health_options import health_options, parse_health_options
from firebuild.cli.log_options import log_calls_option
from firebuild.cli.options import START_FAILURES, parse_environment
from firebuild.cli.output import note, print_error
from firebuild.cli.progress import open_meter
from firebuild.cli.retired import REFUSED, RUN_OPTIONS, refused_options, retired_options
from firebuild.engine.core import Engine
from firebuild.errors import GuestError, UsageError
from firebuild.machine.extras import parse_extras
from firebuild.machine.mounts import parse_disk_option, parse_mount_option, parse_volume_option
from firebuild.machine.spec import (
    DEFAULT_MEMORY_MIB,
    DEFAULT_NETWORK,
    DiskLimits,
    NetworkJoin,
    VmmExtras,
    parse_address,
    parse_alias,
    parse_network_join,
    parse_restart_policy,
)
from firebuild.names import parse_port_mappings, parse_size

if TYPE_CHECKING:
    from firebuild.engine.machines import RunRequest


# What follows the image is the command's, options too, as with docker run.
@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--from", "image", help="The image, [org/]name[:tag], where no argument names it.")
@click.option(
    "--pull",
    default="missing",
    show_default=True,
    help="When the registry is asked for the image: missing, always, never.",
)
@click.option("--tls-verify/--no-tls-verify", default=None, help="Whether the registry must have a good certificate.")
@click.option("--authfile", type=click.Path(path_type=Path), help="File of registry credentials.")
@click.option(
    "--warm/--no-warm",
    default=None,
    help="Start from a snapshot of a guest that is ready; the first start makes it. Default: the profile's `warm`.",
)
@click.option("--from-snapshot", metavar="NAME", help="Start from a snapshot, in place of an image.")
@click.option(
    "-n", "--count", type=click.IntRange(1), default=1, show_default=True, help="With --from-snapshot: how many."
)
@click.option("--name", help="The machine's name; without it one is made up.")
@click.option("--hostname", "-h", help="Its host name; without it its name.")
@click.option("--daemonize", "-d", is_flag=True, help="Return when the guest is ready; print the machine's id.")
@click.option("--interactive", "-i", is_flag=True, help="Hand standard input on to the entrypoint, and keep it open.")
@click.option("--tty", "-t", is_flag=True, help="Give the entrypoint a terminal.")
@click.option(
    "--detach-keys", default=DEFAULT_DETACH_KEYS, show_default=True,
    help="With -i and -t: the keys that detach and leave the machine running; empty: none.",
)  # fmt: skip
@click.option("--rm", "auto_remove", is_flag=True, help="Remove the machine when it has ended.")
@click.option(
    "--restart", default="no", show_default=True, metavar="POLICY",
    help="When the entrypoint is started again in the machine: no, on-failure[:N], always, unless-stopped.",
)  # fmt: skip
@health_options
@click.option("--port", "-p", "ports", multiple=True, help="Publish a port: [[address:]host:]guest[/tcp|udp].")
@click.option("--env", "-e", multiple=True, help="Environment variable K=V.")
@click.option("--env-file", multiple=True, help="File of environment variables.")
@click.option(
    "--cni-network-name",
    "--network",
    "networks",
    multiple=True,
    default=(DEFAULT_NETWORK,),
    show_default=True,
    metavar="NAME[:ip=ADDRESS][,ip6=ADDRESS][,alias=NAME]",
    help="A network, or none; several times for eth0, eth1, and so on.",
)
@click.option("--ip-address", "--ip", "address", help="A static address in the first network.")
@click.option("--ip6", "address6", help="A static IPv6 address in the first network.")
@click.option(
    "--network-alias",
    "--net-alias",
    "aliases",
    multiple=True,
    help="Another name for the machine in the first network.",
)
@click.option("--cpu", "--cpus", "cpus", type=int, default=1, show_default=True, help="Processors.")
@click.option(
    "--mem",
    "--memory",
    "-m",
    "memory",
    default=str(DEFAULT_MEMORY_MIB),
    show_default=True,
    help="Memory: MiB, or with a unit: 512m, 2g.",
)
@click.option(
    "--balloon", metavar="SIZE",
    help="A memory balloon of that size: the guest gives so much back, and what it frees, until it needs it.",
)  # fmt: skip
@click.option(
    "--huge-pages", default="none", show_default=True, help="Pages of the guest's memory: none, transparent, 2m."
)
@click.option(
    "--cpu-template", metavar="NAME|@FILE",
    help="Firecracker's CPU template (C3, T2, T2S, T2CL, T2A), or a file with one of your own.",
)  # fmt: skip
@click.option(
    "--volume", "-v", "volumes", multiple=True, metavar="NAME:/PATH[:ro]",
    help="A folder of the machine on a named volume, made where it is missing; or ./FOLDER:/PATH: a copy of that folder.",
)  # fmt: skip
@click.option(
    "--mount", "mounts", multiple=True, metavar="type=volume,source=NAME,target=/PATH",
    help="The same in Docker's other words; with readonly, volume-nocopy.",
)  # fmt: skip
@click.option(
    "--disk", "disks", multiple=True, metavar="PATH[:ro]",
    help="A file or block device of the host, as a further disk of the machine.",
)  # fmt: skip
@click.option("--disk-iops", type=click.IntRange(0), default=0, help="Most reads and writes a second of each disk.")
@click.option("--disk-bandwidth", help="Most bytes a second of each disk: 50m.")
@click.option("--net-rate", help="Most bytes a second that each interface may send, and be sent: 10m.")
@click.option("--sync-back", is_flag=True, help="Copy folders given with -v back when the machine has ended.")
@click.option("--disk-size", default="8g", show_default=True, help="Size of the machine's own writable disk (sparse).")
@click.option(
    "--root-mode", default="overlay", show_default=True, help="overlay, or copy: a private copy of the root disk."
)
@click.option("--read-only", is_flag=True, help="Nothing in the guest can write to its root; volumes stay as they are.")
@click.option(
    "--init",
    is_flag=False,
    flag_value="auto",
    default="auto",
    show_default=True,
    help="Who is PID 1: direct (firebuild's own), system (the image's init), auto (as the image says).",
)
@click.option("--vmlinux-id", "--kernel", "kernel", help="The kernel; without it the newest.")
@click.option("--kernel-args", help="The kernel's command line.")
@click.option("--entrypoint", help="Replaces the image's ENTRYPOINT (and its CMD).")
@click.option("--user", "-u", help="User, or user:group.")
@click.option("--workdir", "-w", help="Working directory.")
@click.option(
    "--ssh-user", "ssh_users", multiple=True,
    help="A user who may log in with the keys of --identity-file; without it the image's own.",
)  # fmt: skip
@click.option("--identity-file", multiple=True, help="File of SSH public keys.")
@click.option("--no-mmds", is_flag=True, help="No metadata service in the guest.")
@click.option(
    "--cidfile", type=click.Path(path_type=Path), help="Write the machine's id to this file, which must not exist."
)
@click.option("--stop-signal", help="The signal that `stop` sends; without it the image's, else SIGTERM.")
@click.option(
    "--stop-timeout", "--shutdown-graceful-timeout-seconds", "stop_timeout_s", type=click.FloatRange(0, 86400),
    help="Seconds that `stop` waits before force, where it is not told otherwise; without it 10.",
)  # fmt: skip
@log_calls_option
@retired_options(RUN_OPTIONS)
@refused_options(REFUSED)
@click.option("--label", multiple=True, help="Label K=V.")
@click.option("--boot-timeout", type=click.FloatRange(1, 86400), help="Seconds within which the guest must be ready.")
@click.argument("words", metavar="[IMAGE] [COMMAND]...", nargs=-1, type=click.UNPROCESSED)
def run(**options: Any) -> int:
    """Start a microVM from an image; the first argument names it, or --from. A command replaces the image's CMD.

    Without -d the entrypoint's output streams through, SIGINT and SIGTERM stop the machine in order, SIGUSR1, SIGUSR2 and
    SIGQUIT reach the entrypoint, and the exit status is the entrypoint's. With -i or -t this command is attached to it: all
    signals reach it; with both it has this terminal.
    """
    from firebuild.cli.attaching import AttachPlan
    from firebuild.cli.foreground import follow_machine
    from firebuild.engine.machines import run_machine

    if options["from_snapshot"] is not None or options["count"] != 1:
        return _run_clones(options)
    image, command = _image_and_command(options["image"], options["words"])
    tty, stdin = options["tty"], options["interactive"]
    keys = parse_detach_keys(options["detach_keys"])
    attaches = (tty or stdin) and not options["daemonize"]
    if attaches and tty and stdin:
        terminal.require_terminal()
    request = _plan_request(options, image, command, attaches=attaches)
    with Engine() as engine, ExitStack() as stack:
        write_id = stack.enter_context(_open_cidfile(options["cidfile"]))
        try:
            with open_meter(f"preparing {image}") as progress:
                record = run_machine(engine, request, progress=progress, report=note)
            write_id(record.spec.id)
            if options["daemonize"]:
                click.echo(record.spec.id)
                return 0
            plan = AttachPlan(stdin=stdin, keys=keys) if attaches else None
            return follow_machine(engine, record.spec.id, remove=options["auto_remove"], plan=plan)
        except GuestError as error:
            if error.guest_code not in START_FAILURES:
                raise
            print_error(error)
            return START_FAILURES[error.guest_code]


def _plan_request(options: Mapping[str, Any], image: str, command: Sequence[str], *, attaches: bool) -> RunRequest:
    from firebuild.engine.machines import RunRequest
    from firebuild.images.skopeo import Access

    memory_mib = parse_size(options["memory"], default_unit="m") >> 20
    return RunRequest(
        image=image,
        command=command,
        name=options["name"],
        hostname=options["hostname"],
        kernel=options["kernel"],
        kernel_args=options["kernel_args"],
        cpus=options["cpus"],
        memory_mib=memory_mib,
        extras=_parse_extras(options, memory_mib),
        disk_size_bytes=parse_size(options["disk_size"], default_unit="m"),
        root_mode=options["root_mode"],
        read_only=options["read_only"],
        init=options["init"],
        networks=_plan_joins(options),
        ports=[mapping for text in options["ports"] for mapping in parse_port_mappings(text)],
        mounts=[*map(parse_volume_option, options["volumes"]), *map(parse_mount_option, options["mounts"])],
        sync_back=options["sync_back"],
        disks=[parse_disk_option(text) for text in options["disks"]],
        disk_limits=DiskLimits(
            options["disk_iops"], parse_size(options["disk_bandwidth"]) if options["disk_bandwidth"] else 0
        ),
        net_bytes_per_s=parse_size(options["net_rate"]) if options["net_rate"] else 0,
        env=parse_environment(options["env_file"], options["env"]),
        ssh_keys=_load_keys(options["identity_file"]),
        ssh_users=options["ssh_users"],
        entrypoint=options["entrypoint"],
        user=options["user"],
        workdir=options["workdir"],
        mmds=not options["no_mmds"],
        tty=options["tty"],
        stdin=options["interactive"],
        caller_attaches=attaches,
        auto_remove=options["auto_remove"] and options["daemonize"],
        caller_removes=options["auto_remove"] and not options["daemonize"],
        boot_timeout_s=options["boot_timeout"],
        stop_signal=options["stop_signal"],
        stop_timeout_s=options["stop_timeout_s"],
        labels=dict(text.partition("=")[::2] for text in options["label"]),
        restart=parse_restart_policy(options["restart"]),
        health=parse_health_options(options),
        pull=options["pull"],
        warm=options["warm"],
        access=Access(options["tls_verify"], options["authfile"], retries=1),
    )


def _run_clones(options: Mapping[str, Any]) -> int:
    if options["from_snapshot"] is None:
        raise UsageError("-n starts several machines from a snapshot", hint="name one with --from-snapshot")
    from firebuild.cli.cloning import plan_clones, start_one, start_several
    from firebuild.cli.foreground import follow_machine
    from firebuild.engine.snapshots import run_clones

    request = plan_clones(options, options["from_snapshot"])
    with Engine() as engine, ExitStack() as stack:
        if request.count > 1:
            return start_several(lambda done: run_clones(engine, request, done=done))
        write_id = stack.enter_context(_open_cidfile(options["cidfile"]))
        record = start_one(engine, request)
        write_id(record.spec.id)
        if options["daemonize"]:
            click.echo(record.spec.id)
            return 0
        return follow_machine(engine, record.spec.id, remove=options["auto_remove"], plan=None)


def _parse_extras(options: Mapping[str, Any], memory_mib: int) -> VmmExtras:
    balloon = options["balloon"]
    return parse_extras(
        cpu_template=options["cpu_template"], huge_pages=options["huge_pages"], memory_mib=memory_mib,
        balloon_bytes=None if balloon is None else parse_size(balloon, default_unit="m"),
    )  # fmt: skip


def _plan_joins(options: Mapping[str, Any]) -> list[NetworkJoin]:
    """The networks, with what further options say of the first. Raises UsageError."""
    addresses = [parse_address(options["address"])] if options["address"] else []
    addresses += [parse_address(options["address6"], version=6)] if options["address6"] else []
    aliases = [parse_alias(alias) for alias in options["aliases"]]
    if "none" in options["networks"]:
        if len(options["networks"]) > 1 or addresses or aliases:
            raise UsageError("--network none: then no other network, address or alias")
        return []
    joins = [parse_network_join(text) for text in options["networks"]]
    first = joins[0]
    if addresses and first.addresses:
        raise UsageError("give the first network's address once: with --network or with --ip")
    joins[0] = NetworkJoin(first.network, addresses or first.addresses, [*first.aliases, *aliases])
    return joins


@contextlib.contextmanager
def _open_cidfile(path: Path | None) -> Iterator[Callable[[str], None]]:
    """What writes the machine's id. The file is made first, so that nothing runs that it cannot name, and is removed again
    where nothing was written. Raises UsageError."""
    if path is None:
        yield lambda _: None
        return
    try:
        file = open(path, "x", encoding="ascii")  # noqa: SIM115 - closed below
    except FileExistsError:
        raise UsageError(
            f"the file `{path}` of --cidfile exists already", hint="remove it, if its machine is not needed"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write the file `{path}` of --cidfile: {error.strerror}") from error
    written: list[str] = []

    def write(machine_id: str) -> None:
        file.write(machine_id)
        file.flush()
        written.append(machine_id)

    try:
        with file:
            yield write
    finally:
        if not written:
            path.unlink(missing_ok=True)


def _image_and_command(image: str | None, words: Sequence[str]) -> tuple[str, Sequence[str]]:
    if image is not None:
        return image, words
    if not words:
        raise UsageError("name an image", hint="firebuild run IMAGE, or firebuild run --from IMAGE -- COMMAND")
    return words[0], words[1:]


def _load_keys(files: tuple[str, ...]) -> str:
    """The public keys in these files, one a line; empty without files. Raises UsageError."""
    keys = []
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                keys += [line for line in file.read().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the public keys in `{path}`: {error}") from error
    if any("PRIVATE KEY" in line for line in keys):
        raise UsageError(
            "--identity-file takes public keys; a private key was given", hint="use the file that ends in .pub"
        )
    return "".join(f"{key}\n" for key in keys)
