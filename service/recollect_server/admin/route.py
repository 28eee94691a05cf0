"""A route that checks the credential before it reads anything else."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import cast

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from recollect_server.admin.access import Access
from recollect_server.admin.repeats import HEADER, Repeats

ACCESS_MEMBER = "x-recollect-access"
SHOWN_ONCE_MEMBER = "x-recollect-shown-once"
SHOWS_TOKEN_ONCE: dict[str, object] = {SHOWN_ONCE_MEMBER: "token"}
"""As `openapi_extra` of a route whose answer has a secret in its member `token`."""


class AccessRoute(APIRoute):
    """FastAPI reads and parses the body before it asks any dependency; this asks the access rule first.

    The rule is the route's own dependency, so that there is one place for it. A route without one, or with
    two, cannot be made.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """See `APIRoute.get_route_handler`."""
        handle = super().get_route_handler()
        access = access_of(self)
        extra: dict[str, object] = {**(self.openapi_extra or {}), ACCESS_MEMBER: access.name}
        self.openapi_extra = extra
        shown_once = str(extra.get(SHOWN_ONCE_MEMBER, ""))

        async def answer(request: Request) -> Response:
            await access.admit(request)
            if request.method == "POST" and HEADER in request.headers:
                repeats = cast("Repeats", request.app.state.repeats)
                return await repeats.once(request, handle, shown_once=shown_once)
            return await handle(request)

        return answer


def access_of(route: APIRoute) -> Access:
    """The access rule of a route.

    Raises:
        ValueError: It has none, or more than one.
    """
    rules = [each.dependency for each in route.dependencies if isinstance(each.dependency, Access)]
    if len(rules) != 1:
        raise ValueError(f"{route.path} has {len(rules)} access rules; give it one of admin.access")
    return rules[0]


def router(tag: str) -> APIRouter:
    """A router for routes that each have an access rule.

    Args:
        tag: Under which the OpenAPI document lists them.
    """
    return APIRouter(route_class=AccessRoute, tags=[tag])
