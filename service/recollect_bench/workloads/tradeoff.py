"""Recall against latency: ours for what a namespace may ask for, peers for how hard they search."""

from __future__ import annotations

import recollect
from recollect_bench import datasets
from recollect_bench.memory import (
    LAYER,
    STREAM,
    fill,
    namespace,
    server_and_client,
    settle,
    with_heads,
)
from recollect_bench.peers.installed import PEERS, reason_absent
from recollect_bench.peers.process import Peer, PeerError
from recollect_bench.result import RECALL_PLOT, Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Call, alternate
from recollect_bench.truth import recall

ENTRIES, QUESTION, TOP_K, SAMPLE = 65_536, 512, 32, 128
DATA_SETS = ("keys", "subspace", "sphere")
RECALLS = (0.8, 0.9, 0.95, 0.99)


def run(scale: Scale) -> Outcome:
    """512 queries x 65,536."""
    outcome = Outcome()
    entries = scale.size(ENTRIES)
    for name in scale.data or DATA_SETS:
        data = datasets.make(name, entries=entries, queries=scale.size(QUESTION, least=32), seed=scale.seed)
        lines = outcome.series.setdefault(f"{RECALL_PLOT}{name}, {len(data.queries)} queries", {})
        with server_and_client() as (_, client):
            for wanted in RECALLS:
                space = namespace(client, f"r{wanted}", dim=data.dim, capacity=entries, recall=wanted)
                first = fill(space, data.keys, data.values)
                engine = settle(space, data.queries, seconds=scale.seconds_max / 2)
                asked = with_heads(data.queries)
                ids = space.search(LAYER, asked, top_k=TOP_K, streams=[STREAM]).ids[0, 0] - first
                reached = recall(ids[:SAMPLE], data.keys, data.queries[:SAMPLE])
                calls: dict[str, Call] = {"recollect": _search(space, asked)}
                spread = alternate(calls, rounds=scale.rounds, seconds_max=5)["recollect"]
                lines.setdefault("recollect", []).append((reached, spread.median_s * 1e3))
                outcome.figures.append(
                    Figure(
                        "tradeoff",
                        f"{name}, asked for {wanted}",
                        str(spread),
                        recall=reached,
                        note=str(engine),
                    )
                )
        for peer in scale.peers:
            if (reason := reason_absent(peer)) is not None:
                outcome.absent[peer] = reason
                continue
            try:
                lines[peer] = _sweep(peer, data, scale)
            except PeerError as error:
                outcome.absent[peer] = str(error)
    return outcome


def _sweep(name: str, data: datasets.DataSet, scale: Scale) -> list[tuple[float, float]]:
    points = []
    with Peer(name, dim=data.dim, capacity=len(data.keys), top_k=TOP_K) as peer:
        peer.add(data.keys, data.values)
        for effort in PEERS[name].efforts:
            peer.set_effort(effort)
            calls: dict[str, Call] = {name: lambda: peer.search(data.queries)[0]}
            spread = alternate(calls, rounds=min(5, scale.rounds), seconds_max=5)[name]
            sample = data.queries[:SAMPLE]
            points.append((recall(peer.search(sample)[1], data.keys, sample), spread.median_s * 1e3))
    return points


def _search(space: recollect.Namespace, asked: datasets.Floats) -> Call:
    return lambda: space.search(LAYER, asked, top_k=TOP_K, streams=[STREAM])
