"""Residual networks for small images: the CIFAR family of He et al., of depth 6 n + 2.

Three stages of n blocks, of `width`, 2 and 4 times `width` filters, each stage halving the image; then the mean over
the image and one affine map. What is left out: the ImageNet family with its larger stem and bottlenecks.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from trainers.models.base import ModelError, require_image

_MAX_GROUPS = 8


def build(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 20,
    width: int = 16,
    norm: str = "group",
    shortcut: str = "identity",
) -> nn.Module:
    """Return a residual network.

    Args:
        depth: layers with weights, 6 n + 2: 8, 14, 20, 32, 56, 110.
        width: filters of the first stage.
        norm: `batch`, as published, whose running statistics are averaged between clients like weights; or
            `group`, which has none and does better on skewed clients.
        shortcut: where a block changes the size, `identity`, as published for CIFAR (option A: strided, padded with
            zero channels), or `convolution` (option B: 1 x 1, and a norm), which most programs in use have.

    Raises:
        ModelError: when the depth is not 6 n + 2, a name is none, or examples are not images.

    Shapes: images `[B, C, H, W]`, logits `[B, num_classes]`.

    Source: He, Zhang, Ren, Sun 2015, arXiv:1512.03385, sections 3.3 and 4.2, with initialisation of He et
    al. 2015, arXiv:1502.01852, section 2.2. Group norm: Wu and
    He 2018, arXiv:1803.08494, here with at most 8 groups; its use on skewed clients: Hsieh et al. 2020,
    arXiv:1910.00189, section 5.
    """
    channels, _, _ = require_image("resnet", input_shape)
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        lower, upper = max(8, 6 * blocks + 2), max(8, 6 * blocks + 8)
        near = lower if depth - lower <= upper - depth else upper
        raise ModelError(f"model resnet has depth {depth}, which is not 6 n + 2", f"the nearest depth is {near}")
    if norm not in ("batch", "group"):
        raise ModelError(f"model resnet has norm {norm!r}", "norms are batch and group")
    if shortcut not in ("identity", "convolution"):
        raise ModelError(f"model resnet has shortcut {shortcut!r}", "shortcuts are identity and convolution")
    return ResNet(channels, num_classes, blocks, width, norm, shortcut)


class ResNet(nn.Module):
    """The network of `build`; `blocks` residual blocks a stage."""

    def __init__(self, channels: int, num_classes: int, blocks: int, width: int, norm: str, shortcut: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = _norm(norm, width)
        sizes = [width] * blocks + [2 * width] * blocks + [4 * width] * blocks
        befores = [width, *sizes[:-1]]
        self.blocks = nn.Sequential(*(Block(*pair, norm, shortcut) for pair in zip(befores, sizes, strict=True)))
        self.head = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.norm(self.stem(images)))
        return self.head(self.blocks(hidden).mean(dim=(2, 3)))

    def pipeline_layers(self) -> list[tuple[str, nn.Module]]:
        """Return the stem, the blocks and the head, between which a pipeline may cut."""
        blocks = [(f"blocks.{index}", block) for index, block in enumerate(self.blocks)]
        return [("stem", Stem(self.stem, self.norm)), *blocks, ("head", Head(self.head))]


class Stem(nn.Module):
    """The first convolution."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(images)))


class Head(nn.Module):
    """The mean over the image and one affine map."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden.mean(dim=(2, 3)))


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; unless `stride` says so, halves the image where the channels change."""

    def __init__(self, before: int, after: int, norm: str, shortcut: str, stride: int | None = None) -> None:
        super().__init__()
        self.stride = (1 if before == after else 2) if stride is None else stride
        self.conv1 = nn.Conv2d(before, after, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = _norm(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, after)
        self.extra = after - before
        self._kinds = norm, shortcut
        changes = self.stride != 1 or self.extra != 0
        self.shortcut = _Shortcut(before, after, norm, self.stride) if changes and shortcut == "convolution" else None

    def forward(self, hidden: Tensor) -> Tensor:
        shortcut = hidden
        if self.shortcut is not None:
            shortcut = self.shortcut(hidden)
        elif self.stride != 1 or self.extra:
            padding = (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
            shortcut = functional.pad(hidden[:, :, :: self.stride, :: self.stride], padding)
        hidden = functional.relu(self.norm1(self.conv1(hidden)))
        return functional.relu(self.norm2(self.conv2(hidden)) + shortcut)

    def auxiliary_unit(self, channels: int, stride: int) -> Block:
        """Return a new block like this one for other channels and another stride (`strategies.local.units`)."""
        return Block(channels, self.conv2.out_channels, *self._kinds, stride)


class _Shortcut(nn.Sequential):
    """Option B."""

    def __init__(self, before: int, after: int, norm: str, stride: int) -> None:
        super().__init__(nn.Conv2d(before, after, 1, stride=stride, bias=False), _norm(norm, after))


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(_MAX_GROUPS, channels), channels)
