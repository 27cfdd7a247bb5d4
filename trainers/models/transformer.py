"""A small causal transformer that predicts the next token, of the GPT-2 kind.

Blocks normalise before attention and before the feed-forward layer; positions are learned; the embedding and the head
have weights of their own, so that a tree of parameters holds each tensor once. No generation, no cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models.base import ModelError


def build(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    layers: int = 2,
    heads: int = 4,
    width: int = 64,
    dropout: float = 0.0,
) -> nn.Module:
    """Return a transformer for sequences of up to `input_shape[0]` tokens of a vocabulary of `num_classes`.

    Args:
        layers: number of blocks.
        heads: attention heads, a divisor of `width`.
        width: size of the residual stream; the feed-forward layer is four times as wide.

    Raises:
        ModelError: when examples are not sequences, or the heads do not divide the width.

    Shapes: tokens `[B, T]` int64, logits `[B, T, num_classes]`.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3, decoder without cross-attention; normalisation before
    each sublayer, GELU and initialisation of Radford et al. 2019 (GPT-2), section 2.3.
    """
    if len(input_shape) != 1:
        raise ModelError(
            f"model transformer needs sequences of tokens, but an example has shape {input_shape}",
            "use model.name: cnn or resnet for images",
        )
    if width % heads:
        near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
        raise ModelError(
            f"model transformer has width {width}, which {heads} heads do not divide", f"heads: {near} would fit"
        )
    return Transformer(num_classes, input_shape[0], layers, heads, width, dropout)


class Transformer(nn.Module):
    """The network of `build`; `length` is the longest sequence."""

    def __init__(self, vocabulary: int, length: int, layers: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_stream = name.endswith(("attention.out.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if into_stream else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.dropout(self.tokens(tokens) + self.positions(places))
        return self.head(self.norm(self.blocks(hidden)))

    def pipeline_layers(self) -> list[tuple[str, nn.Module]]:
        """Return the embedding, the blocks and the head, between which a pipeline may cut."""
        blocks = [(f"blocks.{index}", block) for index, block in enumerate(self.blocks)]
        embed = Embed(self.tokens, self.positions, self.dropout)
        return [("embed", embed), *blocks, ("head", nn.Sequential(self.norm, self.head))]


class Embed(nn.Module):
    """The sum of a token's and its place's vectors."""

    def __init__(self, tokens: nn.Embedding, positions: nn.Embedding, dropout: nn.Dropout) -> None:
        super().__init__()
        self.tokens, self.positions, self.dropout = tokens, positions, dropout

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.dropout(self.tokens(tokens) + self.positions(places))


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.norm1(hidden))
        return hidden + self.dropout(self.contract(functional.gelu(self.expand(self.norm2(hidden)))))


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what came before."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.rate = dropout
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        split = self.project(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.rate if self.training else 0.0
        )
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
