"""When a bank is searched by an inverted file, and how many of its lists: held to a recall by samples.

Training, filling and retraining are done in pieces, after reads, as much at a time as the read itself was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recollect_server.domain import work
from recollect_server.domain.ports import IndexState
from recollect_server.domain.steps import Steps
from recollect_server.engine.samples import place
from recollect_server.engine.torch_kmeans import centroids_of, chunk_rows
from recollect_server.engine.torch_lists import LISTS_MAX, SPILL_SHARE, Lists
from recollect_server.engine.torch_merge import recall_of
from recollect_server.engine.torch_rule import EXACT, IVF, IndexRule
from recollect_server.engine.torch_scan import Found, Pause, exact, probed
from recollect_server.engine.torch_search import ExactSearch, ProductSearch

log = logging.getLogger(__name__)

SAMPLE_PER_LIST = 32
SAMPLED_QUERIES = 32
SAMPLED_AT_ONCE = 8
"""So many queries of a call are compared with exact search: when the file is new, and later."""

SAMPLING_SHARE = 4
"""Comparing takes one part in so many of the work of the searches."""

COMPARED_MIN = 256
"""Until so many queries have been compared each call brings some: the first may have been few."""

PROBED_MAX = 4
"""Who would have to look into more than one list in so many is searched exactly."""

DRIFT = 0.85
"""Keys that are only this share as near to their centroids as at training, or less, are strangers."""

STRANGERS = 0.5 / SPILL_SHARE
"""With such a share of the entries strangers, lists are made anew: half of what the spill lists hold."""


@dataclass(slots=True)
class _Watch:
    """What has been seen of a trained file."""

    entries: int
    fit: float
    probes: int = 0
    probes_at_first: int = 0
    recall: float | None = None
    steady: int = 0
    unsampled: int = 0
    compared: int = 0
    fit_now: float = field(default=0.0)
    strangers: int = 0

    def __post_init__(self) -> None:
        self.fit_now = self.fit


class BankIndex:
    """The index of one bank.

    Args:
        rule: What the namespace asks for.
    """

    def __init__(self, rule: IndexRule) -> None:
        self._rule = rule
        self._product: ExactSearch = ProductSearch()
        self._sampled, self._found = 0, 0.0
        self._start = self._total = self._written = 0
        self._retry_at = 0
        self._reason = ""
        self._has_told = False
        self._forget()

    def _forget(self) -> None:
        for lists in (getattr(self, "_lists", None), getattr(self, "_draft", None)):
            if lists is not None:
                lists.clear()
        self._lists: Lists | None = None
        self._draft: Lists | None = None
        self._building: Steps[None] | None = None
        self._watch = _Watch(entries=0, fit=0.0)

    @property
    def state(self) -> IndexState:
        """See `Store.index_state`."""
        lists, watch = self._lists, self._watch
        if lists is None or not watch.probes:
            return IndexState(sampled=self._sampled, found=self._found, reason=self._reason)
        return IndexState(
            index=IVF,
            lists=lists.centroids.shape[1],
            probes=watch.probes,
            recall=watch.recall,
            sampled=self._sampled,
            found=self._found,
        )

    @property
    def bytes(self) -> int:
        """What the lists take, those that are being made included."""
        return sum(lists.bytes for lists in (self._lists, self._draft) if lists is not None)

    def search_work(self, queries: int, entries: int, *, dim: int) -> int:
        """See `Store.search_work`; of one head."""
        lists, probes = self._lists, self._watch.probes
        if lists is None or not probes:
            return work.searched(queries, entries, dim)
        count = lists.centroids.shape[1]
        return queries * count * dim + work.searched(queries * probes, entries // count, dim)

    # ---- what happens to the bank ----

    def wrote(self, slots: slice, keys: Tensor) -> None:
        """Keys [H, T, D] have been written to `slots`. Where lists cannot follow there are none any more."""
        self._written += slots.stop - slots.start
        try:
            self._take_in(slots, keys)
        except Exception as error:  # a full card, as a rule: what was written is there all the same
            self._fail("could not take in new entries", error, keeps_lists=False)

    def _take_in(self, slots: slice, keys: Tensor) -> None:
        size = slots.stop - slots.start
        for each in (self._lists, self._draft):
            if each is not None:
                each.make_way(slots.start, size)
        if self._lists is None or not size:
            return
        if self._lists.end != slots.start:
            self._lists.restart(slots.start)
        watch, least = self._watch, DRIFT * self._watch.fit
        fits, near = self._lists.add(keys, near=watch.fit_now, least=least)
        watch.fit_now = float(near)
        watch.strangers += size * (watch.fit_now < least)
        if not fits:
            self._give_up("the keys have changed" if watch.strangers else "the keys gather in too few lists")

    def moved(self, slots: Tensor, allocated: int, *, head: int = 0) -> None:
        """The live entries were in `slots`, oldest first; they are now from `head` on, of `allocated`.

        Where lists cannot follow there are none any more.
        """
        try:
            self._renumber(slots, allocated, head)
        except Exception as error:
            self._fail("could not follow entries that moved", error, keeps_lists=False)

    def _renumber(self, slots: Tensor, allocated: int, head: int) -> None:
        self._stop_building()
        if self._lists is None:
            return
        size = slots.numel()
        if size and (self._lists.count < size or allocated < size):
            self._forget()
            return
        self._lists, fits = self._lists.renumbered(slots, allocated, head=head)
        if not fits:
            self._give_up("the keys gather in too few lists")

    def clear(self) -> None:
        """The bank is empty, and nothing of its keys may stay."""
        self._forget()
        self._reason, self._retry_at = "", 0

    # ---- reads ----

    def is_too_small(self, live: Sequence[slice]) -> bool:
        """Whether it is searched exactly, and no lists are to be made; takes note of what is live."""
        if self._lists is not None or self._draft is not None:
            return False
        self._at(live)
        return not self._is_due()

    def search(
        self,
        way: ExactSearch,
        queries: Tensor,
        keys: Tensor,
        *,
        live: Sequence[slice],
        top_k: int,
        pause: Pause,
    ) -> Steps[Found]:
        """As `exact`, or by the inverted file where there is one that holds the recall."""
        try:
            self._at(live)
        except Exception as error:
            self._fail("could not follow entries that left", error, keeps_lists=False)
        lists = self._lists
        if lists is not None and 8 * top_k > self._total:
            lists = None  # so many are wanted that most lists would be read
        if lists is not None and not self._watch.probes:
            judging = self._calibrate(lists, queries, keys, live=live, top_k=top_k, pause=pause)
            yield from self._beside(judging, "could not be judged")
            lists = self._lists
        heads, count, dim = queries.shape
        if lists is None:
            found = yield from exact(way, queries, keys, live=live, top_k=top_k, pause=pause)
            done = heads * work.searched(count, self._total, dim)
        else:
            probes = self._watch.probes
            found = yield from probed(lists, queries, keys, probes=probes, top_k=top_k, pause=pause)
            done = heads * work.searched(count * probes, lists.count // lists.centroids.shape[1], dim)
            sampling = self._sample(found, queries, keys, live=live, done=done, pause=pause)
            yield from self._beside(sampling, "could not be compared with exact search")
        yield from self._beside(self._build_some(keys, done, pause), "could not be trained")
        return found

    def _beside(self, steps: Steps[None], what: str) -> Steps[None]:
        """Takes steps that are no part of an answer: it is given though they fail."""
        try:
            yield from steps
        except Exception as error:
            self._fail(what, error, keeps_lists=self._watch.probes > 0)

    def _at(self, live: Sequence[slice]) -> None:
        """Takes note of what is live."""
        self._total = sum(s.stop - s.start for s in live)
        if not self._total:
            return
        self._start = live[0].start
        for each in (self._lists, self._draft):
            if each is not None:
                each.begin_at(self._start)
        if self._draft is not None and self._draft.count > self._total:
            self._stop_building()
        if self._lists is not None and self._lists.count != self._total:
            self._forget()  # it does not cover what is live: made anew rather than wrong
            self._retry_at = 0

    def _calibrate(
        self, lists: Lists, queries: Tensor, keys: Tensor, *, live: Sequence[slice], top_k: int, pause: Pause
    ) -> Steps[None]:
        """Finds how many lists to look into, by some of the queries."""
        step = -(-queries.shape[1] // SAMPLED_QUERIES)
        some = queries[:, ::step].contiguous()
        wanted = yield from exact(self._product, some, keys, live=live, top_k=top_k, pause=pause)
        compared = some.shape[0] * some.shape[1]
        most = max(1, lists.centroids.shape[1] // PROBED_MAX)
        probes = 1
        while True:
            found = yield from probed(lists, some, keys, probes=probes, top_k=top_k, pause=pause)
            recall = recall_of(found[0], wanted[0])
            if recall >= self._rule.recall + (1 - self._rule.recall) / 4:
                self._watch.probes = self._watch.probes_at_first = probes
                self._watch.recall = recall
                self._found += compared * recall
                self._sampled += compared
                return
            if probes == most:
                self._found += compared  # exact search answered them, and does from here on
                self._sampled += compared
                self._give_up(f"a recall of {self._rule.recall:g} would take more than {most} lists")
                return
            probes = min(most, max(probes + 1, probes * 3 // 2))

    def _sample(
        self, found: Found, queries: Tensor, keys: Tensor, *, live: Sequence[slice], done: int, pause: Pause
    ) -> Steps[None]:
        """Compares some answers with exact search now and then, and moves the probes."""
        watch = self._watch
        heads, count, dim = queries.shape
        step = -(-count // SAMPLED_AT_ONCE)
        these = slice(place(watch.compared, step), None, step)
        some = queries[:, these].contiguous()
        watch.unsampled += done
        cost = heads * work.searched(some.shape[1], self._total, dim)
        is_known = watch.compared >= COMPARED_MIN
        if not count or (is_known and watch.unsampled < SAMPLING_SHARE * cost):
            return
        watch.unsampled = 0
        wanted = yield from exact(self._product, some, keys, live=live, top_k=found[0].shape[-1], pause=pause)
        recall, goal = recall_of(found[0][:, these], wanted[0]), self._rule.recall
        self._found += heads * some.shape[1] * recall
        self._sampled += heads * some.shape[1]
        watch.compared += heads * some.shape[1]
        watch.recall = recall if watch.recall is None else 0.7 * watch.recall + 0.3 * recall
        watch.steady += 1
        if watch.recall < goal:
            watch.probes = watch.probes * 5 // 4 + 1
            watch.steady, watch.recall = 0, goal
            assert self._lists is not None
            if watch.probes * PROBED_MAX > self._lists.centroids.shape[1]:
                self._give_up(f"a recall of {goal:g} would take more than {watch.probes} lists")
        elif watch.steady >= 16 and watch.recall > goal + 0.6 * (1 - goal) and watch.probes > 1:
            watch.probes -= max(1, watch.probes // 8)
            watch.steady, watch.recall = 0, None

    # ---- training ----

    def _build_some(self, keys: Tensor, allowed: int, pause: Pause) -> Steps[None]:
        """Trains for about as much work as is allowed, if there is something to train."""
        if self._building is None:
            if not self._is_due():
                return
            self._building = self._build(keys)
        done = 0
        building = self._building
        while done <= allowed:
            piece = next(building, None)
            if piece is None:
                self._building = None
                return
            done += piece
            yield from pause(piece)

    def _is_due(self) -> bool:
        rule, lists, watch = self._rule, self._lists, self._watch
        least = rule.entries_least
        if rule.index == EXACT:
            return False
        if self._total < least:
            self._reason = f"there are fewer than {least} entries"
            return False
        if self._written < self._retry_at:
            return False
        if lists is None:
            self._reason = "the inverted file is being trained"
            return True
        drifted = watch.strangers > STRANGERS * self._total
        strained = watch.probes > 4 * max(1, watch.probes_at_first)
        return drifted or strained or self._total > 4 * watch.entries

    def _build(self, keys: Tensor) -> Steps[None]:
        """A new inverted file, beside the one that answers; replaces it in the last piece."""
        total = self._total
        self._retry_at = self._written + total // 2
        lists = min(LISTS_MAX, max(1, 2 * int(total**0.5)))
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(total, generator=generator)[: SAMPLE_PER_LIST * lists]
        slots = (self._start + order.to(keys.device)) % keys.shape[1]
        centroids = []
        for head in range(keys.shape[0]):
            sample = keys[head, slots]
            try:
                centroids.append((yield from centroids_of(sample, lists, generator=generator)))
            finally:
                sample.zero_()  # a copy, which is to leave nothing behind
        draft = Lists(torch.stack(centroids), keys.shape[1], head=self._start)
        self._draft, fit = draft, 0.0
        size = chunk_rows(lists * keys.shape[0])
        while draft.count < self._total:
            part = min(size, self._total - draft.count)
            places = (draft.end + torch.arange(part, device=keys.device)) % keys.shape[1]
            block = keys[:, places]
            try:
                fits, near = draft.add(block)
            finally:
                block.zero_()
            if not fits:
                self._draft = None
                self._give_up("the keys gather in too few lists")
                return
            fit += float(near) * part / self._total
            yield keys.shape[0] * part * lists * keys.shape[2]
        if self._lists is not None:
            self._lists.clear()
        self._lists, self._draft = draft, None
        self._watch = _Watch(entries=self._total, fit=fit)

    def _stop_building(self) -> None:
        if self._draft is not None:
            self._draft.clear()
        self._building = self._draft = None
        if self._lists is None:
            self._retry_at = 0

    def _fail(self, what: str, error: Exception, *, keeps_lists: bool) -> None:
        """Frees what was begun, and rests until as much again has been written."""
        if not self._has_told:
            log.warning("an inverted file %s: %r", what, error)
        self._has_told = True
        if not keeps_lists:
            self._forget()
        self._stop_building()
        self._reason, self._retry_at = f"the inverted file {what}", self._written + max(1, self._total // 2)

    def _give_up(self, reason: str) -> None:
        """Exact search answers until as much again has been written."""
        self._forget()
        self._reason, self._retry_at = reason, self._written + max(1, self._total // 2)
