"""Namespaces, statistics and server facts: messages of the wire to words of the domain, and back."""

from __future__ import annotations

from dataclasses import dataclass

from recollect.v1 import memory_pb2 as pb
from recollect_server.application.commands import Stats
from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.limits import Limits
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import (
    INDEX_DEFAULT,
    RECALL_DEFAULT,
    Dtype,
    IndexChoice,
    NamespaceSpec,
    ValueDtype,
)
from recollect_server.rpc.tensors import DTYPES, WIRE_DTYPES, dtype_name

INDEXES = {
    pb.INDEX_KIND_EXACT: IndexChoice.EXACT,
    pb.INDEX_KIND_IVF: IndexChoice.IVF,
    pb.INDEX_KIND_AUTO: IndexChoice.AUTO,
}
WIRE_INDEXES = {index: number for number, index in INDEXES.items()}


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What `GetServerInfo` tells."""

    version: str
    device: str
    limits: Limits


def spec_of(spec: pb.NamespaceSpec) -> NamespaceSpec:
    """The spec in a request; its bounds are the domain's to check.

    Raises:
        InvalidArgumentError: A dtype that nothing is stored in, or an index that there is not.
    """
    dtype = DTYPES.get(spec.dtype)
    if dtype is None:
        raise InvalidArgumentError(
            "spec.dtype", f"is {dtype_name(spec.dtype)}; expected float32, float16 or bfloat16"
        )
    index = INDEXES.get(spec.index) if spec.index else INDEX_DEFAULT
    if index is None:
        raise InvalidArgumentError("spec.index", f"is {spec.index}; expected exact, ivf or auto")
    return NamespaceSpec(
        layers=tuple(sorted(spec.layers)),
        heads=spec.heads,
        key_dim=spec.key_dim,
        value_dim=spec.value_dim,
        capacity=spec.capacity,
        dtype=dtype,
        index=index,
        recall=spec.recall or RECALL_DEFAULT,
        value_dtype=_value_dtype_of(spec, dtype),
    )


def _value_dtype_of(spec: pb.NamespaceSpec, dtype: Dtype) -> ValueDtype | None:
    """None where values are stored as keys are, whether that is said or not."""
    if spec.value_dtype == pb.DTYPE_INT8:
        return ValueDtype.INT8
    if spec.value_dtype not in (pb.DTYPE_UNSPECIFIED, WIRE_DTYPES[dtype]):
        raise InvalidArgumentError(
            "spec.value_dtype",
            f"is {dtype_name(spec.value_dtype)}; expected int8, {dtype.value} as dtype, or nothing",
        )
    return None


def to_wire(record: NamespaceRecord) -> pb.Namespace:
    """A namespace for the wire; its tenant stays here."""
    spec = record.spec
    return pb.Namespace(
        name=record.name,
        spec=pb.NamespaceSpec(
            layers=spec.layers,
            heads=spec.heads,
            key_dim=spec.key_dim,
            value_dim=spec.value_dim,
            capacity=spec.capacity,
            dtype=WIRE_DTYPES[spec.dtype],
            index=WIRE_INDEXES[spec.index],
            recall=spec.recall,
            value_dtype=pb.DTYPE_UNSPECIFIED if spec.value_dtype is None else pb.DTYPE_INT8,
        ),
        created_at_ms=record.created_at_ms,
    )


def stats_to_wire(stats: Stats) -> pb.GetStatsResponse:
    """Statistics for the wire."""
    return pb.GetStatsResponse(
        streams=stats.streams,
        entries=stats.entries,
        bytes=stats.bytes,
        banks=[
            pb.BankStats(
                stream=bank.stream,
                layer=bank.layer,
                entries=bank.entries,
                first_id=bank.first_id,
                next_sequence=bank.next_sequence,
                bytes=bank.bytes,
                index=WIRE_INDEXES[IndexChoice(bank.index.index)],
                lists=bank.index.lists,
                probes=bank.index.probes,
                recall=bank.index.recall,
                sampled=bank.index.sampled,
                reason=bank.index.reason,
            )
            for bank in stats.banks
        ],
    )


def facts_to_wire(facts: ServerFacts) -> pb.GetServerInfoResponse:
    """Version, device and those limits that a caller can meet."""
    advertised = [field.name for field in pb.Limits.DESCRIPTOR.fields]
    limits = pb.Limits(**{name: getattr(facts.limits, name) for name in advertised})
    return pb.GetServerInfoResponse(version=facts.version, device=facts.device, limits=limits)
