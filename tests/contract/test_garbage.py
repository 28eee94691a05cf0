"""What a call took is free when the call is over, and not only when Python looks for garbage."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

import recollect
from tests.server_process import ServerProcess


@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("way", ["embedded", "unix", "tcp"])
@pytest.mark.parametrize("retries", [0, 3])
def test_a_refused_call_keeps_nothing(server: ServerProcess, way: str, retries: int) -> None:
    """Each refused add leaves the caller's arrays and its message in memory, 8 MiB a call."""
    url = {"embedded": "embedded://", "unix": server.unix_url, "tcp": server.tcp_url}[way]
    with recollect.connect(url, retries=retries) as client:
        ns = client.create_namespace(
            f"garbage-{way}-{retries}", layers=[0], heads=1, key_dim=4, value_dim=4, capacity=100
        )
        ns.add(0, np.ones((1, 1, 3, 4)), np.ones((1, 1, 3, 4)), streams=["s"])
        keys = np.full((1, 1, 50, 4), np.nan, np.float32)
        watched = weakref.ref(keys)
        with pytest.raises(recollect.InvalidArgumentError, match="NaN") as refused:
            ns.add(0, keys, keys, streams=["s"])
        del keys, refused
        assert watched() is None
