"""Counter-current learning: a second net, from the classes down, meets the first one layer by layer.

    forward     a_l = F_l(sg a_{l-1})       a_0 = x                                    examples, upwards
    feedback    c_l = B_{l+1}(sg c_{l+1})   c_L = I, a row for each class              classes, downwards
    level l<L   vectors  256 w / dim * MSE(a_l c_l^T, Y)                               Y = [y_i = c], one-hot rows
                images   w * MSE(a c^T, Y) + v * [MSE(a a^T, I) + MSE(c c^T, I)]       rows of a, c of unit length
    level L     cross-entropy of a_L

Level l trains F_l and B_{l+1} and nothing else; module l has both. No weights are shared between the nets.

Source: Kao and Hariharan, "Counter-Current Learning: A Biologically Plausible Dual Network Approach for Deep
Learning", NeurIPS 2024, arXiv:2409.19841; losses, shapes of B (the forward layer turned round, without bias, ELU) and
settings as in its program github.com/IandRover/CCL-NeurIPS24 (`utils/loss.py`, `models`): w = 0.5 for vectors, w = 1
and v = 0.5 for images, SGD with lr 1 and momentum 0 (vectors, 256 a batch, clip 1) or 0.8 with weight decay 1e-6
(images, 128 a batch, clip 0.3, gradients centralised before they are clipped, 100 steps of warm-up, cosine to 1e-3).

What comes down does not depend on the batch: C rows of a layer's width. `feedback` is given those of the module above,
keeps them for the next batches, and returns its own for the module below.
    serial       `serial.descend` before every batch: every level meets c of the weights as they are, as the program.
                 Every run does this; the first module then waits for the last.
    pipelined    each module, when it begins a batch, takes the c that the module above sent when it began the batch
                 before (or two before, and so on), and then sends its own: `serial.descend(..., before)`. The program
                 has no such thing, and no run offers it. On digits (three layers of 100, ReLU, 3 seeds) serial and one
                 batch late are both at 91 to 94 % after 10 epochs, and at 98 % after 50.
What a module has before anything came is c of the initial weights.

Deviations: the program clips F's gradients over all layers together, and B's; here each module clips its F and its
B, as the norm of all would have to be gathered from everywhere. Its mask of examples that the top has got right
(images only) is left out for the same reason. Level 0, which trains B_1 to answer x and reaches nothing else, is left
out, and with it B_1. An image's B keeps the size of the layer above and is stretched to the size below (nearest),
whatever the forward unit does between; B of a unit that ends in a vector and began with an image is affine. A model
whose first unit gives images has the images' loss at every level, as the program's networks do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.local.base import Carry, FeedbackModule, LocalModule, LocalRule, drawing, evaluating
from strategies.local.serial import descend
from strategies.local.units import Shape, check_scores, shapes
from strategies.seeds import integer

OPTIMIZER: Mapping[str, object] = {"name": "sgd", "lr": 1.0}
_VECTOR_SCALE = 256.0


def build(
    weight: float | None = None, alike: float = 0.5, clip: float | None = None, centralise: bool | None = None
) -> LocalRule:
    """Return the counter-current rule.

    Args:
        weight: w; None is the program's, 0.5 for a model that begins with vectors and 1 for images.
        alike: v, of images only: what sets examples, and classes, apart from one another.
        clip: largest norm of the gradient of each module's F and of its B; None is 1 for vectors, 0.3 for images;
            0 does not clip.
        centralise: whether the mean of each output's weights is taken off gradients; None is for images only.
    """
    return LocalRule(
        "counter-current",
        partial(_modules, weight=weight, alike=alike, clip=clip, centralise=centralise),
        _start,
        lambda carry: carry["h"],
    )


class CounterCurrent(FeedbackModule):
    """Level l: F_l and B_{l+1}; at the top, F_L alone, whose loss is cross-entropy.

    Args:
        above: `c_{l+1}` to begin with. level_loss: of a_l, c_l and targets.
    """

    def __init__(
        self,
        forward_net: nn.Module,
        feedback_net: nn.Module | None,
        above: Tensor,
        level_loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        clip: float,
        centralise: bool,
    ) -> None:
        super().__init__()
        self.forward_net, self.feedback_net = forward_net, feedback_net
        self._level_loss, self.clip, self.centralise = level_loss, clip, centralise
        self.above: Tensor
        self.register_buffer("above", above)
        self._kept: tuple[Tensor, Tensor] | None = None

    def feedback(self, c: Tensor) -> Tensor:
        """Keep `c_{l+1} [C, ...]` of the module above and return `c_l`, detached; at the top, hand on what came."""
        self.above.copy_(c)
        if self.feedback_net is None:
            return self.above
        with evaluating(self):
            own: Tensor = self.feedback_net(self.above)
        return own

    def forward(self, carry: Carry, targets: Tensor, seed: int) -> Carry:
        with torch.enable_grad(), drawing(seed, targets.device):
            a = self.forward_net(carry["h"])
        self._kept = a, targets
        return {"h": a.detach()}

    def learn(self) -> float:
        if self._kept is None:
            raise RuntimeError("learn() has no batch; call forward first")
        a, targets = self._kept
        self._kept = None
        with torch.enable_grad():
            if self.feedback_net is None:
                loss = functional.cross_entropy(a, targets)
            else:
                loss = self._level_loss(a, self.feedback_net(self.above), targets)
            loss.backward()  # type: ignore[no-untyped-call]
        for net in (self.forward_net, self.feedback_net):
            if net is not None:
                self._tame(net)
        return loss.item()

    def infer(self, carry: Carry) -> Carry:
        with evaluating(self):
            return {"h": self.forward_net(carry["h"])}

    def _tame(self, net: nn.Module) -> None:
        if self.centralise:
            for parameter in net.parameters():
                if parameter.dim() > 1 and parameter.grad is not None:
                    parameter.grad -= parameter.grad.mean(dim=tuple(range(1, parameter.dim())), keepdim=True)
        if self.clip:
            nn.utils.clip_grad_norm_(net.parameters(), self.clip)


def vector_loss(a: Tensor, c: Tensor, targets: Tensor, weight: float = 0.5) -> Tensor:
    """Return the loss of a level of vectors, from activations `[B, n]` and feedback `[C, n]`."""
    same = functional.one_hot(targets, len(c)).to(a.dtype)
    return functional.mse_loss(a @ c.T, same) * (weight * _VECTOR_SCALE / a.shape[1])


def image_loss(a: Tensor, c: Tensor, targets: Tensor, weight: float = 1.0, alike: float = 0.5) -> Tensor:
    """Return the loss of a level of a model of images, from activations `[B, ...]` and feedback `[C, ...]`."""
    a, c = _unit_rows(a), _unit_rows(c)
    same = functional.one_hot(targets, len(c)).to(a.dtype)
    return weight * functional.mse_loss(a @ c.T, same) + alike * (_apart(a) + _apart(c))


class _Reshaped(nn.Module):
    """Makes rows of numbers of another shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), *self.shape)


