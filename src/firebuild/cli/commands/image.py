"""`firebuild image pull|import|export|ls|inspect|tag|rm`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from firebuild.cli.options import format_option
from firebuild.cli.output import format_size, note, print_json, print_rows
from firebuild.engine.core import Engine
from firebuild.names import parse_reference


@click.group()
def image() -> None:
    """Images: what machines are started from, and what builds start from."""


@image.command()
@click.argument("reference")
@click.option(
    "--tls-verify/--no-tls-verify",
    default=None,
    help="Whether the registry must have a good certificate. [default: yes, but on loopback]",
)
@click.option("--authfile", type=click.Path(path_type=Path), help="File of registry credentials.")
def pull(reference: str, tls_verify: bool | None, authfile: Path | None) -> None:
    """Pull an image from a registry."""
    from firebuild.engine.images import pull_image

    with Engine() as engine:
        stored = pull_image(engine, parse_reference(reference), tls_verify=tls_verify, authfile=authfile, report=note)
    click.echo(stored.id)


@image.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("reference")
def import_(file: Path, reference: str) -> None:
    """Take in a root file system from a tar archive (plain, gzip, xz or zstd)."""
    from firebuild.engine.images import import_image

    with Engine() as engine:
        stored = import_image(engine, file, parse_reference(reference))
    click.echo(stored.id)


@image.command()
@click.argument("reference")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The tar file to write.")
def export(reference: str, output: Path) -> None:
    """Write an image's whole file tree as a tar."""
    from firebuild.engine.images import export_image

    with Engine() as engine:
        entries = export_image(engine, reference, output)
    note(f"{entries} entries written to {output}")


@image.command()
@click.option("-q", "--quiet", is_flag=True, help="Print image ids only.")
@format_option
def ls(quiet: bool, format_name: str) -> None:
    """List images."""
    with Engine() as engine:
        images = engine.images.list_images(on_damage=lambda name, error: note(f"warning: {name}: {error}"))
    if quiet:
        for item in images:
            click.echo(item.id)
        return
    names = [parse_reference(item.reference).familiar if item.reference else "<none>" for item in images]
    rows = [
        [name, item.id.removeprefix("sha256:")[:12], item.created or "-", format_size(item.size)]
        for name, item in zip(names, images, strict=True)
    ]
    objects = [
        {"reference": name, "id": item.id, "digest": item.manifest_digest, "created": item.created, "size": item.size}
        for name, item in zip(names, images, strict=True)
    ]
    print_rows(format_name, ["REFERENCE", "ID", "CREATED", "SIZE"], rows, objects)


@image.command()
@click.argument("reference")
def inspect(reference: str) -> None:
    """Show an image as JSON; its OCI configuration stands under `Config`."""
    with Engine() as engine:
        stored = engine.images.get_named(reference)
    config = msgspec.to_builtins(stored.config)
    print_json(
        [
            {
                "Id": stored.id,
                "Digest": stored.manifest_digest,
                "RepoTags": [parse_reference(stored.reference).familiar] if stored.reference else [],
                "Created": stored.created,
                "Architecture": stored.config.architecture,
                "Os": stored.config.os,
                "Size": stored.size,
                "Config": config.get("config", {}),
                "RootFS": {"Type": "layers", "Layers": list(stored.config.rootfs.diff_ids)},
                "History": config.get("history", []),
            }
        ]
    )


@image.command()
@click.argument("source")
@click.argument("target")
def tag(source: str, target: str) -> None:
    """Give an image one more reference."""
    with Engine() as engine:
        stored = engine.images.get_named(source)
        engine.images.tag(parse_reference(target), stored.manifest_digest)


@image.command()
@click.argument("references", nargs=-1, required=True)
def rm(references: tuple[str, ...]) -> None:
    """Remove references to images."""
    from firebuild.engine.images import remove_image

    with Engine() as engine:
        for text in references:
            remove_image(engine, parse_reference(text))
            click.echo(text)
