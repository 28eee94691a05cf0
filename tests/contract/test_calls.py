"""Request ids, namespaces, statistics and server facts, by every way to a memory."""

from __future__ import annotations

import numpy as np
import pytest

import recollect
from tests.contract.memories import INDEXES, Index, Memories, ValueDtype


def test_a_request_id_stores_once(memories: Memories) -> None:
    """A repeated add was stored twice, or was answered differently."""
    memory = memories()
    keys, values = memory.draw(1, 2, 4, 8), memory.draw(1, 2, 4, 4)
    first = memory.ns.add(0, keys, values, streams=["a"], request_id=f"{memory.ns.name}-once")
    again = memory.ns.add(0, keys, values, streams=["a"], request_id=f"{memory.ns.name}-once")
    assert again == first
    assert memory.ns.stats().entries == 4
    memory.oracle.add(0, keys, values, streams=["a"], first_ids=first.first_ids)
    memory.check(["a"])


def test_a_request_id_evicts_once(memories: Memories) -> None:
    """A repeated evict removed more."""
    memory = memories()
    memory.add(["a"], 8)
    for _ in range(2):
        answer = memory.ns.evict(streams=["a"], oldest=3, request_id=f"{memory.ns.name}-evict")
        assert answer.evicted == 3
    assert memory.ns.stats().entries == 5


def test_a_request_id_belongs_to_one_selector(memories: Memories) -> None:
    """An evict of five answered with the result of an evict of one: four entries stay in silence."""
    memory = memories()
    memory.add(["a"], 8)
    memory.ns.evict(streams=["a"], oldest=1, request_id=f"{memory.ns.name}-selector")
    with pytest.raises(recollect.InvalidArgumentError):
        memory.ns.evict(streams=["a"], oldest=5, request_id=f"{memory.ns.name}-selector")
    assert memory.ns.stats().entries == 7


def test_a_request_id_belongs_to_one_call(memories: Memories) -> None:
    """An id used for two different calls must be refused, not answered with the other's result."""
    memory = memories()
    memory.add(["a"], 3, request_id=f"{memory.ns.name}-mixed")
    with pytest.raises(recollect.InvalidArgumentError) as caught:
        memory.add(["b"], 3, request_id=f"{memory.ns.name}-mixed")
    assert caught.value.argument == "request_id"
    with pytest.raises(recollect.InvalidArgumentError):
        memory.ns.evict(streams=["a"], oldest=1, request_id=f"{memory.ns.name}-mixed")
    assert memory.ns.stats().entries == 3


def test_a_request_id_that_failed_may_be_tried_again(memories: Memories) -> None:
    """A refused call was remembered as answered."""
    memory = memories()
    request_id = f"{memory.ns.name}-later"
    with pytest.raises(recollect.NotFoundError):
        memory.ns.evict(streams=["a"], oldest=1, request_id=request_id)
    memory.add(["a"], 3)
    assert memory.ns.evict(streams=["a"], oldest=1, request_id=request_id).evicted == 1


def test_adds_without_a_request_id_are_all_stored(memories: Memories) -> None:
    """Two adds of the same data were taken for a repeat."""
    memory = memories()
    keys, values = memory.draw(1, 2, 2, 8), memory.draw(1, 2, 2, 4)
    for _ in range(3):
        memory.ns.add(0, keys, values, streams=["a"])
    assert memory.ns.stats().entries == 6


SPEC = {"layers": [0, 3], "heads": 2, "key_dim": 8, "value_dim": 4, "capacity": 10}


def test_create_and_find_a_namespace(client: recollect.Client, name: str) -> None:
    """A namespace is not found as it was made."""
    made = client.create_namespace(
        name, layers=[3, 0], heads=2, key_dim=8, value_dim=4, capacity=10, dtype="bfloat16"
    )
    found = client.namespace(name)
    assert found.name == name
    assert found.spec == made.spec
    assert found.spec == recollect.NamespaceSpec(
        layers=(0, 3), heads=2, key_dim=8, value_dim=4, capacity=10, dtype="bfloat16"
    )


def test_float16_is_the_default(client: recollect.Client, name: str) -> None:
    """Design decision 9: half precision unless told."""
    made = client.create_namespace(name, layers=[0], heads=1, key_dim=1, value_dim=1, capacity=1)
    assert made.spec.dtype == "float16"


