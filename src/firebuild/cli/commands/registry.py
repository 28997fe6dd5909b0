"""`firebuild login|logout`: registries' credentials, kept where skopeo, podman and buildah keep them."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

import click

from firebuild.cli.commands.image import access_options
from firebuild.cli.output import note
from firebuild.errors import UsageError

_PASSWORD_MAX = 64 << 10


@click.command()
@click.argument("registry")
@click.option("-u", "--username", help="The user; asked for without it.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@access_options
def login(
    registry: str, username: str | None, password_stdin: bool, tls_verify: bool | None, authfile: Path | None
) -> None:
    """Log in to a registry. The password is asked for, or comes from standard input; never from the command line."""
    from firebuild.images.skopeo import Access
    from firebuild.images.skopeo import login as log_in

    if password_stdin:
        if username is None:
            raise UsageError("--password-stdin needs --username")
        password = sys.stdin.buffer.read(_PASSWORD_MAX).rstrip(b"\r\n")
    else:
        if not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask for the password on", hint="use --password-stdin")
        username = username or click.prompt("Username", err=True)
        password = getpass.getpass("Password: ").encode()
    if not password:
        raise UsageError("the password is empty")
    assert username is not None
    log_in(registry, username, password, Access(tls_verify, authfile))
    note(f"logged in to {registry}")


@click.command()
@click.argument("registry", required=False)
@click.option("-a", "--all", "everything", is_flag=True, help="Forget the credentials of all registries.")
@click.option("--authfile", type=click.Path(path_type=Path), help="File of registry credentials.")
def logout(registry: str | None, everything: bool, authfile: Path | None) -> None:
    """Forget a registry's credentials."""
    from firebuild.images.skopeo import Access
    from firebuild.images.skopeo import logout as log_out

    if (registry is None) != everything:
        raise UsageError("name one registry, or use --all")
    log_out(registry, Access(None, authfile))
    note(f"logged out of {registry or 'all registries'}")
