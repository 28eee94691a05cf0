"""Who of gRPC's threads waits for what arrives: to be said before gRPC is imported."""

from __future__ import annotations

from importlib.metadata import version

VARIABLE = "GRPC_EXPERIMENTS"

EXPERIMENT = "-event_engine_poller_for_python"
"""Since gRPC 1.80 threads of its own wait, and wake up the one that is to have what comes. With this that one
waits itself, as before: half the switches, 50 us of a small call."""

KNOWN_FROM, KNOWN_BEFORE = (1, 76), (1, 83)
"""What others do not know they complain of, in a line of their own that is no JSON."""


def experiments() -> str:
    """What `VARIABLE` is to be for the gRPC that is installed; "": nothing."""
    major, minor = version("grpcio").split(".")[:2]
    return EXPERIMENT if KNOWN_FROM <= (int(major), int(minor)) < KNOWN_BEFORE else ""