def test_the_server_chooses_the_index_unless_told(client: recollect.Client, name: str) -> None:
    """A namespace of which nothing was said asks for an index of its own, or for another recall."""
    made = client.create_namespace(name, layers=[0], heads=1, key_dim=1, value_dim=1, capacity=1)
    assert (made.spec.index, made.spec.recall) == ("auto", 0.95)


@pytest.mark.parametrize("index", INDEXES)
def test_index_and_recall_are_kept(client: recollect.Client, name: str, index: Index) -> None:
    """A namespace forgets what was asked of its index, or one that asks for another counts as the same."""

    def create(*, index: Index, recall: float) -> recollect.Namespace:
        return client.create_namespace(
            name,
            layers=[0],
            heads=1,
            key_dim=4,
            value_dim=4,
            capacity=9,
            index=index,
            recall=recall,
            exist_ok=True,
        )

    made = create(index=index, recall=0.8)
    assert (made.spec.index, made.spec.recall) == (index, 0.8)
    assert client.namespace(name).spec == made.spec
    assert [info.spec for info in client.list_namespaces() if info.name == name] == [made.spec]
    assert create(index=index, recall=0.8).spec == made.spec
    with pytest.raises(recollect.AlreadyExistsError, match=r"recall is 0\.8 there and 0\.9 here"):
        create(index=index, recall=0.9)
    with pytest.raises(recollect.AlreadyExistsError, match=f"index is {index} there and"):
        create(index="exact" if index == "ivf" else "ivf", recall=0.8)
    made.ensure()


def test_values_as_integers_take_half_of_their_memory(client: recollect.Client, name: str) -> None:
    """What a namespace stores values in is not told, cannot be asked for again, or saves nothing."""

    def create(value_dtype: ValueDtype | None) -> recollect.Namespace:
        return client.create_namespace(
            name,
            layers=[0],
            heads=2,
            key_dim=64,
            value_dim=64,
            capacity=8192,
            value_dtype=value_dtype,
            exist_ok=True,
        )

    def held_bytes(space: recollect.Namespace) -> int:
        entries = np.ones((1, 2, 8192, 64), np.float32)
        space.add(0, entries, entries, streams=["a"])
        return space.stats().bytes

    made = create("int8")
    assert made.spec.value_dtype == client.namespace(name).spec.value_dtype == "int8"
    assert create("int8").spec == made.spec
    with pytest.raises(recollect.AlreadyExistsError, match="value_dtype is int8 there and None here"):
        create(None)
    packed = held_bytes(made)
    client.delete_namespace(name)
    # As keys are: whether it is said or not.
    assert create("float16").spec.value_dtype is None
    assert create(None).spec == create("float16").spec
    assert held_bytes(create(None)) - packed == 2 * 8192 * (2 * 64 - (64 + 4))


@pytest.mark.parametrize("recall", [0.3, 1.5])
def test_a_recall_that_cannot_be_held(client: recollect.Client, name: str, recall: float) -> None:
    """A namespace promises to find more than there is, or so little that it is noise."""
    with pytest.raises(recollect.InvalidArgumentError, match=rf"{recall}.*0\.5 to 1") as caught:
        client.create_namespace(name, layers=[0], heads=1, key_dim=1, value_dim=1, capacity=1, recall=recall)
    assert caught.value.argument == "spec.recall"


def test_stats_tell_what_answers(memories: Memories) -> None:
    """A user cannot tell whether reads are exact, or takes them for approximate where they are not."""
    memory = memories(index="exact")
    memory.add(["a"], 3)
    (bank,) = memory.ns.stats(streams=["a"]).banks
    assert (bank.index, bank.lists, bank.probes, bank.recall, bank.sampled) == ("exact", 0, 0, None, 0)
    assert bank.reason == ""


