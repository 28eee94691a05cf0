"""One namespace, seen by the sync client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from recollect._administration import create_namespace, get_stats
from recollect._attends import prepare_attend
from recollect._checks import Include, check_include
from recollect._coalescing import Coalescing
from recollect._reads import check_read, prepare_attend_backward, prepare_search
from recollect._results import (
    A,
    AddResult,
    Array,
    AttendResult,
    EvictResult,
    NamespaceSpec,
    QueryDtype,
    SearchResult,
    Stats,
)
from recollect._runner import Runner
from recollect._session import Session, open_session
from recollect._writes import prepare_add, prepare_evict


class Namespace:
    """One named memory of a tenant, for one model. Made by `Client.create_namespace` and `Client.namespace`.

    Arrays are NumPy arrays or torch tensors; results come in the kind, dtype and device of the queries.
    Every method takes `timeout_s`, seconds for the whole call with its parts and retries (None: the
    client's), and raises an error of the tree in `recollect.errors`.
    """

    def __init__(
        self, name: str, spec: NamespaceSpec, runner: Runner, *, coalescing: Coalescing | None = None
    ) -> None:
        self.name = name
        self.spec = spec
        self._runner = runner
        self._coalescing = coalescing

    def __repr__(self) -> str:
        return f"Namespace({self.name!r}, {self.spec})"

    def add(
        self,
        layer: int,
        keys: Array,
        values: Array,
        *,
        streams: Sequence[str],
        lengths: Sequence[int] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> AddResult:
        """Appends entries; they can be found when this returns. The oldest make room at capacity.

        A call beyond the server's limits is sent in parts, and is then not atomic: if one part fails, those
        before it stay. Repeat such a call with the same `request_id`, and no entry is added twice.

        Args:
            layer: Which transformer layer's memory.
            keys: [B, Hkv, T, Dk].
            values: [B, Hkv, T, Dv].
            streams: B names, none twice. A stream that does not exist begins.
            lengths: Row b adds its first lengths[b] tokens; None: all T.
            request_id: Of your own, to repeat a call safely after a crash. Retries have one anyway.
            timeout_s: See the class.
        """
        split = prepare_add(
            self.name, self.spec, layer, keys, values, streams=streams, lengths=lengths, request_id=request_id
        )
        return self._runner.run_split(split, timeout_s)

    def search(
        self,
        layer: int,
        queries: A,
        *,
        top_k: int,
        streams: Sequence[str],
        include: Sequence[Include] = (),
        min_sequences: Sequence[int] | None = None,
        missing_ok: bool = False,
        exact: bool = False,
        query_dtype: QueryDtype | None = None,
        timeout_s: float | None = None,
    ) -> SearchResult[A]:
        """Finds the top_k entries of each query by inner product, within its row's stream.

        Args:
            layer: Which transformer layer's memory.
            queries: [B, Hq, T, Dk], Hq a multiple of the namespace's heads.
            top_k: Entries per query; may exceed what is stored.
            streams: B names; one may serve several rows.
            include: "keys", "values" or both, to have them fetched. Large: `attend` needs a fraction of it.
            min_sequences: Refuse unless the streams have reached these (from `AddResult.next_sequences`).
            missing_ok: A stream that does not exist counts as empty.
            exact: By exact search, whatever the namespace's index: to compare with, or to miss nothing.
            query_dtype: "int8": queries travel as integers of 8 bits, in half of float16's bytes. About one
                in a hundred of the entries that are found is another one then, which may be a good trade
                on a slow network. None: as the namespace's `dtype`.
            timeout_s: See the class.
        """
        chosen = check_include(include)
        read = check_read(
            self.name,
            self.spec,
            layer,
            queries,
            streams=streams,
            min_sequences=min_sequences,
            query_dtype=query_dtype,
        )
        split = prepare_search(read, top_k=top_k, include=chosen, missing_ok=missing_ok, exact=exact)
        return self._runner.run_split(split, timeout_s)

    def attend(
        self,
        layer: int,
        queries: A,
        *,
        top_k: int,
        streams: Sequence[str],
        scale: float | None = None,
        with_ids: bool = True,
        min_sequences: Sequence[int] | None = None,
        missing_ok: bool = False,
        exact: bool = False,
        query_dtype: QueryDtype | None = None,
        timeout_s: float | None = None,
    ) -> AttendResult[A]:
        """Attends to the top_k entries of each query: softmax(scale * q.k) v, and its log-sum-exp.

        The result carries no gradient; `attend_backward` has it.

        Args:
            layer: Which transformer layer's memory.
            queries: [B, Hq, T, Dk], Hq a multiple of the namespace's heads.
            top_k: Entries per query; may exceed what is stored.
            streams: B names; one may serve several rows.
            scale: Of the scores, above 0; None: 1 / sqrt(Dk).
            with_ids: Whether `attend_backward` will follow. Inference needs none.
            min_sequences: Refuse unless the streams have reached these (from `AddResult.next_sequences`).
            missing_ok: A stream that does not exist counts as empty.
            exact: As in `search`.
            query_dtype: As in `search`. Where a gradient follows, leave it out: `attend_backward` does not
                round queries so.
            timeout_s: See the class.
        """
        read = check_read(
            self.name,
            self.spec,
            layer,
            queries,
            streams=streams,
            min_sequences=min_sequences,
            query_dtype=query_dtype,
        )
        asked = prepare_attend(
            read, top_k=top_k, scale=scale, with_ids=with_ids, missing_ok=missing_ok, exact=exact
        )
        if self._coalescing is not None:
            return self._coalescing.attend(asked, timeout_s)
        return self._runner.run_split(asked.split, timeout_s)

    def attend_backward(
        self,
        layer: int,
        queries: A,
        *,
        ids: Array,
        streams: Sequence[str],
        grad_output: Array,
        grad_lse: Array | None = None,
        scale: float | None = None,
        timeout_s: float | None = None,
    ) -> A:
        """The gradient of the queries, from those of `attend`'s output and LSE: [B, Hq, T, Dk].

        Args:
            layer: That of the forward call.
            queries: Those of the forward call.
            ids: [B, Hq, T, K], those that the forward call returned.
            streams: Those of the forward call.
            grad_output: [B, Hq, T, Dv].
            grad_lse: [B, Hq, T]; None: zero.
            scale: That of the forward call.
            timeout_s: See the class.

        Raises:
            StaleEntryError: An entry has been evicted since.
        """
        read = check_read(self.name, self.spec, layer, queries, streams=streams)
        split = prepare_attend_backward(
            read, ids=ids, grad_output=grad_output, grad_lse=grad_lse, scale=scale
        )
        return self._runner.run_split(split, timeout_s)

    def evict(
        self,
        *,
        streams: Sequence[str],
        layers: Sequence[int] | None = None,
        ids: Sequence[int] | None = None,
        oldest: int | None = None,
        before_sequence: int | None = None,
        older_than_s: float | None = None,
        all: bool = False,
        request_id: str | None = None,
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> EvictResult:
        """Removes entries. Exactly one of `ids`, `oldest`, `before_sequence`, `older_than_s`, `all`.

        A call beyond the server's limits is sent in parts, and is then not atomic.

        Args:
            streams: Names, none twice.
            layers: None: every layer.
            ids: These entries, where they still exist.
            oldest: This many, the oldest first.
            before_sequence: All whose id is smaller.
            older_than_s: All that were added longer ago, in seconds.
            all: Everything: the streams are forgotten and their memory freed.
            request_id: Of your own, to repeat a call safely after a crash.
            missing_ok: A stream that does not exist counts as empty.
            timeout_s: See the class.
        """
        split = prepare_evict(
            self.name,
            self.spec,
            streams=streams,
            layers=layers,
            ids=ids,
            oldest=oldest,
            before_sequence=before_sequence,
            older_than_s=older_than_s,
            all=all,
            request_id=request_id,
            missing_ok=missing_ok,
        )
        return self._runner.run_split(split, timeout_s)

    def stats(self, *, streams: Sequence[str] = (), timeout_s: float | None = None) -> Stats:
        """What the namespace holds; with details of the streams named."""
        return self._runner.run(get_stats(self.name, streams), timeout_s)

    def ensure(self, *, timeout_s: float | None = None) -> None:
        """Makes the namespace again, empty, if the server has lost it (its memories may end with it).

        Raises:
            AlreadyExistsError: There is one of this name now, with another spec.
        """
        self._runner.run(create_namespace(self.name, self.spec, exist_ok=True), timeout_s)

    def session(
        self,
        *,
        streams: Sequence[str],
        on_error: Literal["raise", "local"] = "raise",
        stale: Literal["raise", "zero"] = "raise",
        timeout_s: float | None = None,
    ) -> Session:
        """Binds batch rows to streams while a model runs. Needs `recollect[torch]`.

        Args:
            streams: One name for each batch row.
            on_error: If the server is away: raise, or go on with local attention and count it.
            stale: If an entry was evicted between forward and backward: raise, or give a zero gradient and
                count it.
            timeout_s: Of each call of the session; see the class.
        """
        return open_session(self, streams=streams, on_error=on_error, stale=stale, timeout_s=timeout_s)
