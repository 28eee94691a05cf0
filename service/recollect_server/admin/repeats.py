"""POSTs with an `Idempotency-Key`: a repeat gets the first answer, and nothing happens twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import Request, Response

from recollect_server.admin.access import authenticated
from recollect_server.admin.refusals import RefusedError
from recollect_server.domain.audit import origin_of
from recollect_server.domain.errors import InvalidArgumentError, RegistryUnavailableError
from recollect_server.domain.identity import Caller
from recollect_server.domain.ports import Clock
from recollect_server.domain.registry import Answer, Registry

log = logging.getLogger(__name__)

HEADER = "Idempotency-Key"
REMEMBERED_S = 86_400
HELD_S = 600
"""How long answers with a secret are kept, in this process alone."""
HELD_MAX = 1024
HEADERS_KEPT = ("ETag", "Location")
"""Of the first answer, those that a repeat gets too."""
KEY_PATTERN = re.compile(r"[\x21-\x7e]{1,255}")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Held:
    until_s: float
    fingerprint: str
    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    callers: int = 0


class Repeats:
    """Remembers answers by principal and idempotency key.

    In the registry, so that a repeat may reach another server, but without what is shown once; of each tenant
    the newest. Only answers that are no errors are kept: a request that was refused may be sent again. If
    this server dies between a change and its answer, a repeat is a new request.

    Args:
        registry: Where answers are remembered.
        clock: Seconds since the epoch.
    """

    def __init__(self, registry: Registry, *, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._turns: dict[str, _Turn] = {}

    async def once(self, request: Request, handle: Handler, *, shown_once: str) -> Response:
        """Answers a request, or repeats what it was answered with.

        Args:
            request: With the header; its principal has been admitted.
            handle: Answers it.
            shown_once: Member of the answer that is a secret, or "".

        Raises:
            InvalidArgumentError: The header is malformed.
            RefusedError: The key was used for another request, or the secret cannot be shown again.
            RegistryUnavailableError: Whether it is a repeat cannot be told now.
        """
        principal = await authenticated(request)
        key = request.headers[HEADER]
        if len(request.headers.getlist(HEADER)) > 1 or not KEY_PATTERN.fullmatch(key):
            raise InvalidArgumentError(HEADER, "must be one of 1 to 255 visible ASCII characters")
        name = _digest(origin_of(principal, "").actor.encode(), key.encode())
        fingerprint = await _fingerprint(request)
        async with self._turn(name):
            known = self._recalled(name) or await self._remembered(name, fingerprint, shown_once=shown_once)
            if known is not None:
                _require_same(known.fingerprint, fingerprint)
                replayed = {**known.headers, "Idempotent-Replayed": "true"}
                return Response(known.body, known.status, replayed, media_type="application/json")
            response = await handle(request)
            tenant = principal.tenant if isinstance(principal, Caller) else None
            held = _held(response, fingerprint, until_s=self._clock() + HELD_S)
            await self._keep(name, held, tenant=tenant, shown_once=shown_once)
            return response

    def _recalled(self, name: str) -> _Held | None:
        now_s = self._clock()
        while self._held and (next(iter(self._held.values())).until_s <= now_s or len(self._held) > HELD_MAX):
            self._held.popitem(last=False)
        return self._held.get(name)

    async def _remembered(self, name: str, fingerprint: str, *, shown_once: str) -> _Held | None:
        answer = await self._registry.answer(name)
        if answer is None:
            return None
        _require_same(answer.fingerprint, fingerprint)
        if shown_once:
            raise RefusedError(
                409,
                "IDEMPOTENT_ANSWER_LOST",
                message=f"this was done already, and its {shown_once} cannot be shown again: rotate the key "
                f"{json.loads(answer.body)['key']['key_id']}",
                argument=HEADER,
            )
        return _Held(0.0, answer.fingerprint, answer.status, answer.body.encode(), answer.headers)

    async def _keep(self, name: str, held: _Held, *, tenant: str | None, shown_once: str) -> None:
        body = held.body
        if shown_once:
            self._held[name] = held
            parts = json.loads(body)
            del parts[shown_once]
            body = json.dumps(parts).encode()
        answer = Answer(held.fingerprint, held.status, body.decode(), held.headers)
        try:
            await self._registry.remember(name, answer, tenant=tenant, for_s=REMEMBERED_S)
        except RegistryUnavailableError as error:
            # What was asked for is done; to answer that it is not would be worse than to forget it.
            log.warning("an answer could not be remembered: %s", error)

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(name, _Turn())
        turn.callers += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.callers -= 1
            if not turn.callers:
                del self._turns[name]


def _held(response: Response, fingerprint: str, *, until_s: float) -> _Held:
    kept = {name: response.headers[name] for name in HEADERS_KEPT if name in response.headers}
    return _Held(until_s, fingerprint, response.status_code, bytes(response.body), kept)


def _require_same(first: str, now: str) -> None:
    if first != now:
        raise RefusedError(
            422,
            "IDEMPOTENCY_KEY_REUSED",
            message="this key was used for another request; take a new one for each",
            argument=HEADER,
        )


async def _fingerprint(request: Request) -> str:
    path = request.url.path.encode("utf-8", "surrogatepass")
    return _digest(request.method.encode(), path, request.url.query.encode(), await request.body())


def _digest(*parts: bytes) -> str:
    # Lengths go in too, so that no two lists of parts look the same.
    return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in parts)).hexdigest()
