"""`recollect namespaces`."""

from __future__ import annotations

from typing import Annotated, cast
from urllib.parse import quote

import typer

from recollect_server.admin.cli.api import EXIT_USAGE, Api, Json, fail
from recollect_server.admin.cli.options import require_amount, speaks
from recollect_server.admin.cli.tables import show_many, show_one
from recollect_server.admin.cli.tenants import confirm, path_of

app = typer.Typer(help="Namespaces of a tenant.", no_args_is_help=True)

SPEC = ("layers", "heads", "key_dim", "value_dim", "capacity", "dtype", "value_dtype", "index", "recall")
COLUMNS = ("name", *SPEC, "created_at_ms")

Tenant = Annotated[str, typer.Argument(help="Whose it is.")]
Name = Annotated[str, typer.Argument(help="Of the namespace.", metavar="NAMESPACE")]


@app.command("list")
@speaks
def list_namespaces(api: Api, tenant: Tenant) -> None:
    """List a tenant's namespaces."""
    items = api.items(f"{path_of(tenant)}/namespaces")
    if not api.as_json:
        items = [{**item, **cast("Json", item["spec"])} for item in items]
    show_many(api, items, COLUMNS)


@app.command("get")
@speaks
def get_namespace(api: Api, tenant: Tenant, name: Name) -> None:
    """Describe a namespace."""
    show_one(api, api.call("GET", _path(tenant, name)))


@app.command("stats")
@speaks
def stats_of_namespace(api: Api, tenant: Tenant, name: Name) -> None:
    """Show what a namespace holds on the server that answers."""
    show_one(api, api.call("GET", f"{_path(tenant, name)}/stats"))


@app.command("evict")
@speaks
def evict_entries(
    api: Api,
    tenant: Tenant,
    name: Name,
    *,
    oldest: Annotated[int | None, typer.Option(min=0, help="So many, the oldest first.")] = None,
    before_sequence: Annotated[int | None, typer.Option(min=0, help="All with a smaller id.")] = None,
    older_than_s: Annotated[float | None, typer.Option(help="All that are older.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All; streams are forgotten.")] = False,
    stream: Annotated[
        list[str] | None, typer.Option(help="May be given more than once.", show_default="all streams")
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="May be given more than once.", show_default="all layers")
    ] = None,
) -> None:
    """Remove entries, of each stream and layer."""
    require_amount("--older-than-s", older_than_s)
    selectors: list[Json] = []
    if oldest is not None:
        selectors.append({"kind": "oldest", "entries": oldest})
    if before_sequence is not None:
        selectors.append({"kind": "before_sequence", "sequence": before_sequence})
    if older_than_s is not None:
        selectors.append({"kind": "older_than", "age_s": older_than_s})
    if everything:
        selectors.append({"kind": "all"})
    if len(selectors) != 1:
        fail("give one of --oldest, --before-sequence, --older-than-s, --all", status=EXIT_USAGE)
    body = {"selector": selectors[0], "streams": stream or None, "layers": layer or []}
    show_one(api, api.call("POST", f"{_path(tenant, name)}:evict", body=body))


@app.command("delete")
@speaks
def delete_namespace(
    api: Api,
    tenant: Tenant,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a namespace and all that it holds."""
    confirm(f"Delete namespace {name!r} of tenant {tenant!r} with all that it holds?", yes=yes)
    api.call("DELETE", _path(tenant, name))


def _path(tenant: str, name: str) -> str:
    return f"{path_of(tenant)}/namespaces/{quote(name, safe='')}"
