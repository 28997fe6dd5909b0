"""`firebuild events`: what happens to machines, images, snapshots and builds."""

from __future__ import annotations

import datetime
import shlex
from typing import TYPE_CHECKING, Any

import click
import msgspec

from firebuild.cli.filters import parse_filters
from firebuild.cli.template import check_template, is_template, render_template
from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.machine.logs import parse_moment

if TYPE_CHECKING:
    from firebuild.events.journal import Event

_FIELDS = ("Time", "TimeNano", "Type", "Action", "ID", "Attributes", "Labels")


@click.command()
@click.option(
    "--since", help="From when on: an RFC 3339 time, Unix seconds, or an age such as 10m or 1h30m. Without it from now."
)
@click.option("--until", help="Until when, written the same way; `0s` is now. Without it until Ctrl-C.")
@click.option("-f", "--filter", "filters", multiple=True, help="type=, event=, machine=, image=, label=.")
@click.option("--format", "format_name", default="table", show_default=True,
              help="table, json (one object a line), or a template: {{.Action}}.")  # fmt: skip
def events(since: str | None, until: str | None, filters: tuple[str, ...], format_name: str) -> None:
    """Show what happens, as it happens. The newest 10000 events are kept."""
    from firebuild.engine.events import FILTERS, follow_events

    if is_template(format_name):
        check_template(format_name, _FIELDS)
    elif format_name not in ("table", "json"):
        raise UsageError(f"`{format_name}` is not an output format", hint="choose table, json or a template: {{.Key}}")
    wanted = parse_filters(filters, FILTERS)
    begin, end = _parse_time(since, "--since"), _parse_time(until, "--until")
    with Engine() as engine:
        for event in follow_events(engine, wanted, since_ns=begin, until_ns=end):
            click.echo(_show(event, format_name))


def _parse_time(text: str | None, flag: str) -> int | None:
    if text is None:
        return None
    try:
        moment = parse_moment(text, datetime.datetime.now(datetime.UTC))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"`{text}` is not a time for {flag}", hint="write 10m, 1h30m, or an RFC 3339 time") from error
    return int(moment.timestamp() * 10**6) * 1000


def _show(event: Event, format_name: str) -> str:
    moment = datetime.datetime.fromtimestamp(event.at_ns // 10**9, tz=datetime.UTC)
    shown = f"{moment:%Y-%m-%dT%H:%M:%S}.{event.at_ns % 10**9:09}Z"
    if format_name == "json":
        document: dict[str, Any] = {
            "time": shown, "time_ns": event.at_ns, "type": event.type, "action": event.action, "id": event.object,
            "attributes": event.attributes, "labels": event.labels,
        }  # fmt: skip
        return msgspec.json.encode(document).decode()
    if format_name == "table":
        pairs = [f"{key}={_quoted(value)}" for key, value in event.attributes.items()]
        return f"{shown} {event.type} {event.action} {event.object} ({', '.join(pairs)})"
    values = (shown, event.at_ns, event.type, event.action, event.object, event.attributes, event.labels)
    return render_template(format_name, dict(zip(_FIELDS, values, strict=True)))


def _quoted(value: str) -> str:
    """Text that ends where it seems to, without control characters."""
    clean = "".join(c if c.isprintable() else "?" for c in value)
    return shlex.quote(clean) if " " in clean else clean