def _feedback_net(above: Shape, own: Shape) -> nn.Module:
    """Return B_{l+1}, from the shape of `c_{l+1}` to that of `c_l`."""
    if len(above) == len(own) == 3:
        stretched = nn.Upsample(size=tuple(own[1:]), mode="nearest")
        return nn.Sequential(stretched, nn.Conv2d(above[0], own[0], 3, padding=1, bias=False), nn.ELU())
    affine = nn.Linear(math.prod(above), math.prod(own), bias=False)
    return nn.Sequential(nn.Flatten(), affine, nn.ELU(), _Reshaped(own))


def _unit_rows(x: Tensor) -> Tensor:
    x = x.flatten(1)
    length: Tensor = x.norm(dim=1, keepdim=True)
    return x / (length + 1e-8)


def _apart(rows: Tensor) -> Tensor:
    return functional.mse_loss(rows @ rows.T, torch.eye(len(rows), dtype=rows.dtype, device=rows.device))


def _modules(
    units: Sequence[nn.Module],
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    seed: int,
    weight: float | None,
    alike: float,
    clip: float | None,
    centralise: bool | None,
) -> list[LocalModule]:
    made = shapes(units, input_shape)
    check_scores(units, made, num_classes)
    images = len(made[0]) == 3
    weight = (1.0 if images else 0.5) if weight is None else weight
    modules: list[LocalModule] = []
    for level, unit in enumerate(units):
        feedback_net = None
        if level + 1 < len(units):
            with drawing(integer(seed, "counter-current feedback", level)):
                feedback_net = _feedback_net(made[level + 1], made[level])
        modules.append(
            CounterCurrent(
                unit,
                feedback_net,
                torch.zeros(num_classes, *made[min(level + 1, len(units) - 1)]),
                partial(image_loss, weight=weight, alike=alike) if images else partial(vector_loss, weight=weight),
                clip=(0.3 if images else 1.0) if clip is None else clip,
                centralise=images if centralise is None else centralise,
            )
        )
    descend(modules, num_classes)
    return modules


def _start(x: Tensor, y: Tensor | None, num_classes: int, seed: int) -> Carry:
    return {"h": x}
