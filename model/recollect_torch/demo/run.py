"""The demo from beginning to end: two continuations of one checkpoint, and how well each predicts."""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import recollect
from recollect_torch.demo import checkpoint
from recollect_torch.demo.continuation import (
    ROWS,
    Curve,
    Pace,
    paced_by_clock,
    paced_by_steps,
    paced_like,
    train,
)
from recollect_torch.demo.corpus import Corpus
from recollect_torch.demo.evaluation import Score, evaluate
from recollect_torch.demo.rows import SEGMENT
from recollect_torch.transformer import MemorizingTransformer, TransformerConfig

CONFIG = TransformerConfig(combine="gate", xl_length=192)
"""Both continuations see the last 192 tokens of the segment before. Without that, a small memory helps most
at the beginnings of segments, where it stands in for local context, and a larger one helps less."""

MEMORY_SIZES = (512, 2048, 8192, 32_768)
"""Entries per document, with which the trained model is tried."""

TRAINING_CAPACITY = 32_768

TRAINING_SHARE, READING_SHARE = 0.38, 0.16
"""Of the minutes: for the continuation with memory, and for reading with the largest memory. The rest of
the demo (the control, the smaller memories) does the same steps with less work for each."""

PRETRAINING_SHARE = 0.4
"""Of the minutes, with `--from-scratch`."""

SEGMENTS_MIN, SEGMENTS_MAX = 2 * MEMORY_SIZES[2] // SEGMENT, 2 * MEMORY_SIZES[-1] // SEGMENT
"""Of each held-out document: twice the third largest memory at least, twice the largest at most."""

PEAK = 0.15
"""Learning-rate factor of the continuations, against 1 of the checkpoint's own training."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user asked for.

    Attributes:
        corpus: What to read.
        minutes: How long the demo may take.
        seed: Of the order of documents, and of the model with `from_scratch`.
        steps: Of each continuation; None for as many as fit the minutes.
        from_scratch: Train the starting point here, instead of taking the shipped checkpoint.
    """

    corpus: Corpus
    minutes: float
    seed: int
    steps: int | None = None
    from_scratch: bool = False

    @property
    def seconds_after_start(self) -> float:
        """What is left once the starting point is there."""
        return 60 * self.minutes * (1 - PRETRAINING_SHARE if self.from_scratch else 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        control: The continuation without memory, read without memory.
        without: The continuation with memory, read without.
        with_memory: The same, by memory size.
        control_curve: How the control was trained.
        memory_curve: How the other was trained.
        device: Of the trainer.
        server: Of the memory.
    """

    control: Score
    without: Score
    with_memory: dict[int, Score]
    control_curve: Curve
    memory_curve: Curve
    device: str
    server: str

    @property
    def gain(self) -> float:
        """By how much smaller the bits per byte are with the largest memory than in the control."""
        largest = self.with_memory[max(self.with_memory)]
        return 1 - largest.bits_per_byte / self.control.bits_per_byte


def run(plan: Plan, client: recollect.Client, say: Callable[[str], None]) -> Outcome:
    """Trains both continuations and reads the held-out documents with both.

    Args:
        plan: What the user asked for.
        client: Of the memory server.
        say: Takes a line for the user now and then.
    """
    start = _starting_point(plan, say)
    remembering, control = copy.deepcopy(start), start
    say(f"training goes on from there, {ROWS} documents side by side")
    with _namespace(client, start.config, TRAINING_CAPACITY) as memory:
        memory_curve = train(
            remembering,
            plan.corpus.train,
            memory=memory,
            pace=_pace(plan),
            seed=plan.seed,
            title="with memory   ",
        )
    control_curve = train(
        control,
        plan.corpus.train,
        memory=None,
        pace=paced_like(memory_curve.factors),
        seed=plan.seed,
        title="without memory",
    )
    with_memory, segments = _read_with_memories(remembering, plan, client, say)
    documents = plan.corpus.held_out
    return Outcome(
        control=evaluate(control, documents, memory=None, segments_max=segments, title="control"),
        without=evaluate(remembering, documents, memory=None, segments_max=segments, title="no memory"),
        with_memory=with_memory,
        control_curve=control_curve,
        memory_curve=memory_curve,
        device=_device(),
        server=client.server_info().device,
    )


def _read_with_memories(
    model: MemorizingTransformer, plan: Plan, client: recollect.Client, say: Callable[[str], None]
) -> tuple[dict[int, Score], int]:
    """Reads with every memory size; the largest goes first and says how far the minutes reach."""
    segments, seconds_max = SEGMENTS_MAX, READING_SHARE * plan.seconds_after_start
    scores: dict[int, Score] = {}
    for size in sorted(MEMORY_SIZES, reverse=True):
        with _namespace(client, model.config, size) as memory:
            scores[size] = evaluate(
                model,
                plan.corpus.held_out,
                memory=memory,
                segments_max=segments,
                title=f"memory of {size:6,d}",
                seconds_max=math.inf if scores else seconds_max,
                segments_min=SEGMENTS_MIN,
            )
        if len(scores) == 1:
            segments = scores[size].segments
            names = ", ".join(scores[size].by_document)
            say(f"read {segments * SEGMENT:,} bytes each of {names}")
    return dict(sorted(scores.items())), segments


def _starting_point(plan: Plan, say: Callable[[str], None]) -> MemorizingTransformer:
    torch.manual_seed(plan.seed)
    model = MemorizingTransformer(CONFIG).to(_device())
    if not plan.from_scratch:
        checkpoint.load(model)
        say(f"checkpoint of {model.parameter_count:,} parameters, trained without memory")
        return model
    seconds = PRETRAINING_SHARE * plan.minutes * 60
    say(f"training {model.parameter_count:,} parameters without memory, {seconds / 60:.1f} minutes")
    checkpoint.pretrain(model, plan.corpus.train, seconds=seconds, seed=plan.seed)
    return model


def _pace(plan: Plan) -> Pace:
    if plan.steps is not None:
        return paced_by_steps(plan.steps, peak=PEAK)
    return paced_by_clock(TRAINING_SHARE * plan.seconds_after_start, peak=PEAK)


@contextmanager
def _namespace(
    client: recollect.Client, config: TransformerConfig, capacity: int
) -> Iterator[recollect.Namespace]:
    """A namespace for the demo's model, deleted at the end."""
    name = f"demo-{uuid.uuid4().hex[:12]}"
    head_dim = config.dim // config.heads
    yield client.create_namespace(
        name,
        layers=config.memory_layers,
        heads=config.memory_heads or config.heads,
        key_dim=head_dim,
        value_dim=head_dim,
        capacity=capacity,
        # Half precision would be widened again for each search on a CPU.
        dtype="float16" if client.server_info().device != "cpu" else "float32",
    )
    client.delete_namespace(name)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
