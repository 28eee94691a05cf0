"""Runs one peer in its own environment: NumPy and the peer's own packages are all that is needed.

A request is a line of JSON on standard input, then the bytes of its arrays; answers are alike, on standard
output.
The clock runs here, around the peer's own calls, so nothing of this protocol is in a peer's time.
"""

import json
import os
import sys
import time

import numpy as np


def serve(peer_class):
    """Answers requests until standard input ends."""
    source = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    peer = None
    while line := source.readline():
        request = json.loads(line)
        arrays = [_read(source, *about) for about in request.pop("arrays")]
        try:
            if request["op"] == "open":
                begun = time.perf_counter()
                peer = peer_class(**request["settings"])
                _answer(answers, {"seconds": time.perf_counter() - begun})
            elif request["op"] == "step":
                _answer(answers, *_step(peer, arrays, request["evict"]))
            else:
                _answer(answers, *_one(peer, request["op"], arrays, request))
        except Exception as error:
            _answer(answers, {"error": f"{type(error).__name__}: {error}"[:500]})
    if hasattr(peer, "close"):
        peer.close()


def _step(peer, arrays, evict):
    """The streaming job: add, search with values, evict; what of it took how long."""
    keys, values, queries = arrays
    times = [time.perf_counter()]
    peer.add(keys, values)
    times.append(time.perf_counter())
    ids, found = peer.search(queries)
    times.append(time.perf_counter())
    if evict:
        peer.evict(evict)
    times.append(time.perf_counter())
    parts = dict(zip(("add_s", "search_s", "evict_s"), np.diff(times).tolist()))
    return (
        {"seconds": times[-1] - times[0], **parts},
        np.asarray(ids, np.int64),
        np.asarray(found, np.float32),
    )


def _one(peer, op, arrays, request):
    begun = time.perf_counter()
    if op == "add":
        peer.add(*arrays)
        return ({"seconds": time.perf_counter() - begun},)
    if op == "search":
        ids, _ = peer.search(*arrays)
        return {"seconds": time.perf_counter() - begun}, np.asarray(ids, np.int64)
    if op == "tune":
        peer.tune(request["effort"])
        return ({"seconds": time.perf_counter() - begun},)
    raise ValueError(f"no such request: {op}")


def _read(source, dtype, shape):
    array = np.empty(shape, dtype)
    view = memoryview(array).cast("B") if array.nbytes else memoryview(b"")
    done = 0
    while done < array.nbytes:
        done += source.readinto(view[done:])
    return array


def _answer(answers, fields, *arrays):
    arrays = [np.ascontiguousarray(array) for array in arrays]
    about = [[array.dtype.str, list(array.shape)] for array in arrays]
    answers.write(json.dumps({**fields, "arrays": about}).encode() + b"\n")
    for array in arrays:
        answers.write(array.tobytes())
    answers.flush()
