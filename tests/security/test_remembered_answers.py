"""What is remembered of a tenant's writes is bounded in size, whatever the tenant writes."""

from __future__ import annotations

from functools import partial

import pytest

from recollect_server.application.commands import Added
from recollect_server.application.request_ids import ROWS_REMEMBERED, AnsweredRequests
from recollect_server.domain.limits import Limits
from recollect_server.domain.steps import in_one_step, run_through
from recollect_server.domain.tenants import Quotas

LIMITS = Limits()


def remembered(rows: int, *, calls: int) -> int:
    """How many of so many adds, each of so many rows, are still answered from memory."""
    answers, done = AnsweredRequests(LIMITS), list[str]()

    def add(request_id: str) -> None:
        def work() -> Added:
            done.append(request_id)
            return Added(first_ids=(0,) * rows, next_sequences=(0,) * rows, evicted=0)

        steps = partial(in_one_step, work)
        run_through(
            answers.once("t", request_id, uid="u", call=request_id, answer_type=Added, work=steps, rows=rows)
        )

    names = [str(number) for number in range(calls)]
    for name in names:
        add(name)
    assert done == names
    for found, name in enumerate(reversed(names)):
        add(name)
        if len(done) > calls:  # it was done again
            return found
    return calls


def test_small_answers_are_remembered_by_number() -> None:
    """A repeat of a small write is done twice, though there is room to remember many."""
    assert remembered(1, calls=LIMITS.request_ids_remembered + 10) == LIMITS.request_ids_remembered


@pytest.mark.parametrize("rows", [LIMITS.rows_max, LIMITS.rows_max // 2])
def test_large_answers_are_remembered_by_size(rows: int) -> None:
    """A tenant fills the memory with answers to adds of many rows, which no quota counts."""
    kept = remembered(rows, calls=1000)
    assert kept * rows <= ROWS_REMEMBERED
    assert (kept + 1) * rows > ROWS_REMEMBERED


def test_calls_in_flight_are_remembered() -> None:
    """The answer to an add is forgotten before its caller can ask again."""
    assert remembered(LIMITS.rows_max, calls=1000) >= 2 * Quotas().calls_in_flight_max
