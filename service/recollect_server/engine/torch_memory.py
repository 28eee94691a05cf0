"""A card whose memory is full, told in the domain's words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import torch

from recollect_server.domain.errors import MemoryExhaustedError
from recollect_server.domain.steps import Result, Steps

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")


def is_out_of_memory(error: Exception) -> bool:
    """Whether the same may succeed later. FAISS, and CUDA below both, say so in a message alone."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "alloc fail" in said


def exhausts(work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Work on a card that raises MemoryExhaustedError where there is no memory left for it."""

    @wraps(work)
    def done(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with _told():
            return work(*args, **kwargs)

    return done


def exhausts_in_steps(steps: Callable[Arguments, Steps[Result]]) -> Callable[Arguments, Steps[Result]]:
    """As `exhausts`, of work in steps."""

    @wraps(steps)
    def taken(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Steps[Result]:
        with _told():
            return (yield from steps(*args, **kwargs))

    return taken


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # What the card says is of all tenants together: it is for the log.
        log.warning("the device's memory is full: %s", error)
        raise MemoryExhaustedError(
            "the device has too little free memory for this call; nothing was stored or removed. Evict, "
            "delete a namespace, or ask for less at a time"
        ) from error