def test_a_namespace_that_exists(client: recollect.Client, name: str) -> None:
    """A namespace was replaced or changed by making it again."""

    def create(*, heads: int = 2, exist_ok: bool = False) -> recollect.Namespace:
        return client.create_namespace(
            name,
            layers=[0],
            heads=heads,
            key_dim=8,
            value_dim=4,
            capacity=10,
            dtype="float32",
            exist_ok=exist_ok,
        )

    ns = create()
    ns.add(0, np.ones((1, 2, 3, 8)), np.ones((1, 2, 3, 4)), streams=["a"])
    with pytest.raises(recollect.AlreadyExistsError) as caught:
        create()
    assert "exist_ok" in str(caught.value)
    assert create(exist_ok=True).spec == ns.spec
    with pytest.raises(recollect.AlreadyExistsError) as caught:
        create(heads=4, exist_ok=True)
    assert "heads is 2 there and 4 here" in str(caught.value)
    assert client.namespace(name).stats().entries == 3


def test_a_namespace_that_does_not_exist(client: recollect.Client, name: str) -> None:
    """An unknown namespace must be NOT_FOUND by every call."""
    with pytest.raises(recollect.NotFoundError) as caught:
        client.namespace(name)
    assert caught.value.reason == "NAMESPACE_NOT_FOUND"
    assert name in str(caught.value)
    with pytest.raises(recollect.NotFoundError):
        client.delete_namespace(name)
    client.delete_namespace(name, missing_ok=True)


def test_a_deleted_namespace_is_gone(memories: Memories, client: recollect.Client) -> None:
    """A deleted namespace still answers, or its memory was not freed."""
    memory = memories()
    memory.add(["a"], 3)
    client.delete_namespace(memory.ns.name)
    for call in (memory.check_search, memory.check_attend, lambda s: memory.add(s, 1)):
        with pytest.raises(recollect.NotFoundError) as caught:
            call(["a"])
        assert caught.value.reason == "NAMESPACE_NOT_FOUND"
    fresh = memories(name=memory.ns.name)
    assert fresh.ns.stats() == recollect.Stats(streams=0, entries=0, bytes=0, banks=())


def test_listing_pages_transparently(client: recollect.Client, name: str) -> None:
    """A namespace is missing from the list, or comes twice, at some page size."""
    wanted = sorted(f"{name}-page-{number}" for number in range(7))
    for one in wanted:
        client.create_namespace(one, layers=[0], heads=1, key_dim=1, value_dim=1, capacity=1)
    for page_size in (1, 3, 7, None):
        names = [info.name for info in client.list_namespaces(page_size=page_size)]
        assert names == sorted(names)
        assert [n for n in names if n.startswith(f"{name}-page-")] == wanted
    for one in wanted:
        client.delete_namespace(one)


def test_stats(memories: Memories) -> None:
    """Counts of streams, entries or bytes are wrong."""
    memory = memories(layers=(0, 2), heads=2, key_dim=8, value_dim=4, capacity=10)
    assert memory.ns.stats() == recollect.Stats(streams=0, entries=0, bytes=0, banks=())
    first = memory.add(["a", "b"], 12)
    memory.add(["a"], 3, layer=2)
    stats = memory.ns.stats(streams=["a"])
    bytes_per_bank = 10 * 2 * (8 + 4) * 4 + 4096
    assert (stats.streams, stats.entries, stats.bytes) == (2, 23, 3 * bytes_per_bank)
    by_layer = {bank.layer: bank for bank in stats.banks}
    assert set(by_layer) == {0, 2}
    assert by_layer[0].stream == "a"
    assert (by_layer[0].entries, by_layer[0].bytes) == (10, bytes_per_bank)
    assert by_layer[0].first_id == first.first_ids[0] + 2
    assert by_layer[0].next_sequence == first.next_sequences[0]
    with pytest.raises(recollect.NotFoundError):
        memory.ns.stats(streams=["nobody"])


def test_server_info(client: recollect.Client) -> None:
    """A client cannot know the server's bounds, or which device answers."""
    info = client.server_info()
    assert info.version == recollect.__version__
    assert info.device
    assert info.limits.message_bytes_max == 4 * 1024 * 1024
    assert info.limits.top_k_max == 1024


def test_a_layer_that_does_not_exist(memories: Memories) -> None:
    """A layer outside of the namespace must be refused and named."""
    memory = memories(layers=(1, 4))
    for call in (
        lambda: memory.add(["a"], 1, layer=2),
        lambda: memory.check_search(["a"], layer=2),
        lambda: memory.ns.evict(streams=["a"], layers=[2], all=True),
    ):
        with pytest.raises(recollect.RecollectError, match=r"layer.*\[1, 4\]"):
            call()
