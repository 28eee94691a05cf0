"""Records as they are written to a registry."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect_server.domain.audit import Audit
from recollect_server.domain.credentials import Key
from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.identity import Scope
from recollect_server.domain.registry import Answer, NamespaceRecord
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.tenants import Quotas, Tenant
from recollect_server.registry import records

NUMBERS = st.integers(0, 2**53)
TENANTS = st.builds(
    Tenant,
    st.text(),
    NUMBERS,
    st.builds(Quotas, bytes_max=NUMBERS, weight=NUMBERS, calls_queued_max=NUMBERS),
    st.booleans(),
    NUMBERS,
)
KEYS = st.builds(
    Key,
    st.text(),
    st.none() | st.text(),
    st.binary(min_size=32, max_size=32),
    st.frozensets(st.sampled_from(Scope)),
    st.text(),
    NUMBERS,
    st.none() | NUMBERS,
    st.none() | NUMBERS,
)
SPECS = st.builds(
    NamespaceSpec,
    st.lists(NUMBERS).map(tuple),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.sampled_from(Dtype),
    st.sampled_from(IndexChoice),
    st.floats(0.5, 1.0),
)
NAMESPACES = st.builds(NamespaceRecord, st.text(), st.text(), SPECS, NUMBERS, st.text())
AUDITS = st.builds(Audit, NUMBERS, *[st.text()] * 6)
ANSWERS = st.builds(Answer, st.text(), NUMBERS, st.text(), st.dictionaries(st.text(), st.text()))

TENANT = json.loads(records.encode_tenant(Tenant("acme", 1)))
KEY = json.loads(records.encode_key(Key("k", None, bytes(32), frozenset(), "", 1)))
NAMESPACE = json.loads(
    records.encode_namespace(
        NamespaceRecord("acme", "n", NamespaceSpec((0,), 1, 1, 1, 1, Dtype.FLOAT32), 1, "u")
    )
)
AUDIT = json.loads(records.encode_audit(Audit(1, "a", "b", "c", "d", "e")))
ANSWER = json.loads(records.encode_answer(Answer("f", 200, "")))


def decode_key(text: str) -> object:
    """A key that was never used."""
    return records.decode_key(text, None)


@given(TENANTS)
def test_a_tenant_comes_back_as_it_was(tenant: Tenant) -> None:
    """A tenant changes by being stored."""
    assert records.decode_tenant(records.encode_tenant(tenant)) == tenant


@given(KEYS, st.none() | NUMBERS)
def test_a_key_comes_back_as_it_was(key: Key, last_used_at_ms: int | None) -> None:
    """A key changes by being stored, or its last use is written where replacing it would reset it."""
    text = records.encode_key(key)
    assert "last_used" not in json.loads(text)
    assert decode_key(records.encode_key(key.ending(7))) == key.ending(7)
    assert decode_key(text) == key
    assert records.decode_key(text, last_used_at_ms).last_used_at_ms == last_used_at_ms


@given(NAMESPACES)
def test_a_namespace_comes_back_as_it_was(record: NamespaceRecord) -> None:
    """A namespace changes by being stored."""
    assert records.decode_namespace(records.encode_namespace(record)) == record


@given(AUDITS, ANSWERS)
def test_audits_and_answers_come_back_as_they_were(audit: Audit, answer: Answer) -> None:
    """What somebody did, or was answered, changes by being stored."""
    assert records.decode_audit(records.encode_audit(audit)) == audit
    assert records.decode_answer(records.encode_answer(answer)) == answer


def test_what_an_older_version_did_not_write_has_its_default() -> None:
    """After an upgrade that adds a quota or an index, the tenants or namespaces of before cannot be read."""
    assert records.decode_tenant('{"name": "acme", "created_at_ms": 5}') == Tenant("acme", 5)
    some = '{"name": "acme", "created_at_ms": 5, "quotas": {"weight": 2}, "revision": 4}'
    assert records.decode_tenant(some) == Tenant("acme", 5, Quotas(weight=2), revision=4)
    digest = "ab" * 32
    bare = f'{{"key_id": "k", "tenant": null, "digest": "{digest}", "scopes": [], "created_at_ms": 5}}'
    assert decode_key(bare) == Key("k", None, bytes.fromhex(digest), frozenset(), "", 5)
    spec = {name: value for name, value in NAMESPACE["spec"].items() if name not in ("index", "recall")}
    before = records.decode_namespace(json.dumps({**NAMESPACE, "spec": spec})).spec
    assert (before.index, before.recall) == (IndexChoice.AUTO, 0.95)


def test_what_is_as_before_is_written_as_before() -> None:
    """While servers are upgraded one by one, those that wait refuse keys and answers that say nothing new."""
    assert set(KEY) == {
        "key_id",
        "tenant",
        "digest",
        "scopes",
        "label",
        "created_at_ms",
        "expires_at_ms",
        "revoked_at_ms",
    }
    assert set(ANSWER) == {"fingerprint", "status", "body"}
    assert set(NAMESPACE["spec"]) == {
        "layers",
        "heads",
        "key_dim",
        "value_dim",
        "capacity",
        "dtype",
        "index",
        "recall",
    }


@pytest.mark.parametrize(
    ("decode", "good", "changes"),
    [
        (records.decode_tenant, TENANT, {"new": 1}),
        (records.decode_tenant, TENANT, {"name": None}),
        (records.decode_tenant, TENANT, {"revision": "1"}),
        (records.decode_tenant, TENANT, {"revision": True}),
        (records.decode_tenant, TENANT, {"revision": 1.5}),
        (records.decode_tenant, TENANT, {"disabled": 0}),
        (records.decode_tenant, TENANT, {"quotas": []}),
        (records.decode_tenant, TENANT, {"quotas": {"new_max": 1}}),
        (decode_key, KEY, {"digest": "xyz"}),
        (decode_key, KEY, {"digest": "é"}),
        (decode_key, KEY, {"scopes": ["read", "everything"]}),
        (decode_key, KEY, {"scopes": [1]}),
        (decode_key, KEY, {"scopes": "read"}),
        (decode_key, KEY, {"tenant": 1}),
        (decode_key, KEY, {"expires_at_ms": False}),
        (decode_key, KEY, {"last_used_at_ms": 1}),
        (decode_key, KEY, {"is_rotated": 1}),
        (decode_key, KEY, {"meant_until_ms": "1"}),
        (records.decode_namespace, NAMESPACE, {"spec": None}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "dtype": "int8"}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "value_dtype": "int4"}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "value_dtype": 8}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "layers": ["0"]}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "layers": 0}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "index": "hnsw"}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "index": 1}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "recall": "0.9"}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "recall": True}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "recall": None}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "recall": float("nan")}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "recall": float("inf")}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "recall": 10**400}}),
        (records.decode_namespace, NAMESPACE, {"spec": {**NAMESPACE["spec"], "probes": 8}}),
        (records.decode_namespace, NAMESPACE, {"uid": 7}),
        (records.decode_audit, AUDIT, {"at_ms": "now"}),
        (records.decode_audit, AUDIT, {"new": ""}),
        (records.decode_answer, ANSWER, {"status": "200"}),
        (records.decode_answer, ANSWER, {"new": ""}),
    ],
)
def test_what_cannot_be_understood_is_refused(
    decode: Callable[[str], object], good: dict[str, object], changes: dict[str, object]
) -> None:
    """A record of a newer version, or a damaged one, is read as something that it is not."""
    decode(json.dumps(good))
    with pytest.raises(RegistryUnavailableError, match="cannot read"):
        decode(json.dumps({**good, **changes}))


@pytest.mark.parametrize(
    ("decode", "good", "optional"),
    [
        (records.decode_tenant, TENANT, {"quotas", "disabled", "revision"}),
        (decode_key, KEY, {"label", "expires_at_ms", "revoked_at_ms"}),
        (records.decode_namespace, NAMESPACE, set()),
        (records.decode_audit, AUDIT, {"details"}),
        (records.decode_answer, ANSWER, set()),
    ],
)
def test_what_is_needed_must_be_there(
    decode: Callable[[str], object], good: dict[str, object], optional: set[str]
) -> None:
    """What is missing is made up: a key without a tenant is taken for an operator's."""
    for name in good:
        text = json.dumps({other: value for other, value in good.items() if other != name})
        if name in optional:
            decode(text)
            continue
        with pytest.raises(RegistryUnavailableError, match=f"{name} is missing"):
            decode(text)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "1", '{"name": NaN}', "\0"])
def test_what_is_no_object_is_refused(text: str) -> None:
    """A damaged record ends a call as a defect, not as a registry that cannot be used."""
    for decode in (records.decode_tenant, decode_key, records.decode_namespace, records.decode_audit):
        with pytest.raises(RegistryUnavailableError):
            decode(text)
