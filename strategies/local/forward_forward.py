"""Forward-forward: each layer tells right labels from wrong ones by how active it is.

    positive   the example with its label written in         goodness  g = sum_j z_j^2
    negative   the example with a wrong label written in     loss      -log s(g+ - theta) - log s(theta - g-)

Source: Hinton 2022, "The Forward-Forward Algorithm", arXiv:2212.13345: goodness and the probability that an input is
positive, section 2, equation 1; lengths normalised between layers, so that only directions are heard, section 2.1;
labels in the input and the two ways to answer, section 3.3. The peer normalisation, theta = the number of units, and
the optimizer are those of the published replication github.com/loeweX/Forward-Forward: SGD, lr 1e-3, momentum 0.9,
weight decay 3e-4, 100 examples a batch (`OPTIMIZER`), layers of 1000 units.

To answer, `goodness` (the default; the paper calls it the better) runs the example with every label, and adds up the
goodness of all layers but the first; `softmax` runs it once with a neutral label, and asks an affine map of the
normalised activities of all layers but the first, which the last module trains by cross-entropy.

Deviations: negatives are drawn alike from the wrong labels, not by how likely the net holds them, which would need
the answer of the last layer before the first learns. The replication lets gradients through ReLU as though it were
the identity; here a unit's own derivative counts. Where there is one layer only, it is heard, being also the first.
With `softmax`, normalised activities travel along with the activation, and the link grows with depth.
The model's head is no part of the rule: it is left as it is, and no module has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.local.base import Carry, LocalModule, LocalRule, drawing, evaluating
from strategies.local.label_input import with_every_label, with_labels, with_neutral_label, wrong_labels
from strategies.local.units import shapes
from strategies.seeds import integer

OPTIMIZER: Mapping[str, object] = {"name": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 3e-4}
_ACTIVITY_AT_START, _ACTIVITY_KEPT = 0.5, 0.9


def build(threshold: float | None = None, peer: float = 0.03, answer: str = "goodness") -> LocalRule:
    """Return the forward-forward rule.

    Args:
        threshold: theta; None is each layer's number of units.
        peer: weight of the peer normalisation, which draws each unit's mean activity to that of its layer.
        answer: `goodness` or `softmax`.

    Raises:
        ValueError: when there is no such answer.
    """
    if answer not in ("goodness", "softmax"):
        raise ValueError(f"forward-forward answers by goodness or softmax, got {answer!r}")
    softmax = answer == "softmax"
    return LocalRule(
        "forward-forward",
        partial(_modules, threshold=threshold, peer=peer, softmax=softmax),
        partial(_start, softmax=softmax),
        lambda carry: carry["scores"],
    )


class ForwardForward(LocalModule):
    """One layer that learns by its goodness.

    Args:
        heard: whether its activity counts when the net answers.
        classifier: of the last module with `softmax`.
    """

    def __init__(
        self,
        unit: nn.Module,
        num_units: int,
        *,
        threshold: float,
        peer: float,
        heard: bool,
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.unit, self.classifier = unit, classifier
        self.threshold, self.peer, self.heard = threshold, peer, heard
        self.activity: Tensor
        self.register_buffer("activity", torch.full((num_units,), _ACTIVITY_AT_START))
        self._kept: tuple[Tensor, Tensor, Carry, Tensor] | None = None

    def forward(self, carry: Carry, targets: Tensor, seed: int) -> Carry:
        num_positive = len(carry["positive"])
        with torch.enable_grad(), drawing(seed, targets.device):
            z = self.unit(normalised(torch.cat([carry["positive"], carry["negative"]])))
            activity = z[:num_positive].flatten(1).mean(dim=0)
            activity = _ACTIVITY_KEPT * self.activity + (1 - _ACTIVITY_KEPT) * activity
        self.activity.copy_(activity.detach())
        passed = z.detach()
        following = {"positive": passed[:num_positive], "negative": passed[num_positive:]}
        if "h" in carry:
            following |= self._neutral(carry)
        self._kept = z, activity, following, targets
        return following

    def learn(self) -> float:
        if self._kept is None:
            raise RuntimeError("learn() has no batch; call forward first")
        z, activity, following, targets = self._kept
        self._kept = None
        with torch.enable_grad():
            loss = goodness_loss(goodness(z), self.threshold)
            loss = loss + self.peer * (activity.mean() - activity).square().mean()
            if self.classifier is not None:
                loss = loss + functional.cross_entropy(self.classifier(following["features"]), targets)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def infer(self, carry: Carry) -> Carry:
        with evaluating(self):
            if "scores" not in carry:
                following = self._neutral(carry)
                if self.classifier is not None:
                    following["scores"] = self.classifier(following["features"])
                return following
            batch, num_classes = carry["scores"].shape
            z = self.unit(normalised(carry["h"].flatten(0, 1)))
            heard = goodness(z).view(batch, num_classes)
            scores = carry["scores"] + heard if self.heard else carry["scores"]
            return {"h": z.unflatten(0, (batch, num_classes)), "scores": scores}

    def _neutral(self, carry: Carry) -> Carry:
        """Take the neutral example on, with the activities that the classifier will read."""
        with evaluating(self):
            h = self.unit(normalised(carry["h"]))
            features = [carry["features"]] if "features" in carry else []
            if self.heard:
                features.append(normalised(h).flatten(1))
            return {"h": h, **({"features": torch.cat(features, dim=1)} if features else {})}


def goodness(z: Tensor) -> Tensor:
    """Return the sum of squares of each example's activities, `[B]`."""
    return z.flatten(1).square().sum(dim=1)


