"""Search and attention on a GPU without a score matrix in its memory, as two Triton kernels.

The first multiplies a tile of queries with a tile of keys at a time and keeps the best of each query
in registers; the second weighs the values of what was found. Storage may be float32, float16 or bfloat16;
sums are float32. Imported only where Triton is installed. Triton's interpreter runs both on CPU tensors,
which is how they are tested; docs/adr/0019-gpu-paths.md says what has run on a card.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recollect_server.engine.torch_merge import best_of, empty

# By name, since Triton is no dependency: a checker need not find it.
triton = importlib.import_module("triton")
tl = importlib.import_module("triton.language")

# Triton looks up what a kernel's annotations name, and knows but its own: hence this, and quotes elsewhere.
if TYPE_CHECKING:
    constexpr = int
else:
    constexpr = tl.constexpr

TOP_K_MAX = 64
"""What is kept of each query lies in registers: with more, they run out."""

PROGRAMS_PER_PROCESSOR = 4
"""Few queries are given to several programs, each with a part of the keys, until the card is busy."""

INTERPRETED_PROCESSORS = 2


def _select(
    queries: "Tensor",
    keys: "Tensor",
    scores: "Tensor",
    slots: "Tensor",
    count: "int",
    live: "int",
    start: "int",
    size: "int",
    again: "int",
    key_stride: "int",
    part_rows: "int",
    dim: "int",
    BM: constexpr,
    BN: constexpr,
    BD: constexpr,
    KP: constexpr,
    WIDEN: constexpr,
) -> None:
    # The best KP of a part of the keys, for BM queries of a head. The live keys are `size` slots from
    # `start` on, then `live - size` from `again` on.
    part, parts = tl.program_id(1), tl.num_programs(1)
    head = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    dims, columns, kept = tl.arange(0, BD), tl.arange(0, BN), tl.arange(0, KP)
    q_rows = queries + (head * count + row[:, None]) * dim
    best = tl.full([BM, KP], float("-inf"), tl.float32)
    best_slots = tl.full([BM, KP], -1, tl.int32)
    first, last = part * part_rows, tl.minimum((part + 1) * part_rows, live)
    for begin in range(first, last, BN):
        place = begin + columns
        slot = tl.where(place < size, start + place, again + place - size)
        k_rows = keys + head * key_stride + slot[None, :].to(tl.int64) * dim
        s = tl.zeros([BM, BN], tl.float32)
        for d in range(0, dim, BD):
            d_of = d + dims
            q_of, k_of = d_of[None, :], d_of[:, None]
            q = tl.load(q_rows + q_of, mask=(row[:, None] < count) & (q_of < dim), other=0.0)
            k = tl.load(k_rows + k_of, mask=(k_of < dim) & (place[None, :] < last), other=0.0)
            if WIDEN:
                q, k = q.to(tl.float32), k.to(tl.float32)
            # Of float32, three products of halves that tensor cores take: as exact as float32, or nearly.
            s = tl.dot(q, k, s, input_precision="tf32x3")
        # NaN, of products beyond float32, compares false: it is no entry.
        s = tl.where((place[None, :] < last) & (s >= float("-inf")), s, float("-inf"))
        top, at = tl.max(s, axis=1, return_indices=True)
        worst, worst_at = tl.min(best, axis=1, return_indices=True)
        # Most tiles bring a query nothing or one key: as many rounds as the luckiest query needs.
        while tl.max((top > worst).to(tl.int32), axis=0) > 0:
            enters = top > worst
            put = enters[:, None] & (kept[None, :] == worst_at[:, None])
            found = begin + at + tl.where(begin + at < size, start, again - size)
            best = tl.where(put, top[:, None], best)
            best_slots = tl.where(put, found[:, None].to(tl.int32), best_slots)
            s = tl.where(enters[:, None] & (columns[None, :] == at[:, None]), float("-inf"), s)
            top, at = tl.max(s, axis=1, return_indices=True)
            worst, worst_at = tl.min(best, axis=1, return_indices=True)
    out = ((head * count + row[:, None]) * parts + part) * KP + kept[None, :]
    tl.store(scores + out, best, mask=row[:, None] < count)
    tl.store(slots + out, best_slots, mask=row[:, None] < count)


def _weigh(
    scores: "Tensor",
    slots: "Tensor",
    values: "Tensor",
    output: "Tensor",
    lse: "Tensor",
    scale: "float",
    count: "int",
    value_stride: "int",
    dim: "int",
    top_k: "int",
    BM: constexpr,
    BD: constexpr,
) -> None:
    """softmax(scale * scores) v of BM queries of a head, in BD of the values' elements."""
    head = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    d_of = tl.program_id(1) * BD + tl.arange(0, BD)
    here = row < count
    query = head * count + row
    biggest = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    summed = tl.zeros([BM, BD], tl.float32)
    for i in range(top_k):
        slot = tl.load(slots + query * top_k + i, mask=here, other=-1)
        score = tl.load(scores + query * top_k + i, mask=here, other=0.0)
        score = tl.where(slot >= 0, score * scale, float("-inf"))
        bigger = tl.maximum(biggest, score)
        # -inf - -inf would be NaN; with 0 instead, exp(-inf) is the 0 that is meant.
        base = tl.where(bigger == float("-inf"), 0.0, bigger)
        shrunk, p = tl.exp(biggest - base), tl.exp(score - base)
        v_mask = (slot[:, None] >= 0) & (d_of[None, :] < dim)
        v_rows = values + head * value_stride + slot[:, None].to(tl.int64) * dim
        v = tl.load(v_rows + d_of[None, :], mask=v_mask, other=0.0)
        summed = summed * shrunk[:, None] + p[:, None] * v.to(tl.float32)
        total = total * shrunk + p
        biggest = bigger
    divisor = tl.where(total == 0.0, 1.0, total)
    out_mask = here[:, None] & (d_of[None, :] < dim)
    tl.store(output + query[:, None] * dim + d_of[None, :], summed / divisor[:, None], mask=out_mask)
    if tl.program_id(1) == 0:
        logged = tl.where(total == 0.0, float("-inf"), biggest + tl.log(divisor))
        tl.store(lse + query, logged, mask=here)


