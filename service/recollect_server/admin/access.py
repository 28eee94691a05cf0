"""Who may call a route: each has exactly one of these rules among its dependencies."""

from __future__ import annotations

import hmac
import ipaddress
from abc import ABC, abstractmethod
from typing import ClassVar

from fastapi import Depends, Request

from recollect_server.admin.current import current, services_of
from recollect_server.application.tenants import no_tenant
from recollect_server.domain.errors import PermissionDeniedError, UnauthenticatedError
from recollect_server.domain.identity import Operator, Principal, Scope

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""Headers that a proxy adds: what it passes on does not come from this machine, though the proxy may."""


class Access(ABC):
    """A rule. As a dependency it stands in the route's list; `AccessRoute` asks it before the body is read.

    Attributes:
        name: In the OpenAPI document, as `x-recollect-access`.
    """

    name: ClassVar[str]

    @abstractmethod
    async def admit(self, request: Request) -> None:
        """Checks the credential, then what it allows.

        Raises:
            UnauthenticatedError: The credential is missing or not valid.
            PermissionDeniedError: It does not allow this.
            TenantNotFoundError: It allows this for another tenant; that is answered as one that is not there.
        """

    async def __call__(self, request: Request) -> None:
        """The rule as a dependency."""
        await self.admit(request)


class OpenAccess(Access):
    """Everybody: what tells nothing about tenants."""

    name = "open"

    async def admit(self, request: Request) -> None:
        """See `Access.admit`; never raises."""
        del request


class OperatorAccess(Access):
    """Operators."""

    name = "operator"

    async def admit(self, request: Request) -> None:
        """See `Access.admit`."""
        if not isinstance(await authenticated(request), Operator):
            raise PermissionDeniedError("this is for operators, and the key is a tenant's")


class TenantAdminAccess(Access):
    """Operators, and for the tenant in the path those of its keys that have the scope admin."""

    name = "tenant-admin"

    async def admit(self, request: Request) -> None:
        """See `Access.admit`."""
        principal = await authenticated(request)
        if isinstance(principal, Operator):
            return
        tenant = request.path_params["tenant"]
        if principal.tenant != tenant:
            raise no_tenant(tenant)
        if Scope.ADMIN not in principal.scopes:
            raise PermissionDeniedError("this needs a key with the scope admin")


class MetricsAccess(Access):
    """Whoever is on this machine, operators, and the holder of the metrics key. Metrics name tenants."""

    name = "metrics"

    async def admit(self, request: Request) -> None:
        """See `Access.admit`."""
        credential = _credential(request)
        expected = services_of(request).metrics_key
        if credential is None and _is_local(request):
            return
        if expected and credential and hmac.compare_digest(credential.encode(), expected.encode()):
            return
        await OPERATOR_RULE.admit(request)


OPERATOR_RULE = OperatorAccess()

OPEN = Depends(OpenAccess())
OPERATOR = Depends(OPERATOR_RULE)
TENANT_ADMIN = Depends(TenantAdminAccess())
METRICS = Depends(MetricsAccess())


async def authenticated(request: Request) -> Principal:
    """Who asks; found out once for each request.

    Raises:
        UnauthenticatedError: Nobody that the server knows.
        RegistryUnavailableError: That cannot be told now.
    """
    call = current(request)
    if call.principal is None:
        call.principal = await services_of(request).authenticator.authenticate(_credential(request))
    return call.principal


def _credential(request: Request) -> str | None:
    headers = request.headers.getlist("authorization")
    if not headers:
        return None
    scheme, _, token = headers[0].partition(" ")
    if len(headers) > 1 or scheme.lower() != "bearer":
        raise UnauthenticatedError
    return token.strip()


def _is_local(request: Request) -> bool:
    if any(name in request.headers for name in FORWARDED):
        return False
    if request.client is None:  # a unix socket
        return True
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
