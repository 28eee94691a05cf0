"""`recollect tenants`."""

from __future__ import annotations

import re
from typing import Annotated, cast
from urllib.parse import quote

import typer

from recollect_server.admin.cli.api import EXIT_USAGE, Api, Json, fail
from recollect_server.admin.cli.options import speaks
from recollect_server.admin.cli.tables import show_many, show_one
from recollect_server.domain.tenants import Quotas

app = typer.Typer(help="Tenants and their quotas, for operators.", no_args_is_help=True)

TENANTS = "/api/v1/tenants"
COLUMNS = ("name", "disabled", "revision", "created_at_ms", "bytes_max", "entries_max", "weight")
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
QUOTA_PATTERN = re.compile(r"(\w+)=([0-9]{1,16})(KiB|MiB|GiB|TiB|)")

Name = Annotated[str, typer.Argument(help="Of the tenant.", metavar="TENANT")]
QuotaOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--quota",
        help="As bytes_max=8GiB or weight=2; may be given more than once.",
        autocompletion=lambda: [f"{name}=" for name in Quotas.__slots__],
    ),
]


def path_of(tenant: str) -> str:
    """Of a tenant, encoded."""
    return f"{TENANTS}/{quote(tenant, safe='')}"


@app.command("list")
@speaks
def list_tenants(api: Api) -> None:
    """List the tenants."""
    items = api.items(TENANTS)
    if not api.as_json:
        items = [{**cast("Json", item["quotas"]), **item} for item in items]
    show_many(api, items, COLUMNS)


@app.command("create")
@speaks
def create_tenant(api: Api, name: Name, quota: QuotaOptions = None) -> None:
    """Make a tenant; quotas that are not named are the defaults."""
    show_one(api, api.call("POST", TENANTS, body={"name": name, "quotas": _quotas(quota)}))


@app.command("get")
@speaks
def get_tenant(api: Api, name: Name) -> None:
    """Describe a tenant."""
    show_one(api, api.call("GET", path_of(name)))


@app.command("quotas")
@speaks
def quotas_of_tenant(api: Api, name: Name, quota: QuotaOptions = None) -> None:
    """Show a tenant's quotas, or change those that are named."""
    path = f"{path_of(name)}/quotas"
    quotas, etag = api.call_with_etag(path)
    if quota:
        quotas = api.call("PUT", path, body={**quotas, **_quotas(quota)}, if_match=etag)
    show_one(api, quotas)


@app.command("disable")
@speaks
def disable_tenant(api: Api, name: Name) -> None:
    """Refuse a tenant's keys; what it stored stays."""
    show_one(api, api.call("PATCH", path_of(name), body={"disabled": True}))


@app.command("enable")
@speaks
def enable_tenant(api: Api, name: Name) -> None:
    """Take a disabled tenant's keys again."""
    show_one(api, api.call("PATCH", path_of(name), body={"disabled": False}))


@app.command("delete")
@speaks
def delete_tenant(
    api: Api, name: Name, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Delete a tenant with its keys, its namespaces and all that they hold."""
    confirm(f"Delete tenant {name!r} with all that it stored?", yes=yes)
    api.call("DELETE", path_of(name))


def confirm(question: str, *, yes: bool) -> None:
    """Asks before something is lost; ends the command on no."""
    if not yes:
        typer.confirm(question, abort=True, err=True)


def _quotas(options: list[str] | None) -> dict[str, int]:
    quotas = {}
    for option in options or ():
        match = QUOTA_PATTERN.fullmatch(option)
        if match is None or match[1] not in Quotas.__slots__:
            fail(
                f"--quota {option!r}: use one of {', '.join(Quotas.__slots__)}, then = and a number; KiB, "
                "MiB, GiB or TiB may follow it",
                status=EXIT_USAGE,
            )
        quotas[match[1]] = int(match[2]) * UNITS[match[3]]
    return quotas
