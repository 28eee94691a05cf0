"""The call that is being answered: what its parts tell each other about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import HTTPConnection
from starlette.types import Scope

from recollect_server.admin.services import AdminServices
from recollect_server.domain.identity import Principal

_KEY = "recollect.call"


@dataclass(slots=True)
class CurrentCall:
    """Filled in on the way of one request.

    Attributes:
        request_id: Names it in logs.
        principal: Who asks, once that is known.
        reason: Of the problem that it was answered with, or "".
        error_id: Of that problem, or "".
    """

    request_id: str
    principal: Principal | None = None
    reason: str = ""
    error_id: str = ""


def begin(scope: Scope, call: CurrentCall) -> None:
    """Attaches a call to its request."""
    scope[_KEY] = call


def current(connection: HTTPConnection) -> CurrentCall:
    """The call that a request makes."""
    return cast("CurrentCall", connection.scope[_KEY])


def services_of(connection: HTTPConnection) -> AdminServices:
    """What the application of a request was made with."""
    return cast("AdminServices", connection.app.state.services)
