"""A small local-learning run, and the serial program that every way to run it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strategies.local import predict, train_batch
from trainers import learning_rate, optimizers
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.decoupled.settings import Settings, build

WIDTH, CLASSES, HIDDEN = 6, 3, 8
STEPS = 5


def toy(input_shape: tuple[int, ...], num_classes: int, norm: bool = True) -> nn.Module:
    """Five affine layers with BatchNorm, whose statistics move, and dropout, which draws; and a head."""
    layers: list[nn.Module] = []
    for number in range(5):
        layers += [nn.Linear(HIDDEN if number else input_shape[0], HIDDEN), *[nn.BatchNorm1d(HIDDEN)] * norm]
        layers += [nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, num_classes))


class Breaks(nn.Module):
    """Hands on what it is given, four times."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 4

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training
        if self.left < 0:
            raise RuntimeError("out of patience")
        return x


def breaking(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network whose second half raises after a while."""
    first, second = nn.Linear(input_shape[0], HIDDEN), nn.Linear(HIDDEN, HIDDEN)
    return nn.Sequential(first, nn.ReLU(), nn.Sequential(second, nn.ReLU()), Breaks(), nn.Linear(HIDDEN, num_classes))


def data(*, seed: int = 0) -> dict[str, np.ndarray]:
    """Three clouds of points."""
    generator = np.random.default_rng(seed)
    centres = 2 * generator.standard_normal((CLASSES, WIDTH))
    y = np.arange(60) % CLASSES
    x = (centres[y] + 0.3 * generator.standard_normal((60, WIDTH))).astype(np.float32)
    return {"train_x": x[:44], "train_y": y[:44], "test_x": x[44:], "test_y": y[44:]}


def dataset() -> Dataset:
    return Dataset("clouds", "classification", **data(), num_classes=CLASSES, input_shape=(WIDTH,))


def settings(shares: tuple[int, ...], rule: Mapping[str, Any], **changes: Any) -> Settings:
    """Batches of 7, of which six make an epoch; a rate that rises and falls; an optimizer with a memory."""
    given = Settings(
        model={
            "target": "tests.contract.local_runs:toy",
            "kwargs": {"norm": rule["name"] != "tpsgd"},
            "dtype": "float32",
        },
        seed=3,
        model_seed=4,
        rule=rule,
        shares=shares,
        batch_size=7,
        steps=STEPS,
        evaluate_batch=6,
        optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "kwargs": {"nesterov": True}},
        learning_rate={"name": "cosine", "warmup_steps": 2, "final": 0.1},
        queue=3,
        quota=STEPS,
    )
    return given._replace(**changes)


def serially(given: Settings, steps: int = STEPS) -> tuple[list[dict[str, Tensor]], list[float], float]:
    """Return each module's state, the last module's losses and the accuracy of the serial program."""
    examples = dataset()
    built = build(given, examples)
    own = [optimizers.build(given.optimizer, module.parameters()) for module in built.modules]
    losses = []
    for step in range(1, steps + 1):
        for optimizer in own:
            for group in optimizer.param_groups:
                group["lr"] = given.optimizer["lr"] * learning_rate.factor(given.learning_rate, step, given.steps)
        rows = given.order(len(examples.train_y)).batch(step - 1)
        x, y = to_tensor(examples.train_x[rows], examples, torch.float32), to_labels(examples.train_y[rows])
        seed = given.batch_seed(step)
        losses.append(train_batch(built.modules, own, built.rule, x, y, seed, num_classes=CLASSES)[-1])
    right = 0
    for index, start in enumerate(range(0, len(examples.test_y), given.evaluate_batch)):
        rows = slice(start, start + given.evaluate_batch)
        x, seed = to_tensor(examples.test_x[rows], examples, torch.float32), given.evaluation_seed(index)
        scores = predict(built.modules, built.rule, x, num_classes=CLASSES, seed=seed)
        right += int((scores.argmax(-1) == to_labels(examples.test_y[rows])).sum())
    return [dict(module.state_dict()) for module in built.modules], losses, right / len(examples.test_y)


def named(given: Settings, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the serial program's tensors by their names in checkpoints."""
    names = build(given, dataset()).names()
    return {own[name]: tensor for own, state in zip(names, states, strict=True) for name, tensor in state.items()}


def flat(trees: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a whole state, optimizers' memories left out."""
    return {name: t for tree in ("model", "auxiliary", "counters") for name, t in trees.get(tree, {}).items()}


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
