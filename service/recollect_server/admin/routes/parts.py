"""Parts that routes have in common: services, names in the path, pages, revisions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Header, Path, Query, Request

from recollect_server.admin.access import authenticated
from recollect_server.admin.current import services_of
from recollect_server.admin.schemas import KEY_ID_EXAMPLE, TENANT_EXAMPLE
from recollect_server.admin.services import AdminServices
from recollect_server.application import cursors
from recollect_server.application.keys import no_key
from recollect_server.application.tenants import no_tenant
from recollect_server.domain.audit import Origin, origin_of
from recollect_server.domain.errors import (
    InvalidArgumentError,
    NamespaceNotFoundError,
    RevisionConflictError,
)
from recollect_server.domain.identity import Operator
from recollect_server.domain.spec import NAME_PATTERN
from recollect_server.domain.tenants import TENANT_PATTERN

PAGE_SIZE_MAX = 1000
KEY_ID_PATTERN = re.compile(r"[0-9a-f]{16}")
ETAG_PATTERN = re.compile(r'"([0-9]{1,15})"')

Services = Annotated[AdminServices, Depends(services_of)]


async def _origin(request: Request) -> Origin:
    source = request.client.host if request.client else ""
    return origin_of(await authenticated(request), source)


By = Annotated[Origin, Depends(_origin)]
"""Who asks for the change, for the audit log."""


def _tenant_name(tenant: Annotated[str, Path(examples=[TENANT_EXAMPLE])]) -> str:
    # What cannot be a name is not looked for: it means nothing to a registry that builds keys of it.
    if not TENANT_PATTERN.fullmatch(tenant):
        raise no_tenant(tenant)
    return tenant


def _key_id(key_id: Annotated[str, Path(examples=[KEY_ID_EXAMPLE])]) -> str:
    if not KEY_ID_PATTERN.fullmatch(key_id):
        raise no_key(key_id)
    return key_id


def _namespace_name(
    services: Services,
    namespace: Annotated[
        str,
        Path(
            examples=["run-7"], description="one segment of the path: a slash in the name is written as %2F"
        ),
    ],
) -> str:
    name = unquote(namespace)  # the gate left slashes and % encoded
    if not NAME_PATTERN.fullmatch(name) or len(name) > services.limits.name_length_max:
        raise NamespaceNotFoundError(f"there is no namespace {name!r}; create it first", argument="namespace")
    return name


TenantName = Annotated[str, Depends(_tenant_name)]
KeyId = Annotated[str, Depends(_key_id)]
NamespaceName = Annotated[str, Depends(_namespace_name)]


@dataclass(frozen=True, slots=True)
class Paging:
    """What a caller asks of a list.

    Attributes:
        size: Items of a page, at most.
        page_token: Of the page before, or "".
        reader: Who reads: tokens of one tenant mean nothing to another.
    """

    size: int
    page_token: str
    reader: str

    def after(self, what: str) -> str:
        """Where the page begins.

        Args:
            what: Which list it is.

        Raises:
            InvalidArgumentError: The token is not one of this list and reader.
        """
        return cursors.position(self.page_token, f"{self.reader}/{what}")

    def next_token(self, what: str, last: str) -> str:
        """The token for what follows `last`; "" for "", which is the end."""
        return cursors.token(last, f"{self.reader}/{what}")

    def before_number(self, what: str) -> int:
        """The same as `after` where the places are numbers; 0 for the first page."""
        place = self.after(what)
        if place and not (place.isascii() and place.isdecimal() and len(place) <= 18):
            raise InvalidArgumentError("page_token", "is not one of this list's")
        return int(place or 0)


async def _paging(
    request: Request,
    services: Services,
    page_size: Annotated[
        int | None, Query(ge=1, le=PAGE_SIZE_MAX, description="the server may give fewer")
    ] = None,
    page_token: Annotated[str, Query(max_length=2048, description="next_page_token of the page before")] = "",
) -> Paging:
    principal = await authenticated(request)
    reader = "operator" if isinstance(principal, Operator) else f"tenant:{principal.tenant}"
    limits = services.limits
    size = min(page_size or limits.page_size_default, limits.page_size_max)
    return Paging(size, page_token, reader)


Pages = Annotated[Paging, Depends(_paging)]


def _revision(
    if_match: Annotated[
        str | None,
        Header(
            description="the ETag that the tenant must have; without it, somebody's change may be overwritten"
        ),
    ] = None,
) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    match = ETAG_PATTERN.fullmatch(if_match.strip())
    if match is None:
        raise RevisionConflictError(
            "If-Match is not the one ETag of a tenant; read it again", argument="If-Match"
        )
    return int(match[1])


Revision = Annotated[int | None, Depends(_revision)]


def etag(revision: int) -> str:
    """The ETag of a tenant."""
    return f'"{revision}"'
