"""A model trains against a real server: the same on every transport, and through an outage."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

import recollect
from recollect_torch import MemorizingAttention, MemorizingTransformer, TransformerConfig, session
from tests.server_process import ServerProcess
from tests.unit.torch.reference import dense, relative_error

pytestmark = pytest.mark.e2e

ROWS, TOKENS, HEADS, HEAD_DIM, LAYER = 2, 16, 2, 8, 1
CONFIG = TransformerConfig(
    vocabulary=32, dim=HEADS * HEAD_DIM, depth=2, heads=HEADS, memory_layers=(LAYER,), num_retrieved=8
)
PATIENCE_S = 60.0
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """For the tests that leave it alone."""
    with ServerProcess() as running:
        yield running


def namespace(client: recollect.Client, *, heads: int = HEADS) -> recollect.Namespace:
    """A memory for the layers here."""
    return client.create_namespace(
        f"training-{next(_numbers)}",
        layers=[LAYER],
        heads=heads,
        key_dim=HEAD_DIM,
        value_dim=HEAD_DIM,
        capacity=256,
        dtype="float32",
    )


class Trainer:
    """A tiny model, its optimizer and its data, all from one seed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = MemorizingTransformer(CONFIG)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(1)
        document = torch.randint(0, CONFIG.vocabulary, (ROWS, 48), generator=generator)
        self.text = document.repeat(1, 40)  # repeats, so that a memory is of use
        self.position = 0

    def step(self) -> float:
        """One segment: forward and backward."""
        segment = self.text[:, self.position : self.position + TOKENS + 1]
        self.position = (self.position + TOKENS) % (self.text.shape[1] - TOKENS)
        logits = self.model(segment[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), segment[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.item())


def loss_curve(url: str, *, steps: int) -> list[float]:
    """Losses of a run with its memory at `url`."""
    trainer = Trainer()
    with recollect.connect(url) as client:
        ns = namespace(client)
        losses: list[float] = []
        with session(ns, streams=["row-0", "row-1"]) as s:
            for step in range(steps):
                if step % 20 == 19:
                    s.reset([step % ROWS])  # a document starts
                losses.append(trainer.step())
                s.commit()
        assert ns.stats().entries > 0
        client.delete_namespace(ns.name)
    return losses


def test_the_same_loss_curve_on_every_transport(server: ServerProcess) -> None:
    """Where the memory is changes what is learned: 50 steps from one seed must be equal to 1e-4."""
    curves = {url: loss_curve(url, steps=50) for url in ("embedded://", server.unix_url, server.tcp_url)}
    embedded, *others = curves.values()
    assert embedded[-1] < embedded[0], "it does not learn"
    for other in others:
        assert other == pytest.approx(embedded, abs=1e-4, rel=0)


def test_the_memory_is_in_the_curve(server: ServerProcess) -> None:
    """The test above compares runs in which the memory plays no part."""
    with_memory = loss_curve(server.unix_url, steps=12)
    trainer = Trainer()
    without = []
    with session(None, streams=["row-0", "row-1"]) as s:
        for _ in range(12):
            without.append(trainer.step())
            s.commit()
    assert with_memory[0] == pytest.approx(without[0], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(with_memory, without, strict=True)) > 1e-3


@pytest.mark.parametrize("form", ["gate", "joint"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_gradients_are_those_of_dense_attention(
    server: ServerProcess, form: Literal["gate", "joint"], kv_heads: int
) -> None:
    """Gradients through the server differ from dense float64 attention (k >= n) by 1e-5 or more."""
    torch.manual_seed(3)
    dim, past_tokens = HEADS * HEAD_DIM, 24
    layer = MemorizingAttention(
        dim, HEADS, layer=LAYER, kv_heads=kv_heads, num_retrieved=64, combine=form, gate_init=0.3
    ).double()
    past, x = torch.randn(ROWS, past_tokens, dim).double(), torch.randn(ROWS, TOKENS, dim).double()
    weights = torch.randn(ROWS, TOKENS, dim).double()

    def gradients(output: torch.Tensor) -> dict[str, torch.Tensor]:
        inputs = {"x": x, **dict(layer.named_parameters())}
        found = torch.autograd.grad((output * weights).sum(), list(inputs.values()))
        return dict(zip(inputs, found, strict=True))

    with (
        recollect.connect(server.unix_url) as client,
        session(namespace(client, heads=kv_heads), streams=["a", "b"]) as s,
    ):
        with torch.no_grad():
            layer(past)
        s.commit()
        x.requires_grad_(True)
        output = layer(x)
        came = gradients(output)
        s.rollback()
    gates = [p for name, p in layer.named_parameters() if name.startswith("combine")]
    wanted_output = dense(layer, x, past, combine=form, gate=gates[0] if gates else None)
    wanted = gradients(wanted_output)
    assert relative_error(output, wanted_output) < 1e-5
    errors = {name: relative_error(came[name], wanted[name]) for name in wanted}
    assert max(errors.values()) < 1e-5, errors


def test_training_goes_on_without_its_server_and_finds_it_again() -> None:
    """on_error="local": an outage ended the run, went uncounted, or the memory was never used again."""
    trainer = Trainer()
    with (
        ServerProcess() as first,
        recollect.connect(first.unix_url, retries=0, timeout_s=PATIENCE_S) as client,
    ):
        ns = namespace(client)
        with session(ns, streams=["row-0", "row-1"], on_error="local", retry_interval_s=0.05) as s:

            def step() -> float:
                loss = trainer.step()
                s.commit()
                return loss

            for _ in range(3):
                step()
            assert s.fallbacks.retrieve == s.fallbacks.commit == 0
            assert ns.stats().entries == 3 * ROWS * TOKENS
            first.kill()
            for _ in range(5):
                assert step() > 0
            assert s.fallbacks.retrieve == 5
            assert s.fallbacks.commit == 5
            with ServerProcess(socket=first.socket) as second:
                end = time.monotonic() + PATIENCE_S
                counted = -1
                while counted != s.fallbacks.retrieve:  # until a step is answered
                    assert time.monotonic() < end, "the memory was not found again"
                    counted = s.fallbacks.retrieve
                    step()
                    time.sleep(0.02)
                before = ns.stats().entries
                for _ in range(3):
                    step()
                assert s.fallbacks.retrieve == counted
                assert ns.stats().entries == min(before + 3 * ROWS * TOKENS, 256 * ROWS)
                q = torch.randn(ROWS, HEADS, 1, HEAD_DIM)
                assert ns.attend(LAYER, q, top_k=4, streams=["row-0", "row-1"]).lse.isfinite().all()
                assert second.is_alive


def test_training_raises_a_clear_error_when_its_server_is_gone() -> None:
    """on_error="raise": the run went on without memory unnoticed, or died of something unclear."""
    trainer = Trainer()
    with (
        ServerProcess() as server,
        recollect.connect(server.tcp_url, retries=0, timeout_s=PATIENCE_S) as client,
        session(namespace(client), streams=["row-0", "row-1"]) as s,
    ):
        for _ in range(2):
            trainer.step()
            s.commit()
        server.kill()
        with pytest.raises(recollect.UnavailableError) as caught:
            trainer.step()
        assert server.tcp_url in str(caught.value)
        assert any('on_error="local"' in note for note in caught.value.__notes__)
        s.rollback()


def test_a_server_that_goes_between_forward_and_backward() -> None:
    """on_error="local": backward of a forward that was answered died with the server, or was not counted."""
    trainer = Trainer()
    with (
        ServerProcess() as server,
        recollect.connect(server.unix_url, retries=0, timeout_s=PATIENCE_S) as client,
        session(namespace(client), streams=["row-0", "row-1"], on_error="local") as s,
    ):
        trainer.step()
        s.commit()
        segment = trainer.text[:, : TOKENS + 1]
        loss = F.cross_entropy(trainer.model(segment[:, :-1]).flatten(0, 1), segment[:, 1:].flatten())
        server.kill()
        loss.backward()
        assert s.fallbacks.backward == 1
        assert all(p.grad is None or p.grad.isfinite().all() for p in trainer.model.parameters())
        s.rollback()