def goodness_loss(goodness: Tensor, threshold: float) -> Tensor:
    """Return the mean binary cross-entropy of "is positive"; the first half of `goodness [2 B]` is."""
    positive = torch.arange(len(goodness), device=goodness.device) < len(goodness) // 2
    return functional.binary_cross_entropy_with_logits(goodness - threshold, positive.to(goodness.dtype))


def normalised(h: Tensor) -> Tensor:
    """Return each example's numbers divided by their root mean square."""
    size = h.flatten(1).square().mean(dim=1).sqrt() + 1e-8
    return h / size.view(-1, *[1] * (h.dim() - 1))


def _modules(
    units: Sequence[nn.Module],
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    seed: int,
    threshold: float | None,
    peer: float,
    softmax: bool,
) -> list[LocalModule]:
    layers = units[:-1]
    if not layers:
        raise ValueError("forward-forward needs a unit before the head, got the head alone")
    sizes = [math.prod(shape) for shape in shapes(layers, input_shape)]
    first_heard = min(1, len(layers) - 1)
    modules: list[LocalModule] = []
    for index, (unit, size) in enumerate(zip(layers, sizes, strict=True)):
        classifier = None
        if softmax and index == len(layers) - 1:
            with drawing(integer(seed, "forward-forward classifier")):
                classifier = nn.Linear(sum(sizes[first_heard:]), num_classes)
        modules.append(
            ForwardForward(
                unit,
                size,
                threshold=float(size) if threshold is None else threshold,
                peer=peer,
                heard=index >= first_heard,
                classifier=classifier,
            )
        )
    return modules


def _start(x: Tensor, y: Tensor | None, num_classes: int, seed: int, *, softmax: bool) -> Carry:
    if y is None:
        if softmax:
            return {"h": with_neutral_label(x, num_classes)}
        return {"h": with_every_label(x, num_classes), "scores": x.new_zeros(len(x), num_classes)}
    neutral = {"h": with_neutral_label(x, num_classes)} if softmax else {}
    negative = with_labels(x, wrong_labels(y, num_classes, seed), num_classes)
    return {"positive": with_labels(x, y, num_classes), "negative": negative, **neutral}
