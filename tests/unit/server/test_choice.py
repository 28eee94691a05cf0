"""Lists or exact search: estimates that are wrong for a machine are found out by measuring."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from recollect_server.domain.spec import IndexChoice
from recollect_server.domain.steps import Steps, run_through
from recollect_server.engine import kernels, upkeep
from recollect_server.engine.choice import TRIED_AFTER, TRIED_AFTER_MAX, Choice, timed
from recollect_server.engine.ivf import InvertedFile
from recollect_server.engine.kernel_store import KernelStore
from tests.unit.server.indexed_bank import IndexedBank, Mixture

MS = 1e-3


def ask(made: Choice, count: int, *, exact_s: float, lists_s: float, queries: int = 512) -> list[bool]:
    """Asks as often, where the two really take so long; which questions lists answered."""
    taken = []
    for _ in range(count):
        lists = made.takes_lists(queries, exact=1000, lists=800)
        seconds, work = (lists_s, 800) if lists else (exact_s, 1000)
        made.measured(queries, seconds, took_lists=lists, work=work)
        taken.append(lists)
    return taken


def test_estimates_decide_until_something_is_measured() -> None:
    """A bank that nobody asked yet has no way to answer, or one that is estimated to be slower."""
    made = Choice()
    assert made.takes_lists(8, exact=1000, lists=999)
    assert not made.takes_lists(8, exact=1000, lists=1001)
    assert made.prefers_lists(8, exact=1000, lists=999)


def test_what_was_measured_can_be_looked_at_meanwhile() -> None:
    """A call that is estimated while another is measured fails, since nothing seems to be known any more."""
    made = Choice()
    ask(made, TRIED_AFTER + 1, exact_s=1 * MS, lists_s=2 * MS)  # both ways
    known = [(size.exact, size.lists) for size in made._sizes.values()]
    before = [(tuple(exact), tuple(lists)) for exact, lists in known]
    for took_lists in (False, True, False):
        made.measured(512, 1 * MS, took_lists=took_lists, work=1000)
    assert [(tuple(exact), tuple(lists)) for exact, lists in known] == before


def test_a_wrong_estimate_is_found_out() -> None:
    """On another machine than that of the estimates, questions are answered by the slower way for ever."""
    made = Choice()
    taken = ask(made, 200, exact_s=1 * MS, lists_s=2 * MS)
    assert all(taken[:TRIED_AFTER])
    assert sum(taken[TRIED_AFTER + 1 :]) <= 5
    assert not made.prefers_lists(512, exact=1000, lists=800)


def test_a_right_estimate_is_doubted_less_and_less() -> None:
    """Trying the slower way takes a good part of the time."""
    made = Choice()
    taken = ask(made, 4 * TRIED_AFTER_MAX, exact_s=2 * MS, lists_s=1 * MS)
    assert 5 <= taken.count(False) <= 10
    tried = np.flatnonzero(~np.array(taken))
    assert (np.diff(np.diff(tried)) >= 0).all()  # ever farther apart


@pytest.mark.parametrize(("lists_s", "exact_s"), [(0.1 * MS, 0.5 * MS), (40 * MS, 70 * MS)])
def test_what_is_far_slower_is_tried_once(lists_s: float, exact_s: float) -> None:
    """Now and then a question takes many times as long as it should, or so much longer that it is felt."""
    taken = ask(Choice(), 2000, exact_s=exact_s, lists_s=lists_s)
    assert taken.count(False) <= 1


def test_what_is_estimated_as_far_slower_is_not_tried() -> None:
    """A bank of millions is searched exactly, to see how long that takes."""
    made = Choice()
    for _ in range(1000):
        assert made.takes_lists(8, exact=5000, lists=1000)
        made.measured(8, 0.1 * MS, took_lists=True, work=1000)


def test_times_change() -> None:
    """What was slower once, while others used the machine, is thought so for ever."""
    made = Choice()
    ask(made, 100, exact_s=1 * MS, lists_s=2 * MS)
    assert sum(ask(made, 300, exact_s=1 * MS, lists_s=0.5 * MS)) >= 150
    assert all(ask(made, 10, exact_s=1 * MS, lists_s=0.5 * MS))


def test_one_slow_answer_changes_nothing() -> None:
    """A question that was interrupted has the next ones answered by the slower way."""
    made = Choice()
    ask(made, 50, exact_s=2 * MS, lists_s=1 * MS)
    made.measured(512, 1.0, took_lists=True, work=800)
    assert made.prefers_lists(512, exact=1000, lists=800)


def test_sizes_of_questions_are_told_apart() -> None:
    """What was measured of one query decides how thousands are answered."""
    made = Choice()
    ask(made, 50, exact_s=1 * MS, lists_s=2 * MS, queries=4096)
    assert not made.prefers_lists(4096, exact=1000, lists=800)
    assert made.prefers_lists(1, exact=1000, lists=800)


def test_only_the_time_of_steps_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tenants' calls took between two steps counts as this one's, which looks slow for it."""
    clock, noted = [0.0], list[float]()
    monkeypatch.setattr("recollect_server.engine.choice.time.perf_counter", lambda: clock[0])

    def work() -> Steps[str]:
        clock[0] += 1
        left = yield 5
        clock[0] += left
        yield 6
        clock[0] += 4
        return "answer"

    steps = timed(work(), noted.append)
    done = [next(steps)]
    clock[0] += 100
    done.append(steps.send(2))
    clock[0] += 100
    with pytest.raises(StopIteration) as finished:
        steps.send(0)
    assert (done, finished.value.value, noted) == ([5, 6], "answer", [7.0])


@pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")
@pytest.mark.parametrize("slower", ["lists", "exact"])
def test_a_bank_takes_what_is_faster(monkeypatch: pytest.MonkeyPatch, slower: str) -> None:
    """What is measured is of the other way, or is not asked when a bank answers."""
    monkeypatch.setitem(upkeep.ENTRIES_MIN, IndexChoice.AUTO, 1000)
    clock, asked = [0.0], {"lists": 0, "exact": 0}
    monkeypatch.setattr("recollect_server.engine.choice.time.perf_counter", lambda: clock[0])

    def counted(way: str, real: Any) -> Any:
        def steps(*arguments: Any, **named: Any) -> Generator[int, int, Any]:
            asked[way] += 1
            answer = yield from real(*arguments, **named)
            clock[0] += 0.003 if way == slower else 0.001
            return answer

        return steps

    made, bank = Mixture(), IndexedBank(4000, index=IndexChoice.AUTO, heads=2)
    bank.add(bank.draw(made, 4000))
    monkeypatch.setattr(upkeep, "exact_work", lambda queries, entries, dim: 1_000_000_000)
    monkeypatch.setattr("recollect_server.engine.kernel_store.exact_work", lambda *_: 1_000_000_000)
    monkeypatch.setattr(InvertedFile, "search_work", lambda *_, **__: 900_000_000)
    bank.trained(made)
    monkeypatch.setattr(upkeep.Index, "upkeep_work", lambda *_: 0)
    monkeypatch.setattr(InvertedFile, "search", counted("lists", InvertedFile.search))
    monkeypatch.setattr(KernelStore, "_scanned", counted("exact", KernelStore._scanned))
    for _ in range(200):
        run_through(bank.bank.search(bank.draw(made, 64), 10))
    assert asked[slower] <= 0.15 * sum(asked.values()), asked
    assert asked[slower] >= 2
