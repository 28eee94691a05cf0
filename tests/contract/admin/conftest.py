"""The admin API in process and behind a real uvicorn: the same suite."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.admin_world import World, in_process, served, world


class Api:
    """A client that shows the credential of a holder.

    Args:
        made: Whose keys there are.
        http: To its application.
    """

    def __init__(self, made: World, http: httpx.AsyncClient) -> None:
        self.world = made
        self.http = http

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        holder: str = "operator",
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """One request; every error must be a problem."""
        sent = {**self.world.headers(holder), **(headers or {})}
        response = await self.http.request(method, path, json=body, headers=sent, content=content)
        assert response.headers["cache-control"] == "no-store"
        if response.is_error:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["status"] == response.status_code
        return response


@pytest.fixture(params=["asgi", "uvicorn"])
async def api(request: pytest.FixtureRequest) -> AsyncIterator[Api]:
    """A client of a world of its own."""
    async with world() as made:
        if request.param == "asgi":
            async with in_process(made.app) as http:
                yield Api(made, http)
        else:
            async with served(made.app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
                yield Api(made, http)
