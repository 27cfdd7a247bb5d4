"""VGG networks: 3 x 3 convolutions in stages, each stage halving the image and all but the last doubling the filters.

Each convolution is followed by BatchNorm or GroupNorm and ReLU, which the paper's networks had no norms for. What is
left out: the paper's third input size, its 1 x 1 variant C, and convolutions without norms.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from trainers.models.base import ModelError, require_image

_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_MAX_GROUPS = 8
_AUXILIARY = 512
"""Units of the hidden affine maps of an auxiliary head."""


def build(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 11,
    width: int = 64,
    norm: str = "group",
    dense: int = 0,
    dropout: float = 0.5,
) -> nn.Module:
    """Return a VGG network.

    Args:
        depth: layers with weights of the paper's network: 11, 13, 16 or 19, of which all but three are convolutions.
        width: filters of the first stage; then 2, 4, 8 and 8 times as many.
        norm: `batch` or `group`, as for residual networks.
        dense: units of each of two hidden affine maps, as published 4096, which see 7 x 7 places; 0 for one affine map
            of the mean over the image, as is usual for images of 32 x 32.
        dropout: after each hidden affine map.

    Raises:
        ModelError: when a setting is none of these, or images are smaller than 16 x 16.

    Shapes: images `[B, C, H, W]`, logits `[B, num_classes]`.

    Source: Simonyan, Zisserman 2015, arXiv:1409.1556, table 1, configurations A, B, D and E. Poolings round up, so that
    images of 28 x 28 can be halved five times. Filters are drawn as in He et al. 2015, arXiv:1502.01852, section 2.2.
    """
    channels, height, width_of_image = require_image("vgg", input_shape)
    if depth not in _STAGES:
        near = min(_STAGES, key=lambda known: abs(known - depth))
        raise ModelError(f"model vgg has depth {depth}, which is none of 11, 13, 16 and 19", f"the nearest is {near}")
    if norm not in ("batch", "group"):
        raise ModelError(f"model vgg has norm {norm!r}", "norms are batch and group")
    if min(height, width_of_image) < 16:
        raise ModelError(
            f"model vgg halves an image five times, but images are {height} x {width_of_image}", "use model.name: cnn"
        )
    return VGG(channels, num_classes, _STAGES[depth], width, norm, dense, dropout)


class VGG(nn.Module):
    """The network of `build`."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        stages: tuple[int, ...],
        width: int,
        norm: str,
        dense: int,
        dropout: float,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for stage, num_blocks in enumerate(stages):
            filters = width * min(2**stage, 8)
            for index in range(num_blocks):
                blocks.append(Convolution(channels, filters, norm, pool=stage > 0 and index == 0))
                channels = filters
        self.blocks = nn.Sequential(*blocks)
        self.head = Head(channels, num_classes, dense, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(images))

    def pipeline_layers(self) -> list[tuple[str, nn.Module]]:
        """Return the convolutions and the head, between which a pipeline may cut."""
        return [*((f"blocks.{index}", block) for index, block in enumerate(self.blocks)), ("head", self.head)]


class Convolution(nn.Module):
    """Halves the image where a stage begins; then a convolution, a norm and ReLU."""

    def __init__(self, before: int, after: int, norm: str, *, pool: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if pool else None
        self.conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(math.gcd(_MAX_GROUPS, after), after)
        self._kind = norm

    def forward(self, hidden: Tensor) -> Tensor:
        if self.pool is not None:
            hidden = self.pool(hidden)
        return nn.functional.relu(self.norm(self.conv(hidden)))

    def auxiliary_unit(self, channels: int, stride: int) -> Convolution:
        """Return a new one for other channels (`strategies.local.units`).

        It halves the image where it changes the channels, and only there: an image is pooled once for a jump of several
        stages, as in AugLocal's program for VGG; `stride`, which would carry on the rest, is left aside.
        """
        after = self.conv.out_channels
        return Convolution(channels, after, self._kind, pool=channels != after)


class Head(nn.Module):
    """The last pooling, and the affine maps."""

    def __init__(self, channels: int, num_classes: int, dense: int, dropout: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)]
        if dense:
            layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
            for before in (channels * 49, dense):
                layers += [nn.Linear(before, dense), nn.ReLU(), nn.Dropout(dropout)]
        else:
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Linear(dense or channels, num_classes))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden)

    def auxiliary_head(self, shape: tuple[int, ...]) -> nn.Module:
        """Return the head that AugLocal gives its auxiliary networks for VGG: 512 averages, two hidden affine maps.

        Source: Ma et al. 2024, arXiv:2402.17318, as its authors' program does it (`exp_imagenet`, AuxClassifier_VGG).
        """
        layers: list[nn.Module] = [nn.Flatten(), nn.AdaptiveAvgPool1d(_AUXILIARY)]
        for _ in range(2):
            layers += [nn.Linear(_AUXILIARY, _AUXILIARY), nn.BatchNorm1d(_AUXILIARY), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(_AUXILIARY, self.num_classes))
