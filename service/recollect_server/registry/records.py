"""How records are written down: JSON, the same in every registry.

A field that has a default may be missing, since an older version may not have written it. A field that is
not known was written by a newer version: the record is refused, as this version cannot tell what it means.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping

from recollect_server.domain.audit import Audit
from recollect_server.domain.credentials import Key
from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.identity import Scope
from recollect_server.domain.registry import Answer, NamespaceRecord
from recollect_server.domain.spec import (
    INDEX_DEFAULT,
    RECALL_DEFAULT,
    Dtype,
    IndexChoice,
    NamespaceSpec,
    ValueDtype,
)
from recollect_server.domain.tenants import Quotas, Tenant


def encode_tenant(tenant: Tenant) -> str:
    """A tenant as JSON."""
    return _written(
        {
            "name": tenant.name,
            "created_at_ms": tenant.created_at_ms,
            "quotas": {each.name: getattr(tenant.quotas, each.name) for each in dataclasses.fields(Quotas)},
            "disabled": tenant.disabled,
            "revision": tenant.revision,
        }
    )


def decode_tenant(text: str) -> Tenant:
    """A tenant from JSON. Raises RegistryUnavailableError if this version cannot read it."""
    fields = _Fields("tenant", _read("tenant", text))
    quotas = _Fields("quotas", fields.take("quotas", {}))
    tenant = Tenant(
        name=fields.text("name"),
        created_at_ms=fields.number("created_at_ms"),
        quotas=Quotas(
            **{each.name: quotas.number(each.name, each.default) for each in dataclasses.fields(Quotas)}
        ),
        disabled=fields.flag("disabled", False),
        revision=fields.number("revision", 1),
    )
    quotas.end()
    fields.end()
    return tenant


def encode_key(key: Key) -> str:
    """A key as JSON, without its last use: that is kept apart, since it changes with every call."""
    fields: dict[str, object] = {
        "key_id": key.key_id,
        "tenant": key.tenant,
        "digest": key.digest.hex(),
        "scopes": sorted(key.scopes),
        "label": key.label,
        "created_at_ms": key.created_at_ms,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
    }
    if key.is_rotated:  # only then: versions that do not know these two read all other keys
        fields |= {"is_rotated": True, "meant_until_ms": key.meant_until_ms}
    return _written(fields)


def decode_key(text: str, last_used_at_ms: int | None) -> Key:
    """A key from JSON and its last use. Raises RegistryUnavailableError if this version cannot read it."""
    fields = _Fields("key", _read("key", text))
    try:
        digest = bytes.fromhex(fields.text("digest"))
        scopes = frozenset(Scope(each) for each in fields.texts("scopes"))
    except ValueError:
        # Not the value: it came from beside a secret.
        raise _unreadable("key", "its digest or its scopes are not what they should be") from None
    key = Key(
        key_id=fields.text("key_id"),
        tenant=fields.text_or_none("tenant"),
        digest=digest,
        scopes=scopes,
        label=fields.text("label", ""),
        created_at_ms=fields.number("created_at_ms"),
        expires_at_ms=fields.number_or_none("expires_at_ms"),
        revoked_at_ms=fields.number_or_none("revoked_at_ms"),
        last_used_at_ms=last_used_at_ms,
        is_rotated=fields.flag("is_rotated", False),
        meant_until_ms=fields.number_or_none("meant_until_ms"),
    )
    fields.end()
    return key


def may_become(before: Key, after: Key) -> bool:
    """Whether a key may be changed into another state of itself: none lasts longer than it was to.

    Otherwise a rotation that was decided on before a key was revoked, and comes after, would bring it back.
    """
    lasts = [(key.revoked_at_ms, key.expires_at_ms) for key in (before, after)]
    return all(then is None or (now is not None and now <= then) for then, now in zip(*lasts, strict=True))


def encode_namespace(record: NamespaceRecord) -> str:
    """A namespace as JSON."""
    spec = record.spec
    return _written(
        {
            "tenant": record.tenant,
            "name": record.name,
            "spec": {
                "layers": list(spec.layers),
                "heads": spec.heads,
                "key_dim": spec.key_dim,
                "value_dim": spec.value_dim,
                "capacity": spec.capacity,
                "dtype": spec.dtype.value,
                "index": spec.index.value,
                "recall": spec.recall,
                # What is as it always was is not said: earlier versions cannot read more.
                **({} if spec.value_dtype is None else {"value_dtype": spec.value_dtype.value}),
            },
            "created_at_ms": record.created_at_ms,
            "uid": record.uid,
        }
    )


def decode_namespace(text: str) -> NamespaceRecord:
    """A namespace from JSON. Raises RegistryUnavailableError if this version cannot read it."""
    fields = _Fields("namespace", _read("namespace", text))
    spec = _Fields("spec", fields.take("spec"))
    dtype = spec.text("dtype")
    if dtype not in {each.value for each in Dtype}:
        raise _unreadable("spec", f"dtype is {dtype!r}")
    value_dtype = spec.text("value_dtype", "")
    if value_dtype not in {"", *(each.value for each in ValueDtype)}:
        raise _unreadable("spec", f"value_dtype is {value_dtype!r}")
    index = spec.text("index", INDEX_DEFAULT.value)
    if index not in {each.value for each in IndexChoice}:
        raise _unreadable("spec", f"index is {index!r}")
    record = NamespaceRecord(
        tenant=fields.text("tenant"),
        name=fields.text("name"),
        spec=NamespaceSpec(
            layers=spec.numbers("layers"),
            heads=spec.number("heads"),
            key_dim=spec.number("key_dim"),
            value_dim=spec.number("value_dim"),
            capacity=spec.number("capacity"),
            dtype=Dtype(dtype),
            index=IndexChoice(index),
            recall=spec.real("recall", RECALL_DEFAULT),
            value_dtype=ValueDtype(value_dtype) if value_dtype else None,
        ),
        created_at_ms=fields.number("created_at_ms"),
        uid=fields.text("uid"),
    )
    spec.end()
    fields.end()
    return record


def encode_audit(audit: Audit) -> str:
    """An audit as JSON."""
    return _written({each.name: getattr(audit, each.name) for each in dataclasses.fields(Audit)})


def decode_audit(text: str) -> Audit:
    """An audit from JSON. Raises RegistryUnavailableError if this version cannot read it."""
    fields = _Fields("audit", _read("audit", text))
    audit = Audit(
        at_ms=fields.number("at_ms"),
        actor=fields.text("actor"),
        source=fields.text("source"),
        action=fields.text("action"),
        tenant=fields.text("tenant"),
        target=fields.text("target"),
        details=fields.text("details", ""),
    )
    fields.end()
    return audit


def encode_answer(answer: Answer) -> str:
    """An answer as JSON."""
    fields: dict[str, object] = {
        "fingerprint": answer.fingerprint,
        "status": answer.status,
        "body": answer.body,
    }
    if answer.headers:  # only then: versions that do not know them read all other answers
        fields["headers"] = dict(answer.headers)
    return _written(fields)


def decode_answer(text: str) -> Answer:
    """An answer from JSON. Raises RegistryUnavailableError if this version cannot read it."""
    fields = _Fields("answer", _read("answer", text))
    answer = Answer(
        fingerprint=fields.text("fingerprint"),
        status=fields.number("status"),
        body=fields.text("body"),
        headers=fields.texts_by_name("headers"),
    )
    fields.end()
    return answer


class _Fields:
    """The fields of one JSON object, each taken once and checked.

    Args:
        kind: What it is, for the error.
        value: What JSON had; anything but an object is refused.
    """

    def __init__(self, kind: str, value: object) -> None:
        if not isinstance(value, dict):
            raise _unreadable(kind, "it is no JSON object")
        self._kind = kind
        self._left: dict[str, object] = dict(value)

    def take(self, name: str, default: object = dataclasses.MISSING) -> object:
        """Whatever is there; the default if nothing is."""
        value = self._left.pop(name, default)
        if value is dataclasses.MISSING:
            raise _unreadable(self._kind, f"{name} is missing")
        return value

    def text(self, name: str, default: object = dataclasses.MISSING) -> str:
        """A string."""
        value = self.take(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def number(self, name: str, default: object = dataclasses.MISSING) -> int:
        """A whole number."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, "a whole number")
        return value

    def real(self, name: str, default: object = dataclasses.MISSING) -> float:
        """A finite number."""
        value = self.take(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, "a number")
        if not abs(value) <= sys.float_info.max:  # NaN is neither below nor above
            raise self._wrong(name, "a finite number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A string, or null; missing is an error, as the two mean different things."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "text or null")
        return value

    def number_or_none(self, name: str) -> int | None:
        """A whole number; null and missing are the same."""
        return None if self._left.get(name) is None and self.take(name, None) is None else self.number(name)

    def texts(self, name: str) -> list[str]:
        """A list of strings."""
        value = self.take(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return [_Fields(self._kind, {name: each}).text(name) for each in value]

    def texts_by_name(self, name: str) -> dict[str, str]:
        """An object of strings; none if it is missing."""
        value = self.take(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return {each: _Fields(self._kind, value).text(each) for each in value}

    def numbers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.take(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return tuple(_Fields(self._kind, {name: each}).number(name) for each in value)

    def end(self) -> None:
        """Refuses what was not taken."""
        if self._left:
            raise _unreadable(
                self._kind, f"it has fields that are not known: {', '.join(sorted(self._left))}"
            )

    def _wrong(self, name: str, wanted: str) -> RegistryUnavailableError:
        return _unreadable(self._kind, f"{name} is not {wanted}")


def _written(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, separators=(",", ":"), allow_nan=False)


def _read(kind: str, text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        raise _unreadable(kind, "it is no JSON") from None
    return value


def _unreadable(kind: str, why: str) -> RegistryUnavailableError:
    return RegistryUnavailableError(
        f"the registry holds a record that this version of the server cannot read: {kind}: {why}"
    )
