"""Keys of tenants, and of operators. A token is in the answer to whoever made the key, and nowhere else."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Response

from recollect_server.admin.access import OPERATOR, TENANT_ADMIN
from recollect_server.admin.route import SHOWS_TOKEN_ONCE, router
from recollect_server.admin.routes.parts import By, KeyId, Pages, Paging, Services, TenantName
from recollect_server.admin.schemas import (
    IssuedKeyView,
    IssueKey,
    IssueOperatorKey,
    KeyPage,
    KeyView,
    RotateKey,
)
from recollect_server.admin.services import AdminServices
from recollect_server.application.keys import IssuedKey

routes = router("keys")
KEYS = "/api/v1/tenants/{tenant}/keys"
OPERATOR_KEYS = "/api/v1/operator-keys"

Rotation = Annotated[RotateKey | None, Body()]


@routes.get(KEYS, dependencies=[TENANT_ADMIN], operation_id="listKeys")
async def list_keys(tenant: TenantName, services: Services, pages: Pages) -> KeyPage:
    """Lists a tenant's keys by id; also expired and revoked ones."""
    return await _page(services, tenant, pages)


@routes.post(
    KEYS,
    dependencies=[TENANT_ADMIN],
    operation_id="issueKey",
    status_code=201,
    openapi_extra=SHOWS_TOKEN_ONCE,
)
async def issue_key(tenant: TenantName, body: IssueKey, services: Services, by: By) -> IssuedKeyView:
    """Makes a key. Its token is shown this once."""
    issued = await services.keys.issue(
        tenant, scopes=frozenset(body.scopes), label=body.label, lifetime_s=body.lifetime_s, origin=by
    )
    return _shown(services, issued)


@routes.post(
    f"{KEYS}/{{key_id}}:rotate",
    dependencies=[TENANT_ADMIN],
    operation_id="rotateKey",
    status_code=201,
    openapi_extra=SHOWS_TOKEN_ONCE,
)
async def rotate_key(
    tenant: TenantName, key_id: KeyId, services: Services, by: By, body: Rotation = None
) -> IssuedKeyView:
    """Makes a key like an old one, which is refused after the overlap."""
    overlap_s = (body or RotateKey()).overlap_s
    return _shown(services, await services.keys.rotate(tenant, key_id, overlap_s=overlap_s, origin=by))


@routes.delete(
    f"{KEYS}/{{key_id}}",
    dependencies=[TENANT_ADMIN],
    operation_id="revokeKey",
    status_code=204,
    response_class=Response,
)
async def revoke_key(tenant: TenantName, key_id: KeyId, services: Services, by: By) -> None:
    """Has a key refused from now on: here at once, on other servers within a second. It stays in the list."""
    await services.keys.revoke(tenant, key_id, origin=by)


@routes.get(OPERATOR_KEYS, dependencies=[OPERATOR], operation_id="listOperatorKeys")
async def list_operator_keys(services: Services, pages: Pages) -> KeyPage:
    """Lists the operators' keys by id; also expired and revoked ones."""
    return await _page(services, None, pages)


@routes.post(
    OPERATOR_KEYS,
    dependencies=[OPERATOR],
    operation_id="issueOperatorKey",
    status_code=201,
    openapi_extra=SHOWS_TOKEN_ONCE,
)
async def issue_operator_key(body: IssueOperatorKey, services: Services, by: By) -> IssuedKeyView:
    """Makes an operator's key. Its token is shown this once."""
    issued = await services.keys.issue(
        None, scopes=frozenset(), label=body.label, lifetime_s=body.lifetime_s, origin=by
    )
    return _shown(services, issued)


@routes.post(
    f"{OPERATOR_KEYS}/{{key_id}}:rotate",
    dependencies=[OPERATOR],
    operation_id="rotateOperatorKey",
    status_code=201,
    openapi_extra=SHOWS_TOKEN_ONCE,
)
async def rotate_operator_key(
    key_id: KeyId, services: Services, by: By, body: Rotation = None
) -> IssuedKeyView:
    """Makes a key like an old one, which is refused after the overlap."""
    overlap_s = (body or RotateKey()).overlap_s
    return _shown(services, await services.keys.rotate(None, key_id, overlap_s=overlap_s, origin=by))


@routes.delete(
    f"{OPERATOR_KEYS}/{{key_id}}",
    dependencies=[OPERATOR],
    operation_id="revokeOperatorKey",
    status_code=204,
    response_class=Response,
)
async def revoke_operator_key(key_id: KeyId, services: Services, by: By) -> None:
    """Has a key refused from now on; also the one that is used here."""
    await services.keys.revoke(None, key_id, origin=by)


async def _page(services: AdminServices, tenant: str | None, pages: Paging) -> KeyPage:
    what = f"keys/{tenant or ''}"
    found = await services.keys.list(tenant, after=pages.after(what), limit=pages.size + 1)
    page = found[: pages.size]
    last = page[-1].key_id if len(found) > pages.size else ""
    now_ms = int(services.clock() * 1000)
    return KeyPage(
        items=[KeyView.of(key, now_ms=now_ms) for key in page], next_page_token=pages.next_token(what, last)
    )


def _shown(services: AdminServices, issued: IssuedKey) -> IssuedKeyView:
    now_ms = int(services.clock() * 1000)
    return IssuedKeyView(key=KeyView.of(issued.key, now_ms=now_ms), token=issued.token)
