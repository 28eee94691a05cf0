"""`recollect audit` and `recollect drain`."""

from __future__ import annotations

from typing import Annotated

import typer

from recollect_server.admin.cli.api import Api
from recollect_server.admin.cli.options import speaks
from recollect_server.admin.cli.tables import show_many
from recollect_server.admin.cli.tenants import path_of

COLUMNS = ("number", "at_ms", "actor", "source", "action", "tenant", "target", "details")


@speaks
def audit(
    api: Api,
    tenant: Annotated[
        str | None, typer.Option(help="Whom it concerns.", show_default="all, for operators")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many entries.")] = 50,
) -> None:
    """Show who did what, when, from where; the newest first."""
    path = "/api/v1/audit" if tenant is None else f"{path_of(tenant)}/audit"
    show_many(api, api.items(path, at_most=limit), COLUMNS)


@speaks
def drain(api: Api) -> None:
    """Have the server finish what it has, take nothing new, and end."""
    api.call("POST", "/api/v1/server:drain")
    typer.echo("draining", err=True)
