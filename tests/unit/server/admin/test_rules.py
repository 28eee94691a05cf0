"""Rules of the admin API that hold for every route and every error."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from typing import cast

import pytest
from fastapi.routing import APIRoute

from recollect_server.admin.access import OPEN, OPERATOR
from recollect_server.admin.app import ROUTERS, ROUTES, require_rules
from recollect_server.admin.openapi import document
from recollect_server.admin.problems import STATUS, problem_of
from recollect_server.admin.route import ACCESS_MEMBER, router
from recollect_server.admin.schemas import Body, QuotasBody
from recollect_server.domain import errors
from recollect_server.domain.tenants import Quotas
from tests.admin_world import world

Json = dict[str, object]
Error = type[errors.RecollectError]


def leaves(
    kind: type[errors.RecollectError] = errors.RecollectError,
) -> Iterator[type[errors.RecollectError]]:
    """The errors that are raised."""
    below = kind.__subclasses__()
    if not below:
        yield kind
    for each in below:
        yield from leaves(each)


@pytest.fixture(scope="module")
def openapi() -> Json:
    """The document."""

    async def made() -> Json:
        async with world() as found:
            return document(found.app)

    return asyncio.run(made())


def operations(openapi: Json) -> Iterator[Json]:
    """Every operation of the document."""
    for path in cast("dict[str, dict[str, Json]]", openapi["paths"]).values():
        yield from path.values()


def test_every_error_has_a_status() -> None:
    """An error was added, and the admin API answers 500 in its place."""
    assert set(STATUS) == set(leaves())


def test_what_may_be_tried_again_says_when() -> None:
    """A client hammers a server that asked for time."""
    draining = problem_of(errors.DrainingError("soon", retry_after_s=2.5), instance="/")
    quota = problem_of(errors.QuotaExceededError("bytes", "full"), instance="/")
    assert (draining.status_code, draining.headers["retry-after"]) == (503, "3")
    assert (quota.status_code, "retry-after" in quota.headers) == (429, False)


def test_a_route_without_a_rule_cannot_be_made() -> None:
    """A route was added that everybody may call, because nobody said who."""
    for rules in ([], [OPEN, OPERATOR]):
        routes = router("test")
        with pytest.raises(ValueError, match="access rules"):
            routes.get("/forgotten", dependencies=rules)(lambda: None)


async def test_an_application_has_no_route_beside_the_rules() -> None:
    """A route came in past the rules, as FastAPI's own pages do."""
    async with world() as made:
        require_rules(made.app)
        made.app.add_api_route("/stray", lambda: None)
        with pytest.raises(ValueError, match="access rules"):
            require_rules(made.app)


def test_every_operation_says_who_may_call_it(openapi: Json) -> None:
    """A reader of the document, or the security matrix, does not find an operation's rule."""
    rules = {str(operation["operationId"]): operation[ACCESS_MEMBER] for operation in operations(openapi)}
    assert {rules["isAlive"], rules["getMetrics"], rules["getTenant"]} == {"open", "metrics", "tenant-admin"}
    assert set(rules.values()) == {"open", "metrics", "tenant-admin", "operator"}
    opened = [operation for operation in operations(openapi) if operation["security"] == []]
    assert {operation["operationId"] for operation in opened} == {"isAlive", "isReady"}


def test_telemetry_knows_every_route_beforehand() -> None:
    """Calls of a route are counted under the label of what is unknown."""
    routes = [route for each in ROUTERS for route in each.routes if isinstance(route, APIRoute)]
    assert len(ROUTES) == len(set(ROUTES)) == len(routes)
    assert "POST /api/v1/tenants/{tenant}/keys/{key_id}:rotate" in ROUTES


def test_the_document_is_openapi_3_1_with_problems_for_errors(openapi: Json) -> None:
    """A generated client does not understand an error."""
    assert str(openapi["openapi"]).startswith("3.1")
    for operation in operations(openapi):
        for status, response in cast("dict[str, Json]", operation["responses"]).items():
            content = cast("Json", response.get("content", {}))
            if not status.startswith("2"):
                assert set(content) == {"application/problem+json"}, (operation["operationId"], status)


def test_every_body_has_an_example_that_fits(openapi: Json) -> None:
    """A reader sees no example of a request or answer, or one that would be refused."""
    components = cast("dict[str, dict[str, Json]]", openapi["components"])["schemas"]
    bodies: set[str] = {"Problem"}
    for operation in operations(openapi):
        parts = [operation.get("requestBody", {}), *cast("Json", operation["responses"]).values()]
        for part in parts:
            for media in cast("dict[str, dict[str, Json]]", cast("Json", part).get("content", {})).values():
                if "example" not in media:
                    schema = media["schema"]
                    options = cast("list[Json]", schema.get("anyOf", [schema]))
                    bodies |= {str(each["$ref"]).split("/")[-1] for each in options if "$ref" in each}
    assert len(bodies) > 15
    models = {model.__name__: model for model in Body.__subclasses__()}
    for name in bodies:
        examples = cast("list[Json]", components[name].get("examples", []))
        assert examples, f"{name} has no example"
        for example in examples:
            if name == "Problem":
                assert set(cast("list[str]", components[name]["required"])) == set(example)
            else:
                models[name].model_validate_json(json.dumps(example))


def test_the_api_has_every_quota() -> None:
    """A quota was added that no operator can set, or its default differs."""
    assert QuotasBody().to_quotas() == Quotas()
    assert list(QuotasBody.model_fields) == [field.name for field in dataclasses.fields(Quotas)]
