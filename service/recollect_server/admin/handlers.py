"""Every exception that a route may end with, as a problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from recollect_server.admin.current import current
from recollect_server.admin.gate import PROBES, instance_of
from recollect_server.admin.problems import FAULTS_MAX, problem, problem_of
from recollect_server.admin.refusals import RefusedError
from recollect_server.domain.errors import InternalError, InvalidArgumentError, RecollectError

_FRAMEWORK_REASONS = {400: "MALFORMED_BODY", 404: "NO_SUCH_ROUTE", 405: "METHOD_NOT_ALLOWED"}


class _Fault(TypedDict):
    loc: Sequence[str | int]
    msg: str


def add_handlers(app: FastAPI) -> None:
    """Has the application answer all errors with problems; what none of these expects is the gate's."""
    app.add_exception_handler(RecollectError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)


async def _domain_error(request: Request, error: Exception) -> Response:
    error = cast("RecollectError", error)
    call = current(request)
    call.reason = error.reason
    if isinstance(error, InternalError):
        call.error_id = error.error_id
    return problem_of(error, instance=instance_of(request.scope))


async def _invalid(request: Request, error: Exception) -> Response:
    found = cast("Sequence[_Fault]", cast("RequestValidationError", error).errors())
    # The first place is "body", "query" or "path". What was sent is not repeated: it may be a secret.
    faults = [{"argument": _argument(fault["loc"]), "message": fault["msg"]} for fault in found[:FAULTS_MAX]]
    current(request).reason = InvalidArgumentError.reason
    first = faults[0]
    return problem(
        422,
        InvalidArgumentError.reason,
        f"{first['argument']}: {first['message']}",
        instance=instance_of(request.scope),
        argument=first["argument"],
        more={"errors": faults},
    )


def _argument(place: Sequence[str | int]) -> str:
    if len(place) == 1 or isinstance(place[1], int):  # the body as a whole, or where in it the JSON ends
        return str(place[0])
    return ".".join(map(str, place[1:]))


async def _refused(request: Request, error: Exception) -> Response:
    error = cast("HTTPException", error)
    headers = dict(error.headers or {})
    if isinstance(error, RefusedError):
        reason, message, argument = error.reason, error.message, error.argument
    else:
        reason = _FRAMEWORK_REASONS.get(error.status_code, "REFUSED")
        message, argument = error.detail, ""
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
        message = f"{request.method} is not among {headers['Allow']}"
    current(request).reason = reason
    return problem(
        error.status_code,
        reason,
        message,
        instance=instance_of(request.scope),
        argument=argument,
        headers=headers,
    )


def _allowed(request: Request) -> list[str]:
    # Each method is a route of its own, and the framework knows those of the first one only.
    methods = {"HEAD"} if request.scope["path"] in PROBES else set[str]()
    for route in cast("FastAPI", request.app).routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)
