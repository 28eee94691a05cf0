"""API keys: issued, listed, rotated and revoked. A token is returned once, and never kept."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from recollect_server.application.changes import Changes
from recollect_server.application.directory import Directory
from recollect_server.application.tenants import no_tenant
from recollect_server.domain.audit import Audit, Origin
from recollect_server.domain.credentials import Key, digest_of, new_token
from recollect_server.domain.errors import InvalidArgumentError, KeyNotFoundError, RevisionConflictError
from recollect_server.domain.identity import Scope
from recollect_server.domain.ports import Clock
from recollect_server.domain.registry import Creation

LABEL_LENGTH_MAX = 200
LIFETIME_S_MAX = 10 * 366 * 86_400
OVERLAP_S_MAX = 30 * 86_400
ATTEMPTS = 3
"""Of finding a key id that is free; two of them are never the same by chance. And of a change, while others
change the same key."""


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key.

    Attributes:
        key: What is kept of it.
        token: What its holder is to show; nobody can find it out again.
    """

    key: Key
    token: str = field(repr=False)


class Keys:
    """What can be done with the keys of a tenant, or of the operators (tenant None).

    Who may is the transport's to check. Every method raises `RegistryUnavailableError` while the registry
    cannot be reached. A change is seen by this server when its method returns, and by the others within a
    second.

    Args:
        directory: The registry, and what this server remembers of it.
        changes: Bounds how often a tenant makes its own keys.
        clock: Seconds since the epoch.
    """

    def __init__(self, directory: Directory, *, changes: Changes, clock: Clock) -> None:
        self._directory = directory
        self._changes = changes
        self._clock = clock

    async def issue(
        self,
        tenant: str | None,
        *,
        scopes: AbstractSet[Scope],
        label: str = "",
        lifetime_s: int | None = None,
        origin: Origin,
    ) -> IssuedKey:
        """Makes a key.

        Args:
            tenant: Whose; None for an operator's.
            scopes: What a tenant's key allows; an operator's has none.
            label: For people.
            lifetime_s: After which it is refused; None: never.
            origin: Who asks.

        Raises:
            InvalidArgumentError: An argument is wrong.
            TenantNotFoundError: There is no such tenant.
            QuotaExceededError: The tenant makes keys too often.
        """
        if tenant is not None and not scopes:
            raise InvalidArgumentError("scopes", "is empty; give at least one of read, write, admin")
        if tenant is None and scopes:
            raise InvalidArgumentError("scopes", "is for keys of tenants; an operator's has none")
        _check(label=label, lifetime_s=lifetime_s)
        await self._count(tenant, origin)
        for _ in range(ATTEMPTS):
            issued = self._new(tenant, frozenset(scopes), label=label, lifetime_s=lifetime_s)
            audit = self._audit(origin, "key.issue", issued.key, details=_described(issued.key))
            made = await self._directory.registry.create_key(issued.key, audit=audit)
            if made is Creation.CREATED:
                await self._directory.refresh()
                return issued
            if made is Creation.NO_TENANT:
                raise no_tenant(tenant or "")
        raise RuntimeError(f"{ATTEMPTS} random key ids exist already: is the random source broken?")

    async def list(self, tenant: str | None, *, after: str, limit: int) -> list[Key]:
        """At most `limit` keys by id, those behind `after`; also expired and revoked ones.

        Raises:
            TenantNotFoundError: There is no such tenant.
        """
        registry = self._directory.registry
        if tenant is not None and await registry.tenant(tenant) is None:
            raise no_tenant(tenant)
        return await registry.keys(tenant, after=after, limit=limit)

    async def rotate(self, tenant: str | None, key_id: str, *, overlap_s: int, origin: Origin) -> IssuedKey:
        """Makes a key like an old one, which goes on for `overlap_s` and is refused then.

        The new one has the old one's scopes and label and, if the old one was made to expire, lives as long;
        the end that an earlier rotation gave the old one does not count.

        Raises:
            InvalidArgumentError: The overlap is negative or too long.
            KeyNotFoundError: There is no such key, or it is refused already.
            RevisionConflictError: Others change it all the time.
            QuotaExceededError: The tenant makes keys too often.
        """
        if not 0 <= overlap_s <= OVERLAP_S_MAX:
            raise InvalidArgumentError("overlap_s", f"is {overlap_s}; it must be from 0 to {OVERLAP_S_MAX:,}")
        await self._count(tenant, origin)
        for _ in range(ATTEMPTS):
            old = await self._get(tenant, key_id)
            ending, issued = self._replaced(old, overlap_s=overlap_s)
            details = f"into {issued.key.key_id}; the old one expires at {ending.expires_at_ms}"
            audit = self._audit(origin, "key.rotate", old, details=details)
            if await self._directory.registry.rotate_key(ending, issued.key, audit=audit):
                await self._directory.refresh()
                return issued
        raise being_changed(key_id)

    async def revoke(self, tenant: str | None, key_id: str, *, origin: Origin) -> Key:
        """Has a key refused from now on; once is enough, and again does nothing.

        Raises:
            KeyNotFoundError: There is no such key.
            RevisionConflictError: Others change it all the time.
        """
        for _ in range(ATTEMPTS):
            key = await self._get(tenant, key_id)
            revoked = key
            if key.revoked_at_ms is None:
                revoked = replace(key, revoked_at_ms=self._now_ms(), last_used_at_ms=None)
                audit = self._audit(origin, "key.revoke", key, details=_described(key))
                if not await self._directory.registry.replace_key(revoked, audit=audit):
                    continue  # somebody else rotated, revoked or removed it in between
            # Also if it was revoked before: a first attempt may have failed between the two.
            await self._directory.refresh()
            return revoked
        raise being_changed(key_id)

    async def _count(self, tenant: str | None, origin: Origin) -> None:
        if tenant is None:
            return
        found = await self._directory.tenant(tenant)
        if found is None:
            raise no_tenant(tenant)
        self._changes.count(tenant, found.quotas, origin=origin)

    async def _get(self, tenant: str | None, key_id: str) -> Key:
        key = await self._directory.registry.key(key_id)
        if key is None or key.tenant != tenant:
            raise no_key(key_id)
        return key

    def _replaced(self, old: Key, *, overlap_s: int) -> tuple[Key, IssuedKey]:
        """The old key as it is to end, and the one that takes its place."""
        now_ms = self._now_ms()
        if not old.is_valid(now_ms):
            raise KeyNotFoundError(
                f"key {old.key_id!r} has expired or is revoked; issue a new one", argument="key_id"
            )
        lifetime_s = None if old.lifetime_ms is None else max(1, old.lifetime_ms // 1000)
        issued = self._new(old.tenant, old.scopes, label=old.label, lifetime_s=lifetime_s)
        return old.ending(now_ms + overlap_s * 1000), issued

    def _new(
        self, tenant: str | None, scopes: frozenset[Scope], *, label: str, lifetime_s: int | None
    ) -> IssuedKey:
        presented, token = new_token()
        now_ms = self._now_ms()
        key = Key(
            key_id=presented.key_id,
            tenant=tenant,
            digest=digest_of(presented.secret),
            scopes=scopes,
            label=label,
            created_at_ms=now_ms,
            expires_at_ms=None if lifetime_s is None else now_ms + lifetime_s * 1000,
        )
        return IssuedKey(key, token)

    def _audit(self, origin: Origin, action: str, key: Key, *, details: str) -> Audit:
        tenant = key.tenant or ""
        return Audit(self._now_ms(), origin.actor, origin.source, action, tenant, key.key_id, details)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def no_key(key_id: str) -> KeyNotFoundError:
    """What is answered for a key that does not exist, and, word for word, for another's."""
    return KeyNotFoundError(f"there is no key {key_id!r}", argument="key_id")


def being_changed(key_id: str) -> RevisionConflictError:
    """What is answered to a change that others were always faster than."""
    return RevisionConflictError(f"key {key_id!r} is being changed by others; try again", argument="key_id")


def _check(*, label: str, lifetime_s: int | None) -> None:
    if len(label) > LABEL_LENGTH_MAX or (label and not label.isprintable()):
        raise InvalidArgumentError(
            "label", f"must be at most {LABEL_LENGTH_MAX} printable characters, and has {len(label)}"
        )
    if lifetime_s is not None and not 1 <= lifetime_s <= LIFETIME_S_MAX:
        raise InvalidArgumentError("lifetime_s", f"is {lifetime_s}; it must be from 1 to {LIFETIME_S_MAX:,}")


def _described(key: Key) -> str:
    scopes = ",".join(sorted(key.scopes)) or "operator"
    expires = "" if key.expires_at_ms is None else f"; expires at {key.expires_at_ms}"
    return f"{scopes}{expires}" + (f"; label {key.label!r}" if key.label else "")
