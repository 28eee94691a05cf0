"""Writes are idempotent: a repeated request id gets the first answer, and nothing happens twice."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.limits import Limits
from recollect_server.domain.steps import Steps

Answer = TypeVar("Answer")

DIGEST_BYTES = 16
"""A call is remembered as a digest: its streams' names may be long."""

ROWS_REMEMBERED = 262_144
"""Of a tenant's answers together, about 20 MiB: that of an add has two numbers for each of up to a thousand
rows. Of adds of that size, these are still twice as many as a tenant may have in flight."""


class _Answered(NamedTuple):
    """What was asked, what was answered, and how many rows that has."""

    call: bytes
    answer: object
    rows: int


@dataclass(slots=True)
class _Answers:
    """Of one tenant, by namespace and request id, the oldest first."""

    by_id: OrderedDict[tuple[str, str], _Answered] = field(default_factory=OrderedDict)
    rows: int = 0


class AnsweredRequests:
    """The last answers to mutating calls, per tenant, bounded in number and in size.

    Args:
        limits: The server's bounds.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._answers: dict[str, _Answers] = {}

    def once(
        self,
        tenant: str,
        request_id: str,
        *,
        uid: str,
        call: str,
        answer_type: type[Answer],
        work: Callable[[], Steps[Answer]],
        rows: int = 1,
    ) -> Steps[Answer]:
        """Does the work, or returns what it returned when it was asked for under the same id before.

        Args:
            tenant: Whose id it is; another tenant's means nothing.
            request_id: "" for a call that will not be repeated.
            uid: Of the namespace: an answer does not outlive what it is about.
            call: What the call is, so that an id used for two different ones is noticed.
            answer_type: Of the work.
            work: Its steps. If it raises, nothing is remembered, since nothing was done.
            rows: Of the answer.

        Raises:
            InvalidArgumentError: The id is too long, or was used for another call.
        """
        if not request_id:
            return (yield from work())
        self._check(request_id)
        digest = hashlib.blake2b(call.encode(), digest_size=DIGEST_BYTES).digest()
        answers = self._answers.get(tenant)
        if answers is not None and (uid, request_id) in answers.by_id:
            first_call, answer, _ = answers.by_id[uid, request_id]
            if first_call != digest or not isinstance(answer, answer_type):
                raise InvalidArgumentError(
                    "request_id", f"{request_id!r} was used for another call; make a new one for each call"
                )
            return answer
        fresh = yield from work()
        answers = self._answers.setdefault(tenant, _Answers())
        answers.by_id[uid, request_id] = _Answered(digest, fresh, rows)
        answers.rows += rows
        while len(answers.by_id) > self._limits.request_ids_remembered or answers.rows > ROWS_REMEMBERED:
            answers.rows -= answers.by_id.popitem(last=False)[1].rows
        return fresh

    def knows(self, tenant: str, request_id: str, *, uid: str) -> bool:
        """Whether a call with this id was answered already: then there is nothing to prepare for it.

        Raises:
            InvalidArgumentError: The id is too long.
        """
        self._check(request_id)
        answers = self._answers.get(tenant)
        return answers is not None and (uid, request_id) in answers.by_id

    def _check(self, request_id: str) -> None:
        if len(request_id) > self._limits.request_id_length_max:
            raise InvalidArgumentError(
                "request_id",
                f"has {len(request_id)} characters; at most {self._limits.request_id_length_max} are allowed",
            )

    def forget(self, tenant: str) -> None:
        """Drops a tenant's answers: it has no namespaces that they could be about."""
        self._answers.pop(tenant, None)
