"""`firebuild doctor`: what this host offers, what was chosen, and how to mend what is missing."""

from __future__ import annotations

import click

from firebuild.cli.output import print_json
from firebuild.engine.core import Engine


@click.command()
@click.option("--format", "format_name", default="text", show_default=True, help="text or json.")
@click.option(
    "--production",
    is_flag=True,
    help="Also measure each item of Firecracker's guide for hosts of strangers' guests; exit status 1 if one is not as it says.",
)
def doctor(format_name: str, production: bool) -> int:
    """Show what this host offers and how to mend what is missing. Exit status 1 if something needed is missing."""
    from firebuild.engine.doctor import examine_host

    with Engine() as engine:
        report = examine_host(engine, production=production)
    if format_name == "json":
        print_json(report)
    else:
        for check in report.checks:
            mark = {"ok": "ok     ", "missing": "MISSING", "warning": "warning", "unfit": "UNFIT  "}[check.status]
            click.echo(f"{mark}  {check.name}: {check.found}")
            if check.mend:
                click.echo(f"         mend: {check.mend}")
        click.echo(f"chosen   {report.chosen}")
    return 0 if report.fit else 1
