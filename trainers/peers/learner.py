"""The part of a peer that learns from its own examples: local steps that go on with the optimizer's memory.

A peer trains one model for as long as the run lasts, so momentum and moments stay with it from one action to the next;
a federated client, which starts anew from the server's model, keeps none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from strategies.base import Tree
from strategies.partition import Partition
from trainers import modules, optimizers
from trainers.data.base import Dataset, to_labels, to_tensor
from trainers.local import LocalSettings, Task, loss_of, train

OPTIMIZER, FRESH = "optimizer/", "fresh"
"""Where a peer's state holds what its optimizer remembers, and whether that is still nothing."""


class Learned(NamedTuple):
    """A model after local steps, the optimizer's part of the peer's state, steps made and the mean loss."""

    model: Tree
    memory: Tree
    num_steps: int
    loss: float


class Learner:
    """Trains and measures the models of peers.

    Args:
        model: any peer's network; loaded before each use.
        partition: which rows of the training examples each peer owns.
        seed: the run's.
    """

    def __init__(
        self, model: nn.Module, dataset: Dataset, partition: Partition, settings: LocalSettings, seed: int
    ) -> None:
        self.model, self.dataset, self.partition = model, dataset, partition
        self.first = modules.snapshot(model)
        self._settings, self._seed = settings, seed
        self._dtype = next(model.parameters()).dtype

    def owned(self, peer: int) -> list[int]:
        """Return the classes of a peer's examples, ascending."""
        return [int(label) for label in np.unique(self.dataset.train_y[self.partition.rows(peer)])]

    def foreign(self, peer: int) -> list[int]:
        """Return the classes that a peer has no example of, ascending."""
        return sorted({*range(self.dataset.num_classes)} - {*self.owned(peer)})

    def blank(self) -> dict[str, Tensor]:
        """Return the optimizer's part of the state of a peer that has not trained: a place for each tensor to come."""
        probe = {
            name: nn.Parameter(torch.zeros_like(parameter))
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        section = self._settings.optimizer
        optimizer = None if optimizers.plain_lr(section) is not None else optimizers.build(section, probe.items())
        if optimizer is not None:
            for parameter in probe.values():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        memory = optimizers.remembered(optimizer, probe)
        blank = {f"{OPTIMIZER}{name}": torch.zeros_like(tensor) for name, tensor in memory.items()}
        return {**blank, FRESH: torch.ones((), dtype=torch.uint8)}

    def learn(self, peer: int, iteration: int, num_steps: int, start: Tree, memory: Tree) -> Learned:
        """Make a peer's local steps of one action, from `start`."""
        rows = self.partition.rows(peer)
        x, y = self.tensors(self.dataset.train_x, self.dataset.train_y, rows)
        known: Mapping[str, Tensor] = {}
        if not memory[FRESH]:
            known = {name.removeprefix(OPTIMIZER): t for name, t in memory.items() if name.startswith(OPTIMIZER)}
        task = Task(peer, iteration + 1, start, num_steps=num_steps or None)
        trained = train(self.model, task, x, y, self._settings, run_seed=self._seed, optimizer=known)
        after = {f"{OPTIMIZER}{name}": tensor for name, tensor in trained.optimizer.items()}
        model = {name: start[name] + change for name, change in trained.delta.items()}
        return Learned(model, {**after, FRESH: torch.zeros((), dtype=torch.uint8)}, trained.num_steps, trained.loss)

    @torch.no_grad()
    def measure(self, model: Tree, examples: range, batch_size: int) -> tuple[int, float]:
        """Return how many of a range of test examples a model gets right, and the sum of its losses."""
        modules.load(self.model, model)
        self.model.eval()
        correct, loss_sum = 0, 0.0
        for start in range(examples.start, examples.stop, batch_size):
            rows = np.arange(start, min(start + batch_size, examples.stop))
            x, y = self.tensors(self.dataset.test_x, self.dataset.test_y, rows)
            logits = self.model(x)
            correct += int((logits.argmax(-1) == y).sum())
            loss_sum += float(loss_of(logits, y, reduction="sum").double())
        return correct, loss_sum

    def losses(self, rows: np.ndarray) -> Callable[[Tree], float]:
        """Return the mean loss on some training examples, as a function of the model, until something is trained."""
        x, y = self.tensors(self.dataset.train_x, self.dataset.train_y, rows)
        self.model.eval()

        @torch.no_grad()
        def loss(model: Tree) -> float:
            modules.load(self.model, model)
            return float(loss_of(self.model(x), y))

        return loss

    def tensors(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return some examples as the model takes them."""
        return to_tensor(x[rows], self.dataset, self._dtype), to_labels(y[rows])
