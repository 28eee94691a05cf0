"""A small language model with memorizing attention in some of its layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from recollect_torch._memory import Memory
from recollect_torch.attention import Combine, MemorizingAttention, Position, Retrieval


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes of a `MemorizingTransformer`; the memory's options are those of `MemorizingAttention`.

    Attributes:
        vocabulary: Number of tokens; 256 for bytes.
        dim: Size of a token's vector.
        depth: Number of blocks.
        heads: Query heads of the blocks without memory.
        memory_layers: Numbers of the blocks with memory, from 0.
        memory_heads: Query heads of those; None: `heads`.
        kv_heads: Key and value heads of all blocks; None: as many as query heads.
        position: Of the blocks without memory.
        memory_position: Of the local window of the blocks with memory.
        num_retrieved: Entries that each query attends to.
        combine: How memory and local window are joined.
        xl_length: Tokens of earlier segments that every block sees.
        retrieval: Attention by the memory, or on fetched pairs.
        scale_init: Start of the learned query scales.
        gate_init: Start of the gates' logits.
    """

    vocabulary: int = 256
    dim: int = 192
    depth: int = 4
    heads: int = 4
    memory_layers: tuple[int, ...] = (2,)
    memory_heads: int | None = None
    kv_heads: int | None = None
    position: Position = "rope"
    memory_position: Position = "none"
    num_retrieved: int = 32
    combine: Combine = "gate"
    xl_length: int = 0
    retrieval: Retrieval = "attend"
    scale_init: float = 8.0
    gate_init: float = 0.0

    def __post_init__(self) -> None:
        beyond = [layer for layer in self.memory_layers if not 0 <= layer < self.depth]
        if beyond:
            raise ValueError(f"memory_layers must be from 0 to {self.depth - 1} (depth - 1); got {beyond}")


class MemorizingTransformer(nn.Module):
    """Pre-norm decoder: RMSNorm, memorizing attention, GELU feed-forward, head tied to the embedding.

    Args:
        config: Sizes; None for the defaults.
        memory: Namespace of the memory layers; None: that of the session at hand.
    """

    def __init__(self, config: TransformerConfig | None = None, *, memory: Memory | None = None) -> None:
        super().__init__()
        self.config = config = config or TransformerConfig()
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = nn.ModuleList(_Block(config, layer, memory) for layer in range(config.depth))
        self.norm = nn.RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.apply(_initialise)

    @property
    def parameter_count(self) -> int:
        """Learned numbers; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, ids: Tensor) -> Tensor:
        """Predicts each next token.

        Args:
            ids: int64 [B, T]; row b continues stream b of the session at hand.

        Returns:
            Logits [B, T, vocabulary].
        """
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class _Block(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int, memory: Memory | None) -> None:
        super().__init__()
        remembers = layer in config.memory_layers
        self.attention_norm = nn.RMSNorm(config.dim)
        self.attention = MemorizingAttention(
            config.dim,
            (config.memory_heads or config.heads) if remembers else config.heads,
            memory=memory if remembers else None,
            layer=layer,
            kv_heads=config.kv_heads,
            num_retrieved=config.num_retrieved,
            combine=config.combine if remembers else None,
            position=config.memory_position if remembers else config.position,
            xl_length=config.xl_length,
            retrieval=config.retrieval,
            scale_init=config.scale_init,
            gate_init=config.gate_init,
        )
        self.mlp_norm = nn.RMSNorm(config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim, bias=False),
            nn.GELU(),
            nn.Linear(4 * config.dim, config.dim, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