# Triton compiles anew for a number that is 1, or a multiple of 16: of these almost every call has others.
_select_kernel = triton.jit(do_not_specialize=["count", "live", "start", "size", "again"])(_select)
_weigh_kernel = triton.jit(do_not_specialize=["count"])(_weigh)


class FusedSearch:
    """Implements `ExactSearch` by Triton."""

    name = "fused"

    def takes(self, top_k: int) -> bool:
        """See `ExactSearch.takes`."""
        return top_k <= TOP_K_MAX

    def top_k_of(
        self, queries: Tensor, keys: Tensor, live: Sequence[slice], top_k: int
    ) -> tuple[Tensor, Tensor]:
        """See `ExactSearch.top_k_of`."""
        heads, count, dim = queries.shape
        size = sum(s.stop - s.start for s in live)
        if not size or not count:
            return empty(queries, top_k)
        queries = queries.contiguous()
        small, kept = count <= 16, triton.next_power_of_2(top_k)
        wide = queries.dtype is torch.float32  # which takes twice the registers
        block_m, block_n = (16, 128) if small else (32, 64) if wide else (64, 64 if kept > 32 else 128)
        blocks = heads * triton.cdiv(count, block_m)
        wanted = triton.cdiv(PROGRAMS_PER_PROCESSOR * _processors(queries.device), blocks)
        parts = max(1, min(wanted, triton.cdiv(size, 4 * block_n)))
        part_rows = triton.cdiv(triton.cdiv(size, parts), block_n) * block_n
        parts = triton.cdiv(size, part_rows)
        shape = (heads, count, parts * kept)
        scores = torch.empty(shape, dtype=torch.float32, device=queries.device)
        slots = torch.empty(shape, dtype=torch.int32, device=queries.device)
        with torch.cuda.device_of(queries):  # Triton launches on the current one
            _select_kernel[(triton.cdiv(count, block_m), parts, heads)](
                queries,
                keys,
                scores,
                slots,
                count,
                size,
                live[0].start,
                live[0].stop - live[0].start,
                live[-1].start,
                keys.stride(0),
                part_rows,
                dim,
                BM=block_m,
                BN=block_n,
                BD=min(64, max(16, triton.next_power_of_2(dim))),
                KP=kept,
                # The interpreter multiplies the bits of bfloat16 as if they were integers.
                WIDEN=queries.dtype is torch.bfloat16 and not queries.is_cuda,
            )
        return best_of(scores, slots.long(), top_k)

    def weigh(self, scores: Tensor, slots: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See `ExactSearch.weigh`."""
        heads, count, top_k = scores.shape
        dim = values.shape[-1]
        output = torch.zeros((heads, count, dim), dtype=torch.float32, device=scores.device)
        lse = torch.full((heads, count), float("-inf"), dtype=torch.float32, device=scores.device)
        if not count or not values.shape[1]:
            return output, lse
        block_d = min(128, max(16, triton.next_power_of_2(dim)))
        with torch.cuda.device_of(scores):
            _weigh_kernel[(triton.cdiv(count, 16), triton.cdiv(dim, block_d), heads)](
                scores.contiguous(),
                slots.contiguous(),
                values,
                output,
                lse,
                scale,
                count,
                values.stride(0),
                dim,
                top_k,
                BM=16,
                BD=block_d,
            )
        return output, lse


def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return INTERPRETED_PROCESSORS
