"""`recollect keys`."""

from __future__ import annotations

from typing import Annotated, cast
from urllib.parse import quote

import typer

from recollect_server.admin.cli.api import EXIT_USAGE, Api, Json, fail
from recollect_server.admin.cli.options import require_amount, speaks
from recollect_server.admin.cli.tables import show_many, show_one
from recollect_server.admin.cli.tenants import path_of
from recollect_server.domain.identity import Scope

app = typer.Typer(help="API keys of tenants and of operators.", no_args_is_help=True)

COLUMNS = ("key_id", "scopes", "state", "label", "created_at_ms", "expires_at_ms", "last_used_at_ms")
DAY_S = 86_400

Owner = Annotated[str | None, typer.Argument(help="Whose keys; left out with --operator.", metavar="TENANT")]
OfOperators = Annotated[bool, typer.Option("--operator", help="The operators' keys, not a tenant's.")]
KeyIdOption = Annotated[str, typer.Option("--key-id", help="As `recollect keys list` shows it.")]


@app.command("list")
@speaks
def list_keys(api: Api, tenant: Owner = None, operator: OfOperators = False) -> None:
    """List keys; also expired and revoked ones."""
    show_many(api, api.items(_path(tenant, operator=operator)), COLUMNS)


@app.command("issue")
@speaks
def issue_key(
    api: Api,
    tenant: Owner = None,
    *,
    operator: OfOperators = False,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What the key allows; may be given more than once.")
    ] = None,
    label: Annotated[str, typer.Option(help="For people.")] = "",
    lifetime_days: Annotated[
        float | None, typer.Option(help="After which it is refused.", show_default="never")
    ] = None,
) -> None:
    """Make a key, and print its token: this once."""
    require_amount("--lifetime-days", lifetime_days)
    if operator == bool(scope):
        fail("give --scope for a tenant's key, and none for an operator's", status=EXIT_USAGE)
    body: Json = {"label": label}
    if scope:
        body["scopes"] = [each.value for each in scope]
    if lifetime_days is not None:
        body["lifetime_s"] = round(lifetime_days * DAY_S)
    _show_issued(api, api.call("POST", _path(tenant, operator=operator), body=body))


@app.command("rotate")
@speaks
def rotate_key(
    api: Api,
    key_id: KeyIdOption,
    tenant: Owner = None,
    operator: OfOperators = False,
    overlap_s: Annotated[int, typer.Option(min=0, help="How long the old key goes on.")] = 3600,
) -> None:
    """Make a key like an old one, which is refused after the overlap; print the new token: this once."""
    path = f"{_path(tenant, operator=operator)}/{quote(key_id, safe='')}:rotate"
    _show_issued(api, api.call("POST", path, body={"overlap_s": overlap_s}))


@app.command("revoke")
@speaks
def revoke_key(api: Api, key_id: KeyIdOption, tenant: Owner = None, operator: OfOperators = False) -> None:
    """Refuse a key from now on."""
    api.call("DELETE", f"{_path(tenant, operator=operator)}/{quote(key_id, safe='')}")


def _path(tenant: str | None, *, operator: bool) -> str:
    if operator == (tenant is not None):
        fail("say whose keys: a tenant, or --operator", status=EXIT_USAGE)
    return "/api/v1/operator-keys" if tenant is None else f"{path_of(tenant)}/keys"


def _show_issued(api: Api, issued: Json) -> None:
    if api.as_json:
        show_one(api, issued)
        return
    # The token alone goes to stdout, so that it can be sent to a file without passing a screen.
    key = cast("Json", issued["key"])
    typer.echo(f"key {key['key_id']}; its token is shown this once:", err=True)
    typer.echo(str(issued["token"]))
