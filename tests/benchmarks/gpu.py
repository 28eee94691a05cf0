"""Attention and search on a GPU, against what the card itself can do, as one report.

    python -m tests.benchmarks.gpu

writes docs/benchmarks/gpu.md and gpu.json where PyTorch finds an NVIDIA GPU. Where it finds none it says so,
and writes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from recollect_bench.report import machine
from recollect_bench.timing import Spread
from tests.benchmarks import reports
from tests.benchmarks.gpu_cases import PRODUCT, STORE, WAYS, Bench, Case, Sizes

NO_GPU = "bench-gpu: PyTorch finds no NVIDIA GPU here, so nothing is measured and nothing is written."
ATTEND_OF_PRODUCT_MIN, SEARCH_MS_MAX = 0.5, 10.0
"""Goals, for the whole benchmark."""

HOW = """\
Who is compared takes turns, call by call. Times are medians; the range beside them holds the middle half.
`the store` is what the server calls: host arrays in, host arrays out, in the way that the engine chose by
measuring. `faiss` (`knn_gpu`), `product` (batched, in tiles) and `fused` (Triton) are those ways alone, and
`torch matmul + topk` is what one writes without a library, all on tensors that are on the card already.
`the product alone` is one float16 `torch.bmm` of the same question that writes all scores. TFLOP/s are the
product's operations in the time taken, whatever was done in it; GB/s are those of reading each key once.
Recall is against a float32 product, for {sampled} queries at most; equal scores are equally good."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured."""

    card: str
    sizes: Sizes
    seed: int
    limits: dict[str, float]
    attend: Case
    search: Case
    decode: dict[str, Spread]
    left_out: dict[str, str]

    @property
    def goals(self) -> dict[str, bool]:
        """What should be, and whether it is."""
        part, taken_ms = self.attend.of_product(STORE), 1e3 * self.search.times[STORE].median_s
        recall = self.search.recall[STORE]
        return {
            f"attend runs at {part:.2f} of the product's speed (goal: at least {ATTEND_OF_PRODUCT_MIN})": part
            >= ATTEND_OF_PRODUCT_MIN,
            f"search takes {taken_ms:.3g} ms at a recall of {recall:.3f} (goal: at most {SEARCH_MS_MAX:g} at "
            f"{self.sizes.recall:g})": taken_ms <= SEARCH_MS_MAX and recall >= self.sizes.recall,
        }

    def page(self) -> str:
        """As Markdown."""
        parts = [
            "# On a GPU",
            f"{self.card}, CUDA {torch.version.cuda}. {machine()}\n\n`python -m tests.benchmarks.gpu`, seed {self.seed}.",
            HOW.format(sampled=self.sizes.sampled),
            f"The card's limits: {self.limits['product_tflops']:.3g} TFLOP/s (a square product of float16, "
            f"{self.sizes.square:,} a side), {self.limits['copy_gb_s']:.4g} GB/s (copies, read and written).",
            "\n".join(f"- {said}: {'met' if met else '**missed**'}" for said, met in self.goals.items()),
            *(self._section(case) for case in (self.attend, self.search)),
            f"## decode: {self.sizes.decoding_rows} rows x {self.sizes.heads} heads x 1 query over "
            f"{self.sizes.decoding_entries:,} x {self.sizes.dim} float16",
            "\n".join(f"- banks {name}: {spread}" for name, spread in self.decode.items()),
            *(f"Left out by the engine's own choice: {name} ({why})." for name, why in self.left_out.items()),
        ]
        return "\n\n".join(parts) + "\n"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        cases = {"attend": asdict(self.attend), "search": asdict(self.search)}
        return {
            "card": self.card,
            "machine": machine(),
            "sizes": asdict(self.sizes),
            "seed": self.seed,
            "limits": self.limits,
            "goals": self.goals,
            **cases,
            "decode": {name: asdict(spread) for name, spread in self.decode.items()},
            "left_out": self.left_out,
        }

    def _section(self, case: Case) -> str:
        rows = [
            "| | time | TFLOP/s, of the card's | GB/s, of its copies | of the product's speed | recall |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for name, spread in case.times.items():
            rate, read = case.tflops(name), case.keys_gb_s(name)
            recall = "" if name == PRODUCT else f"{case.recall[name]:.3f}"
            cells = (
                name,
                str(spread),
                f"{rate:.3g}, {rate / self.limits['product_tflops']:.2f}",
                f"{read:.3g}, {read / self.limits['copy_gb_s']:.2f}",
                f"{case.of_product(name):.2f}",
                recall,
            )
            rows.append(f"| {' | '.join(cells)} |")
        absent = [f"Not beside it: {name} ({why})." for name, why in case.absent.items()]
        return "\n\n".join([f"## {case.title}", case.remark, "\n".join(rows), *absent])


def measure(device: torch.device, sizes: Sizes, *, seed: int = 0, without: Sequence[str] = ()) -> Report:
    """Measures everything on one device."""
    bench = Bench(device, sizes, seed=seed, without=without)
    limits = bench.limits()
    attend = bench.attend()
    search = bench.search()
    decode = bench.decode()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return Report(card, sizes, seed, limits, attend, search, decode, bench.left_out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the report, where there is a GPU."""
    parser = argparse.ArgumentParser(description="Attention and search on a GPU, against the card's limits.")
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument(
        "--without", choices=WAYS, action="append", default=[], help="leave a way to search out"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return
    report = measure(torch.device("cuda"), Sizes(), seed=options.seed, without=options.without)
    reports.write("gpu", report.page(), report.as_dict())


if __name__ == "__main__":
    main()
