"""What the demo found, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt

from recollect_torch.demo.rows import SEGMENT
from recollect_torch.demo.run import Outcome, Plan


def table(outcome: Outcome) -> str:
    """Bits per byte on held-out text, one line for each way to read it."""
    control = outcome.control.bits_per_byte
    rows = [("control (trained without memory)", "-", control)]
    rows.append(("trained with memory", "none", outcome.without.bits_per_byte))
    for size, score in outcome.with_memory.items():
        rows.append(("trained with memory", f"{size:,}", score.bits_per_byte))
    lines = [
        "| model | memory | bits per byte | against control |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {size} | {bits:.4f} | {bits / control - 1:+.1%} |" for name, size, bits in rows),
    ]
    return "\n".join(lines)


def as_json(plan: Plan, outcome: Outcome) -> str:
    """Everything that was asked for and found."""
    found = {
        "corpus": plan.corpus.name,
        "train_documents": [d.name for d in plan.corpus.train],
        "minutes": plan.minutes,
        "seed": plan.seed,
        "from_scratch": plan.from_scratch,
        "segment_bytes": SEGMENT,
        "steps": len(outcome.memory_curve.factors),
        "gain": outcome.gain,
        **asdict(outcome),
    }
    return json.dumps(found, indent=1)


def picture(plan: Plan, outcome: Outcome, path: Path) -> None:
    """Bits per byte against memory size, and both training curves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    sizes = list(outcome.with_memory)
    bits = [outcome.with_memory[size].bits_per_byte for size in sizes]
    left.plot(sizes, bits, "o-", label="trained with memory")
    left.axhline(outcome.control.bits_per_byte, color="tab:gray", linestyle="--", label="control, without")
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [f"{size:,}" for size in sizes])
    left.set_xlabel("entries in memory")
    left.set_ylabel("bits per byte, held-out text")
    left.set_title(f"{plan.corpus.name}: {outcome.gain:.1%} fewer bits with memory")
    left.legend()
    for curve, name in ((outcome.memory_curve, "with memory"), (outcome.control_curve, "without")):
        right.plot(_smooth(curve.bits_per_byte), label=name)
    right.set_xlabel("step")
    right.set_ylabel("bits per byte, training text")
    right.set_title("the two continuations (moving mean)")
    right.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _smooth(values: list[float], window: int = 10) -> list[float]:
    starts = range(max(1, len(values) - window + 1))
    return [sum(values[i : i + window]) / len(values[i : i + window]) for i in starts]
