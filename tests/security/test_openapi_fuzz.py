"""The OpenAPI document, fuzzed with schemathesis against a real uvicorn, with keys of all kinds and none."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case as AnyCase
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.adapter import OperationParameter, ResponsesContainer
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema

from tests.admin_world import World, served, world

log = logging.getLogger(__name__)

Case = AnyCase[APIOperation[OperationParameter, ResponsesContainer[object], object, BaseSchema]]
EXAMPLES, EXAMPLES_SLOW = 10, 200
"""Of each operation, holder and mode: about 1,500 requests, and 20,000."""
NAMESPACE = "team/run-7"
ENDING = ("deleteTenant", "revokeKey", "rotateKey")
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@dataclass(frozen=True)
class Running:
    """A server in a thread of its own, as schemathesis calls it from this one."""

    made: World
    url: str
    key_id: str


@contextmanager
def running() -> Iterator[Running]:
    """A world behind a uvicorn."""
    started, stop = threading.Event(), threading.Event()
    found: list[Running] = []

    async def serve() -> None:
        async with world() as made, served(made.app) as url:
            await made.add_namespace("acme", NAMESPACE)
            issued = await made.directory.registry.keys("acme", after="", limit=1)
            found.append(Running(made, url, issued[0].key_id))
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="admin-under-fuzz")
    thread.start()
    try:
        assert started.wait(60)
        yield found[0]
    finally:
        stop.set()
        thread.join(60)


def aimed(case: Case, server: Running) -> None:
    """Points a request at what is there, so that more than the router is reached."""
    there = {"tenant": "acme", "namespace": NAMESPACE, "key_id": server.key_id}
    for name in case.path_parameters or {}:
        case.path_parameters[name] = there[name]


def has_wrong_body(case: Case) -> bool:
    """Whether the body is one that the document does not allow. Unknown parameters of a query may be sent."""
    component = case.meta.components.get(ParameterLocation.BODY) if case.meta else None
    return component is not None and component.mode is GenerationMode.NEGATIVE


def fuzz(holder: str, *, examples: int) -> Counter[int]:
    """Sends generated requests to every operation; how many were answered with each status."""
    statuses: Counter[int] = Counter()
    with running() as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        headers = server.made.headers(holder)
        for found in schema.get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()
            has_input = bool(operation.body or list(operation.iter_parameters()))
            modes = list(GenerationMode) if has_input else [GenerationMode.POSITIVE]
            # The tenants under fuzz are to outlast the operation that deletes them.
            may_aim = operation.definition.raw["operationId"] not in ENDING
            for mode in modes:

                @settings(
                    max_examples=examples,
                    phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
                    database=None,
                    derandomize=True,
                )
                @given(case=operation.as_strategy(generation_mode=mode), aim=st.booleans())
                def one(case: Case, aim: bool) -> None:
                    if aim and may_aim and mode is GenerationMode.POSITIVE:  # noqa: B023  # called at once, in this turn of the loop
                        aimed(case, server)
                    response = case.call(headers=headers)
                    statuses[response.status_code] += 1
                    case.validate_response(response, checks=CHECKS, headers=headers)
                    if has_wrong_body(case):
                        assert response.status_code >= 400, case.as_curl_command()

                one()
        assert not [call for call in server.made.telemetry.calls if call.error_id]
    log.info("%d requests of %r: %s", statuses.total(), holder, dict(sorted(statuses.items())))
    return statuses


@pytest.mark.parametrize("holder", ["operator", "admin", ""])
def test_no_request_gets_an_answer_that_is_not_documented(holder: str) -> None:
    """Some request breaks the server, or gets an answer that the document does not know."""
    statuses = fuzz(holder, examples=EXAMPLES)
    assert statuses.total() > 300
    if holder:
        assert statuses[200] > 20
    else:
        assert set(statuses) <= {200, 401, 404, 405}


@pytest.mark.slow
@pytest.mark.parametrize("holder", ["operator", "admin"])
def test_no_request_of_many_gets_an_answer_that_is_not_documented(holder: str) -> None:
    """Some rare request breaks the server, or gets an answer that the document does not know."""
    assert not {status for status in fuzz(holder, examples=EXAMPLES_SLOW) if status >= 500}
