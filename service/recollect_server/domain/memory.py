"""The memory of one namespace: its streams, each with a bank per layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from recollect_server.domain import work
from recollect_server.domain.bank import Bank
from recollect_server.domain.errors import (
    LayerNotFoundError,
    StreamNotFoundError,
    TooManyStreamsError,
)
from recollect_server.domain.limits import Limits
from recollect_server.domain.ports import Device
from recollect_server.domain.spec import NamespaceSpec
from recollect_server.domain.steps import Steps
from recollect_server.domain.usage import Usage


class NamespaceMemory:
    """Buffers of one namespace, shared with no other.

    Args:
        name: For messages.
        spec: The namespace's.
        device: Where its banks live.
        limits: The server's bounds.
        first_sequence: Id of the first entry of each layer. Not 0: a namespace that is made again under
            the same name must not give out the ids of the one before.
        usage: What is stored in it is counted here.
    """

    __slots__ = ("_device", "_high_water", "_limits", "_streams", "name", "spec", "usage")

    def __init__(
        self,
        name: str,
        spec: NamespaceSpec,
        device: Device,
        limits: Limits,
        *,
        first_sequence: int,
        usage: Usage,
    ) -> None:
        self.name = name
        self.spec = spec
        self.usage = usage
        self._device = device
        self._limits = limits
        self._streams: dict[str, dict[int, Bank]] = {}
        self._high_water = dict.fromkeys(spec.layers, first_sequence)

    @property
    def streams(self) -> int:
        """How many streams exist."""
        return len(self._streams)

    @property
    def stream_names(self) -> list[str]:
        """Their names, oldest first. Safe to ask from any thread."""
        return list(self._streams)

    @property
    def high_water(self) -> int:
        """No id of this namespace is as large as this, or ever was."""
        live = (bank.ring.next_sequence for _, _, bank in self.banks())
        return max([*self._high_water.values(), *live])

    def banks(self) -> Iterator[tuple[str, int, Bank]]:
        """Every (stream, layer, bank)."""
        for stream, layers in self._streams.items():
            for layer, bank in layers.items():
                yield stream, layer, bank

    def require_layer(self, layer: int) -> None:
        """Raises LayerNotFoundError unless the namespace has a memory for the layer."""
        if layer not in self.spec.layers:
            raise LayerNotFoundError(
                f"namespace {self.name!r} has no layer {layer}; it has {list(self.spec.layers)}",
                argument="layer",
            )

    def new_streams(self, streams: Sequence[str]) -> int:
        """How many of these distinct streams do not exist."""
        return sum(stream not in self._streams for stream in streams)

    def require_room_for(self, streams: Sequence[str]) -> None:
        """Raises TooManyStreamsError if the new ones among `streams` would be too many."""
        new = self.new_streams(streams)
        if new and len(self._streams) + new > self._limits.streams_max:
            raise TooManyStreamsError(
                f"namespace {self.name!r} has {len(self._streams)} streams and this call brings {new} more; "
                f"at most {self._limits.streams_max} are allowed. Evict streams that are done with all=True",
                argument="streams",
            )

    def bank(self, stream: str, layer: int, *, missing_ok: bool = False) -> Bank | None:
        """The bank to read; None if it is empty because nothing was ever added.

        Raises:
            StreamNotFoundError: The stream does not exist in any layer, and `missing_ok` is false.
        """
        layers = self._streams.get(stream)
        if layers is None:
            if missing_ok:
                return None
            raise StreamNotFoundError(
                f"namespace {self.name!r} has no stream {stream!r}; add to it first, or pass missing_ok "
                "to have it count as empty",
                argument="streams",
            )
        return layers.get(layer)

    def entries(self, stream: str, layer: int) -> int:
        """How many the stream has in this layer; 0 where there is none. Safe to ask from any thread."""
        bank = self._streams.get(stream, {}).get(layer)
        return bank.ring.count if bank is not None else 0

    def search_work(self, stream: str, layer: int, *, queries: int) -> int:
        """What `queries` of each head would take there, in multiply-adds. Safe to ask from any thread."""
        bank = self._streams.get(stream, {}).get(layer)
        return bank.search_work(queries) if bank is not None else 0

    def layers_of(self, stream: str) -> list[tuple[int, Bank]]:
        """The stream's banks by layer."""
        return list(self._streams.get(stream, {}).items())

    def count(self, streams: Sequence[str]) -> int:
        """How many banks these streams have. Safe to ask from any thread."""
        return sum(len(self._streams.get(stream, ())) for stream in streams)

    def held(self, streams: Sequence[str], layers: Collection[int]) -> list[Bank]:
        """The banks that there are of these streams in these layers (none: in all). Safe from any thread."""
        return [
            bank
            for stream in streams
            for layer, bank in self.layers_of(stream)
            if not layers or layer in layers
        ]

    def new_bank(self, layer: int) -> Bank:
        """A bank that no stream has yet; `adopt` gives it to one."""
        # Ids go on from where the last forgotten bank of the layer ended, so that none comes back.
        store = self._device.store(self.spec)
        return Bank(self.spec, store, first_sequence=self._high_water[layer], usage=self.usage)

    def adopt(self, stream: str, layer: int, bank: Bank) -> None:
        """Makes `bank` the stream's, which exists from now on."""
        if stream not in self._streams:
            self._streams[stream] = {}
            self.usage.change(streams=1)
        self._streams[stream][layer] = bank
        bank.hold()

    def forget(self, stream: str, layers: tuple[int, ...]) -> None:
        """Frees the stream's banks of these layers, and the stream with its last bank."""
        held = self._streams.get(stream)
        if held is None:
            return
        for layer in layers:
            bank = held.pop(layer, None)
            if bank is not None:
                self._high_water[layer] = max(self._high_water[layer], bank.ring.next_sequence)
                bank.clear()
        if not held:
            del self._streams[stream]
            self.usage.change(streams=-1)

    def next_sequence(self, stream: str, layer: int) -> int:
        """The id that the stream's next entry in this layer will have."""
        bank = self._streams.get(stream, {}).get(layer)
        return bank.ring.next_sequence if bank is not None else self._high_water[layer]

    def clear(self) -> Steps[None]:
        """Frees everything, some banks at a time; the memory must not be used after."""
        left, done = (yield 0), 0
        for stream, layers in list(self._streams.items()):
            for layer, bank in list(layers.items()):
                done += work.OBJECTS + work.moved(bank.ring.allocated * self.spec.entry_bytes)
                self.forget(stream, (layer,))
                if done >= left:
                    left, done = (yield done), 0
        yield done
