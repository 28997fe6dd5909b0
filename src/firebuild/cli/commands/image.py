"""`firebuild image pull|push|save|load|import|export`: images in and out. The rest of `image` is in image_list."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from firebuild.cli.commands.image_list import diff, history, inspect, ls, prune, rm, tag
from firebuild.cli.output import note
from firebuild.cli.progress import open_meter
from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.names import parse_reference

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)


@click.group()
def image() -> None:
    """Images: what machines are started from, and what builds start from."""


for _command in (ls, inspect, history, diff, tag, rm, prune):
    image.add_command(_command)


def access_options(function: F) -> F:
    """--tls-verify and --authfile, as skopeo and podman have them."""
    function = click.option(
        "--tls-verify/--no-tls-verify", default=None,
        help="Whether the registry must have a good certificate. [default: yes, but on loopback]",
    )(function)  # fmt: skip
    return click.option("--authfile", type=_FILE, help="File of registry credentials.")(function)


def quiet_option(function: F) -> F:
    """-q: no progress."""
    return click.option("-q", "--quiet", is_flag=True, help="Show no progress.")(function)


def platform_option(function: F) -> F:
    """--platform."""
    return click.option("--platform", help="linux/ARCHITECTURE[/VARIANT]. [default: this host's]")(function)


@image.command()
@click.argument("source")
@click.argument("name", required=False)
@platform_option
@click.option("--disk", is_flag=True, help="Also take the bootable disk that stands beside the image.")
@click.option("--kernel", is_flag=True, help="Also take the kernel that stands beside the image.")
@access_options
@quiet_option
def pull(
    source: str,
    name: str | None,
    platform: str | None,
    disk: bool,
    kernel: bool,
    tls_verify: bool | None,
    authfile: Path | None,
    quiet: bool,
) -> None:
    """Bring an image from a registry, or from SOURCE: oci:PATH[:NAME], oci-archive:PATH, docker-archive:PATH[:NAME],
    docker-daemon:NAME. NAME is what it is called here, where SOURCE is no name itself."""
    from firebuild.engine.bootable import take_bootable
    from firebuild.engine.images import parse_wanted, pull_image
    from firebuild.images.skopeo import Access
    from firebuild.images.transfer import parse_place

    place, wanted = parse_place(source), parse_wanted(platform)
    reference = parse_reference(name) if name else None
    access = Access(tls_verify, authfile)
    if (disk or kernel) and place.reference is None:
        raise UsageError("a disk and a kernel come from a registry only")
    with Engine() as engine, open_meter(f"pulling {place}", quiet=quiet) as progress:
        stored = pull_image(engine, place, access=access, wanted=wanted, reference=reference, progress=progress)
        if place.reference is not None and (disk or kernel):
            take_bootable(
                engine, stored, place.reference, access=access, disk=disk, kernel=kernel, progress=progress, report=note
            )
    click.echo(stored.id)


@image.command()
@click.argument("name", metavar="IMAGE")
@click.argument("target", required=False)
@click.option(
    "--compression", type=click.Choice(["gzip", "keep"]), default="gzip", show_default=True,
    help="gzip writes zstd layers anew, so that every Docker can run them; keep keeps every digest.",
)  # fmt: skip
@click.option("--disk", is_flag=True, help="Also push the bootable disk, so that others need not make it.")
@click.option("--kernel", help="Also push the kernel of this name; `default`: the default one.")
@access_options
@quiet_option
def push(
    name: str,
    target: str | None,
    compression: Any,
    disk: bool,
    kernel: str | None,
    tls_verify: bool | None,
    authfile: Path | None,
    quiet: bool,
) -> None:
    """Write an image to its registry, or to TARGET: another name, oci:PATH[:NAME], oci-archive:PATH,
    docker-archive:PATH, docker-daemon:NAME. Prints the manifest's digest there."""
    from firebuild.engine.bootable import push_bootable
    from firebuild.images.skopeo import Access
    from firebuild.images.transfer import parse_place

    place = parse_place(target) if target else None
    chosen = "" if kernel == "default" else kernel
    with Engine() as engine, open_meter(f"pushing {target or name}", quiet=quiet) as progress:
        digest = push_bootable(
            engine, name, place, disk=disk, kernel=chosen, compression=compression,
            access=Access(tls_verify, authfile), progress=progress, report=note,
        )  # fmt: skip
    click.echo(digest)


