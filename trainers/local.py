"""One client's local training: plain mini-batch steps from the received model, and the change they make.

Source: McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, ClientUpdate. Each epoch goes once over the
client's examples in an order drawn for (seed, round, client); the last batch of an epoch may be smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.seeds import generator, integer
from trainers import modules, optimizers


class LocalSettings(NamedTuple):
    """How a client trains.

    Args:
        epochs: passes over its examples; ignored when `steps` is given.
        steps: optimizer steps, going round its examples as often as that takes.
        batch_size: examples a step; `None` takes all of them at once.
        optimizer: name and arguments, see `trainers.optimizers`.
        clip_norm: largest norm of a step's whole gradient; `None` leaves it.
    """

    epochs: int
    steps: int | None
    batch_size: int | None
    optimizer: Mapping[str, Any]
    clip_norm: float | None

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> LocalSettings:
        """Read the `strategy.client` section of an experiment."""
        size = None if section["batch_size"] == "full" else section["batch_size"]
        return cls(section["epochs"], section["steps"], size, section["optimizer"], section["clip_norm"])

    def num_steps(self, num_examples: int) -> int:
        """Optimizer steps that a client with `num_examples` examples makes."""
        if self.steps is not None:
            return self.steps
        size = self.batch_size or num_examples
        return self.epochs * -(-num_examples // size)


class Trained(NamedTuple):
    """What local training returns: the change of the model, the steps made and the mean loss of an example."""

    delta: dict[str, Tensor]
    num_steps: int
    loss: float


class NotFinite(Exception):
    """Training left the finite numbers."""


def loss_of(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits.

    Shapes: logits [B, C] with targets [B], or logits [B, T, C] with targets [B, T] (a language model).
    """
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def batches(num_examples: int, settings: LocalSettings, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield the example indices of every local step, a fresh permutation an epoch.

    `[[0], [1], ...]` of every size is legal: a client with fewer examples than a batch makes one step an epoch.
    """
    size = settings.batch_size or num_examples
    left = settings.num_steps(num_examples)
    while left:
        order = torch.from_numpy(rng.permutation(num_examples))
        for start in range(0, num_examples, size):
            if not left:
                return
            left -= 1
            yield order[start : start + size]


@torch.enable_grad()  # whoever asks may be folding, which records no gradients
def train(
    model: nn.Module,
    received: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    settings: LocalSettings,
    *,
    run_seed: int,
    round_: int,
    client: int,
) -> Trained:
    """Train `model` from `received` on one client's examples and return the change.

    The model is overwritten. Dropout and the like draw from torch's global generator, which is seeded here for
    (seed, round, client) and put back afterwards.

    Args:
        x: the client's inputs [n, ...]. y: its targets [n] or [n, T].

    Raises:
        NotFinite: when the loss or the change holds NaN or infinity.
    """
    modules.load(model, received)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizers.build(settings.optimizer, parameters)
    rng = generator(run_seed, "batches", round_, client)
    total, count, steps = torch.zeros((), device=x.device, dtype=torch.float64), 0, 0
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(integer(run_seed, "client", round_, client))
        for chosen in batches(len(x), settings, rng):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(model(x[chosen]), y[chosen])
            loss.backward()
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            total += loss.detach() * len(chosen)
            count += len(chosen)
            steps += 1
    mean = float(total) / count
    own = modules.tensors(model)
    delta = dict(zip(own, torch._foreach_sub(list(own.values()), [received[name] for name in own]), strict=True))
    # A norm is NaN or infinite when any element is: one fused pass instead of one per tensor and element.
    if not np.isfinite(mean) or not torch.stack(torch._foreach_norm(list(delta.values()))).isfinite().all():
        raise NotFinite(f"training diverged: mean loss {mean} after {steps} steps")
    return Trained(delta, steps, mean)
