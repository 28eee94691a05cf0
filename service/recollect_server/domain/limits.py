"""Every bound of the server, in one place. `GetServerInfo` advertises those that a caller can meet."""

from __future__ import annotations

from dataclasses import dataclass

FAISS_TOP_K_MAX = 2048
"""GPU FAISS aborts the process beyond this k, so no setting may exceed it."""

MESSAGE_BYTES_MOST = 2**31 - 2**20
"""gRPC counts the bytes of a message in 31 bits: those of its tensors, and of what is around them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on calls and on what is stored. All are inclusive."""

    message_bytes_max: int = 4 * 1024 * 1024
    """Larger calls are split by the client. While one is copied nobody else's call moves on (ADR 16)."""
    stream_bytes_max: int = 64 * 1024 * 1024
    """Of an answer that is sent in chunks (ADR 22). The server holds as much until the caller has it."""
    regions_max: int = 64
    """Regions of memory that the server shares with callers on its machine, each as large as such an answer
    at most (ADR 23). Who gets none sends and gets messages as over a network."""
    regions_of_tenant_max: int = 16
    top_k_max: int = 1024
    rows_max: int = 1024
    tokens_max: int = 65_536
    layers_max: int = 256
    heads_max: int = 256
    dim_max: int = 1024
    capacity_max: int = 16_777_216
    name_length_max: int = 128
    page_size_max: int = 1000
    page_size_default: int = 100
    namespaces_max: int = 1024
    streams_max: int = 65_536
    ids_max: int = 1_048_576
    request_id_length_max: int = 64
    request_ids_remembered: int = 4096
    """Answers to mutating calls kept per tenant, so that a repeat gets the first answer."""
    memory_bytes_max: int = 8 * 1024**3
    """Keys and values of all namespaces together."""
    calls_waiting_max: int = 1024
    """Calls of all tenants that wait for the device; the next one is refused."""
    calls_in_flight_max: int = 2048
    """Calls of all tenants that were accepted and not yet answered."""
    bytes_in_flight_max: int = 1024**3
    """Of their messages, and of the answers that are streamed to them."""
    receive_s_max: int = 60
    """Seconds that a caller has to send its message once it was let in, and to take a part of an answer."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name} is {getattr(self, name)}; it must be at least 1")
        if self.top_k_max > FAISS_TOP_K_MAX:
            raise ValueError(f"limits.top_k_max is {self.top_k_max}; FAISS allows {FAISS_TOP_K_MAX} at most")
        if self.message_bytes_max > MESSAGE_BYTES_MOST:
            raise ValueError(
                f"limits.message_bytes_max is {self.message_bytes_max}; "
                f"gRPC allows {MESSAGE_BYTES_MOST} at most"
            )
