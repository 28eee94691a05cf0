"""`recollect audit`, `recollect configuration` and `recollect drain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, cast

import typer

from recollect_server.admin.cli.api import Api, Json
from recollect_server.admin.cli.options import speaks
from recollect_server.admin.cli.tables import show_many, show_one
from recollect_server.admin.cli.tenants import path_of

AUDIT = "/api/v1/audit"
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
    path, params = AUDIT, {} if tenant is None else {"tenant": tenant}
    if tenant is not None and api.is_denied(AUDIT):
        # For a tenant's administrators. Not for operators: a tenant that was deleted has no log there.
        path, params = f"{path_of(tenant)}/audit", {}
    show_many(api, api.items(path, at_most=limit, params=params), COLUMNS)


@speaks
def configuration(api: Api) -> None:
    """Show the settings that a server runs with; secrets are hidden."""
    settings = cast("Json", api.call("GET", "/api/v1/server/configuration")["settings"])
    if api.as_json:
        show_one(api, settings)
    else:
        show_many(
            api, [{"setting": name, "value": value} for name, value in _flat(settings)], ("setting", "value")
        )


@speaks
def drain(api: Api) -> None:
    """Have the server finish what it has, take nothing new, and end."""
    api.call("POST", "/api/v1/server:drain")
    typer.echo("draining", err=True)


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Settings by the names that the server's own messages have for them, as tls.cert_file."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