@image.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("-o", "--output", default="-", help="The file to write; `-`: standard output.")
@click.option(
    "--format", "archive_format", type=click.Choice(["docker-archive", "oci-archive"]), default="docker-archive",
    show_default=True, help="docker-archive is for `docker load`; oci-archive keeps every digest.",
)  # fmt: skip
@quiet_option
def save(names: tuple[str, ...], output: str, archive_format: str, quiet: bool) -> None:
    """Write images to one archive."""
    from firebuild.engine.image_export import save_images

    target = open_output(output)
    with Engine() as engine, open_meter(f"saving {' '.join(names)}", quiet=quiet) as progress:
        save_images(engine, names, target, archive_format=archive_format, progress=progress)


@image.command()
@click.option("-i", "--input", "source", default="-", help="The archive; `-`: standard input.")
@platform_option
@quiet_option
def load(source: str, platform: str | None, quiet: bool) -> None:
    """Take in every image of an archive that `image save`, `docker save` or `podman save` wrote."""
    from firebuild.engine.images import find_image_names, load_images, parse_wanted

    file = open_input(source)
    with Engine() as engine, open_meter(f"loading {source}", quiet=quiet) as progress:
        images = load_images(engine, file, wanted=parse_wanted(platform), progress=progress)
        for stored in images:
            names = find_image_names(engine, stored)
            for name in names:
                click.echo(f"Loaded image: {name}")
            if not names:
                click.echo(f"Loaded image ID: {stored.id}")


@image.command("import")
@click.argument("source")
@click.argument("reference", required=False)
@click.option("-c", "--change", "changes", multiple=True, help="A Dockerfile instruction: CMD, ENV, USER …")
@click.option("-m", "--message", default="", help="A comment in the image's history.")
@platform_option
@quiet_option
def import_(
    source: str, reference: str | None, changes: tuple[str, ...], message: str, platform: str | None, quiet: bool
) -> None:
    """Make an image of a root file system: a tar archive (plain, gzip, xz, zstd or bzip2) from a file, a URL, or `-`."""
    from firebuild.engine.images import import_image, is_url, parse_wanted

    name = parse_reference(reference) if reference else None
    tree: Path | BinaryIO | str = source if is_url(source) else open_input(source)
    with Engine() as engine, open_meter(f"importing {source}", quiet=quiet) as progress:
        stored = import_image(
            engine, tree, name, changes=changes, message=message, wanted=parse_wanted(platform), progress=progress
        )
    click.echo(stored.id)


@image.command()
@click.argument("reference", metavar="IMAGE")
@click.option("-o", "--output", default="-", help="The tar file to write; `-`: standard output.")
@quiet_option
def export(reference: str, output: str, quiet: bool) -> None:
    """Write an image's whole file tree as a tar."""
    from firebuild.engine.image_export import export_image

    target = open_output(output)
    with Engine() as engine, open_meter(f"exporting {reference}", quiet=quiet) as progress:
        entries = export_image(engine, reference, target, progress=progress, report=note)
    note(f"{entries} entries written" + (f" to {output}" if output != "-" else ""))


def open_output(text: str) -> Path | BinaryIO:
    """The file of that name, or standard output. Raises UsageError where that is a terminal."""
    if text != "-":
        return Path(text)
    if sys.stdout.isatty():
        raise UsageError("an archive is not written to a terminal", hint="use -o FILE, or send the output to a program")
    return sys.stdout.buffer


def open_input(text: str) -> Path | BinaryIO:
    """The file of that name, or standard input. Raises UsageError where that is a terminal."""
    if text != "-":
        return Path(text)
    if sys.stdin.isatty():
        raise UsageError("no archive comes from a terminal", hint="use -i FILE, or send a file to standard input")
    return sys.stdin.buffer
