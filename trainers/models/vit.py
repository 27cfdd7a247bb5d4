"""A vision transformer: an image as a sequence of patches, of the sizes of DeiT and smaller.

Blocks normalise before attention and before the feed-forward layer. Softmax and GELU are modules, so that a policy of
`memory.layers` can tell them from what is around them. Left out: distillation, stochastic depth, positions for images
of another size than the training ones.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.dropout import Dropout
from trainers.models.base import ModelError, require_image


def build(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    patch: int = 4,
    depth: int = 6,
    width: int = 192,
    heads: int = 3,
    dropout: float = 0.0,
    pool: Literal["token", "mean"] = "token",
    attention: Literal["fused", "plain"] = "fused",
) -> nn.Module:
    """Return a vision transformer for images of one size.

    DeiT-Ti is `patch: 16, depth: 12, width: 192, heads: 3` for 224 x 224, DeiT-S has width 384 and 6 heads, DeiT-B 768
    and 12.

    Args:
        patch: side of a patch in pixels, a divisor of height and width. depth: number of blocks.
        width: size of a patch's vector. heads: attention heads, a divisor of `width`.
        pool: what is classified: a token of its own, or the mean over patches.
        attention: `fused` is torch's, which keeps queries, keys, values and output for backward; `plain` keeps the
            softmax too, of the square of the number of patches.

    Raises:
        ModelError: when examples are not images, or patches or heads leave a rest.

    Shapes: images `[B, C, H, W]`, logits `[B, num_classes]`.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1, equations 1 to 4; sizes and initialisation of
    Touvron et al. 2021, arXiv:2012.12877 (DeiT), table 1. `mean` is from the former's appendix D.3.
    """
    channels, high, wide = require_image("vit", input_shape)
    if high % patch or wide % patch:
        sizes = [size for size in range(1, min(high, wide) + 1) if high % size == 0 and wide % size == 0]
        near = min(sizes, key=lambda size: abs(size - patch))
        raise ModelError(f"model vit has patches of {patch} x {patch}, images {high} x {wide}", f"patch: {near} fits")
    if width % heads:
        near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
        raise ModelError(f"model vit has width {width}, which {heads} heads do not divide", f"heads: {near} would fit")
    num_patches = (high // patch) * (wide // patch)
    return VisionTransformer(channels, num_patches, num_classes, patch, depth, width, heads, dropout, pool, attention)


class VisionTransformer(nn.Module):
    """The network of `build`."""

    def __init__(
        self,
        channels: int,
        num_patches: int,
        num_classes: int,
        patch: int,
        depth: int,
        width: int,
        heads: int,
        dropout: float,
        pool: str,
        attention: str,
    ) -> None:
        super().__init__()
        self.embed = Patches(channels, num_patches, patch, width, dropout, token=pool == "token")
        blocks = (Block(width, heads, dropout, plain=attention == "plain") for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.head = Head(width, num_classes, token=pool == "token")
        for name, parameter in self.named_parameters():
            if name.endswith(("token", "positions")) or (parameter.dim() == 2 and "norm" not in name):
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(images)))  # type: ignore[no-any-return]

    def pipeline_layers(self) -> list[tuple[str, nn.Module]]:
        """Return the patches, the blocks and the head, between which a pipeline may cut."""
        blocks = [(f"blocks.{index}", block) for index, block in enumerate(self.blocks)]
        return [("embed", self.embed), *blocks, ("head", self.head)]


class Patches(nn.Module):
    """A vector for each patch, its position added; before them the token that is classified, where there is one."""

    def __init__(self, channels: int, num_patches: int, patch: int, width: int, dropout: float, *, token: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if token else None
        self.positions = nn.Parameter(torch.zeros(1, num_patches + token, width))
        self.dropout = Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.project(images).flatten(2).transpose(1, 2)
        if self.token is not None:
            hidden = torch.cat([self.token.expand(len(images), -1, -1), hidden], dim=1)
        return self.dropout(hidden + self.positions)  # type: ignore[no-any-return]


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`."""

    def __init__(self, width: int, heads: int, dropout: float, *, plain: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, dropout, plain=plain)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.contract = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.norm1(hidden))
        return hidden + self.dropout(self.contract(self.gelu(self.expand(self.norm2(hidden)))))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention of all with all."""

    def __init__(self, width: int, heads: int, dropout: float, *, plain: bool) -> None:
        super().__init__()
        self.heads, self.rate, self.plain = heads, dropout, plain
        self.project = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(dim=-1)
        self.dropped = Dropout(dropout)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        split = self.project(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        if self.plain:
            scores = (query / math.sqrt(width // self.heads)) @ key.transpose(-2, -1)
            mixed = self.dropped(self.softmax(scores)) @ value
        else:
            rate = self.rate if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))  # type: ignore[no-any-return]


class Head(nn.Module):
    """Classes from the token, or from the mean of the patches."""

    def __init__(self, width: int, num_classes: int, *, token: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)
        self.by_token = token

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(hidden)
        return self.linear(hidden[:, 0] if self.by_token else hidden.mean(1))  # type: ignore[no-any-return]
