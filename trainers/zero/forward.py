"""One share of a batch through a model: what it returns, and what that is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.pipeline import losses
from trainers.zero.settings import Settings


class Scoring:
    """How examples are scored, on a device: inputs, targets, the loss, and right answers.

    Models may return logits, or an object or a mapping with `logits`, as Hugging Face's do; a user's own loss gets what
    the model returned. Cross-entropy is computed in float32, whatever the model computes in.
    """

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device) -> None:
        self._dataset, self._device = dataset, device
        own = bool(settings.loss.get("target"))
        loss = losses.build(settings.loss)
        self._dtype = torch.bfloat16 if settings.precision == "bf16" else getattr(torch, settings.model["dtype"])
        self._loss: Callable[[Any, Tensor], Tensor] = (
            loss if own else lambda returned, targets: loss(logits(returned).float(), targets)
        )
        self._means = settings.loss["reduction"] == "mean"

    def inputs(self, rows: Any, test: bool = False) -> Tensor:
        """Return examples as the model takes them."""
        examples = self._dataset.test_x if test else self._dataset.train_x
        return to_tensor(examples[rows], self._dataset, self._dtype).to(self._device)

    def loss(self, returned: Any, rows: Any) -> Tensor:
        """Return the loss of what the model made of training examples."""
        return self._loss(returned, to_labels(self._dataset.train_y[rows]).to(self._device))

    def tested(self, returned: Any, rows: Any) -> Tensor:
        """Return what there is to add up over test examples: `[loss, right answers, answers]`, float64."""
        targets = to_labels(self._dataset.test_y[rows]).to(self._device)
        count = targets.numel()
        loss = float(self._loss(returned, targets)) * (count if self._means else 1)
        scores, right = logits(returned), 0
        if isinstance(scores, Tensor) and scores.dim() == targets.dim() + 1:
            right = int((scores.argmax(-1) == targets).sum())
        return torch.tensor([loss, right, count], dtype=torch.float64)


def logits(returned: Any) -> Any:
    """Return the logits of what a model returned."""
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping) and "logits" in returned:
        return returned["logits"]
    return getattr(returned, "logits", returned)


def figures(total: Tensor) -> dict[str, float]:
    """Return what an evaluation found, from the sum of what `Scoring.tested` returned."""
    loss, right, count = total.tolist()
    return {"test/loss": loss / count, "test/accuracy": right / count}


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Let layers draw from a seed in this block, and leave the generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode in this block, and recording nothing."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()
