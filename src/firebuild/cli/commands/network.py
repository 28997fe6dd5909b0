"""`firebuild network create|ls|inspect|rm|prune`."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from firebuild.cli.filters import parse_filters
from firebuild.cli.options import format_option
from firebuild.cli.output import print_error, print_rows
from firebuild.cli.several import each_object
from firebuild.engine.core import Engine

_FILTER_KEYS = ("name", "label", "origin")


@click.group()
def network() -> None:
    """Networks that machines are in."""


@network.command()
@click.argument("name")
@click.option("--subnet", "subnets", multiple=True, help="Its subnet, and one of IPv6; without it one that is free.")
@click.option("--gateway", "gateways", multiple=True, help="The host's address in a subnet; without it the first.")
@click.option("--ipv6", is_flag=True, help="An IPv6 subnet too, chosen where --subnet names none.")
@click.option("--internal", is_flag=True, help="No way out of the network.")
@click.option("--isolated", is_flag=True, help="Its machines cannot reach each other.")
@click.option(
    "--allow", multiple=True, help="What its machines may reach beside: host, networks, metadata, spoofing, a range."
)
@click.option("--label", "labels", multiple=True, help="Label K=V.")
def create(name: str, labels: tuple[str, ...], **options: Any) -> None:
    """Make a network: a bridge with NAT. Prints its name."""
    from firebuild.engine.networks import create as create_network
    from firebuild.network.own import NetworkRequest

    pairs = dict(label.partition("=")[::2] for label in labels)
    with Engine() as engine:
        made = create_network(engine, NetworkRequest(name=name, labels=pairs, **options))
    click.echo(made.name)


@network.command()
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those with name, label or origin.")
@format_option
def ls(quiet: bool, filters: tuple[str, ...], format_name: str) -> None:
    """List networks. ORIGIN: shipped, created by `network create`, or yours (a file in --cni-conf-dir)."""
    from firebuild.engine.networks import view_networks

    wanted = parse_filters(filters, _FILTER_KEYS)
    with Engine() as engine:
        views = [view for view in view_networks(engine) if _fits(view, wanted)]
    if quiet:
        for view in views:
            click.echo(view.network.name)
        return
    rows = [
        [view.network.name, view.origin, ", ".join(view.network.subnets) or "-", view.network.bridge or "-",
         _flags(view), str(len(view.machines))]
        for view in views
    ]  # fmt: skip
    objects = [
        {
            "name": view.network.name, "origin": view.origin, "subnets": view.network.subnets, "bridge": view.network.bridge,
            "internal": view.network.options.internal, "isolated": view.network.options.isolated,
            "labels": dict(view.network.options.labels), "machines": view.machines,
        }
        for view in views
    ]  # fmt: skip
    print_rows(format_name, ["NAME", "ORIGIN", "SUBNETS", "BRIDGE", "OPTIONS", "MACHINES"], rows, objects)


def _flags(view: Any) -> str:
    options = view.network.options
    found = [name for name, given in (("internal", options.internal), ("isolated", options.isolated)) if given]
    return ",".join(found) or "-"


def _fits(view: Any, wanted: dict[str, list[str]]) -> bool:
    def has_label(text: str) -> bool:
        key, equals, value = text.partition("=")
        labels = view.network.options.labels
        return key in labels and (not equals or labels[key] == value)

    tests = {
        "name": lambda text: text in view.network.name,
        "origin": lambda text: text == view.origin,
        "label": has_label,
    }
    return all(any(tests[key](text) for text in texts) for key, texts in wanted.items())


@network.command()
@click.argument("names", nargs=-1, required=True)
def inspect(names: tuple[str, ...]) -> int:
    """Show everything about networks, as one JSON document each."""
    from firebuild.engine.networks import describe_network

    def show(engine: Engine, name: str) -> str:
        return msgspec.json.format(msgspec.json.encode(describe_network(engine, name)), indent=2).decode()

    return each_object(names, show)


@network.command()
@click.argument("names", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> int:
    """Remove networks that `network create` made and that no machine is in at the moment."""
    from firebuild.engine.networks import remove

    def remove_one(engine: Engine, name: str) -> str:
        remove(engine, name)
        return name

    return each_object(names, remove_one)


@network.command()
def prune() -> int:
    """Remove all networks that `network create` made and that no machine, running or not, is to be in."""
    from firebuild.engine.networks import prune as prune_networks

    with Engine() as engine:
        removed, failures = prune_networks(engine)
    for name in removed:
        click.echo(name)
    for error in failures:
        print_error(error)
    return 1 if failures else 0
