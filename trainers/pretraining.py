"""Transfer learning: a model is first trained on other data, in one place, and the run begins with what it learned.

    train      the model, built for the classes of the source, learns all of the source's examples
    transfer   the run's model takes every tensor of the same name and shape, but for those of the output layer
    freeze     tensors whose names a pattern finds then stay as they are (`trainers.models.freezing`)

What is learned is a function of the `model` section, the source, the seed and the number of threads. Where it is kept
between runs is the orchestrator's affair.

Source: Verbraeken, de Vos, Pouwelse 2021 (Bristle), arXiv:2110.11006: a network trained centrally on a related data
set, of which all but the output layer is kept and frozen. Deviation: the source's pixels come on the scale of the run's
data, so that white and black are the same numbers in both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from strategies.base import Tree
from strategies.seeds import integer
from trainers import models, modules
from trainers.data.base import Dataset, to_labels, to_tensor
from trainers.local import LocalSettings, Task, loss_of, train
from trainers.models import ModelError
from trainers.threads import intra_op_threads

_TEST_BATCH = 500


class Learned(NamedTuple):
    """A model trained on the source.

    Args:
        tree: all its tensors. accuracy, loss: on the source's test examples. num_steps: of the optimizer.
    """

    tree: Tree
    accuracy: float
    loss: float
    num_steps: int


def on_scale_of(source: Dataset, target: Dataset) -> Dataset:
    """Return the source with its pixels on the target's scale, where both have one."""
    return source if source.scale is None or target.scale is None else source._replace(scale=target.scale)


def output_names(section: Mapping[str, Any], *, input_shape: tuple[int, ...], num_classes: int) -> frozenset[str]:
    """Return the tensors that a run does not take over: those found by `output`, or that depend on the classes.

    Args:
        section: the experiment's `model`, with its `pretrain`.

    Raises:
        ModelError: when there are none, so that it cannot be told which layer is the output.
    """
    pattern = section["pretrain"]["output"]
    if pattern is not None:
        names = _sizes(section, input_shape, num_classes)
        hint = f"names are {', '.join([*names][:6])}"
        try:
            found = frozenset(name for name in names if re.search(pattern, name))
        except re.error as error:
            raise ModelError(f"output is {pattern!r}, which is no regular expression: {error}", hint) from error
        if not found:
            raise ModelError(f"output is {pattern!r}, which finds no tensor", hint)
        return found
    fewer, more = (_sizes(section, input_shape, num_classes + extra) for extra in (0, 1))
    found = frozenset(name for name in fewer if name not in more or fewer[name].shape != more[name].shape)
    if not found:
        hint = f"give a pattern of its tensors as model.pretrain.output; names are {', '.join([*fewer][:6])}"
        raise ModelError("no tensor's shape depends on the number of classes, so the output layer is not known", hint)
    return found


def learn(
    section: Mapping[str, Any],
    source: Dataset,
    *,
    input_shape: tuple[int, ...],
    seed: int,
    tell: Callable[[int], None] = lambda step: None,
) -> Learned:
    """Train the model on the source with the loop that clients train with.

    Args:
        section: the experiment's `model`, with its `pretrain`.
        input_shape: of the run's data, which the source's must be.
        seed: the run's. tell: called with the number of the step that begins, from 1.

    Raises:
        ModelError: when the model does not fit the source. NotFinite: when training diverges.
    """
    asked = section["pretrain"]
    model = _built(section, input_shape, source.num_classes, integer(seed, "model"))
    models.check(model, source, section)
    settings = LocalSettings(asked["epochs"], None, asked["batch_size"], asked["optimizer"], None)
    dtype = getattr(torch, section["dtype"])
    with intra_op_threads(asked["threads"]):
        x, y = to_tensor(source.train_x, source, dtype), to_labels(source.train_y)
        task = Task(0, 0, modules.snapshot(model))
        with _told(model, tell):
            trained = train(model, task, x, y, settings, run_seed=integer(seed, "pretraining"))
        loss, accuracy = _measure(model, source, dtype)
    return Learned(modules.snapshot(model), accuracy, loss, trained.num_steps)


def shared(own: Tree, learned: Tree, output: Collection[str] = ()) -> dict[str, Tensor]:
    """Return those of the learned tensors that a model takes over: of equal name and shape, and not of the output."""
    return {
        name: tensor
        for name, tensor in learned.items()
        if name in own and name not in output and own[name].shape == tensor.shape
    }


@torch.no_grad()
def adopt(model: nn.Module, tree: Tree) -> None:
    """Copy into a model every tensor of equal name and shape."""
    own = modules.tensors(model)
    for name, tensor in shared(own, tree).items():
        own[name].copy_(tensor)


def _built(section: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """Return the model with nothing frozen."""
    whole = {**section, "pretrain": None}
    return models.build(whole, input_shape=input_shape, num_classes=num_classes, seed=seed)


def _sizes(section: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int) -> dict[str, Tensor]:
    """Return the model's tensors for their shapes alone; without memory where the model is one of ours."""
    with nullcontext() if section.get("target") else torch.device("meta"):
        return modules.tensors(_built(section, input_shape, num_classes, 0))


@contextmanager
def _told(model: nn.Module, tell: Callable[[int], None]) -> Iterator[None]:
    """Count the forward passes of training as steps."""
    step = 0

    def count(module: nn.Module, inputs: Any) -> None:
        nonlocal step
        if module.training and torch.is_grad_enabled():
            step += 1
            tell(step)

    handle = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _measure(model: nn.Module, source: Dataset, dtype: torch.dtype) -> tuple[float, float]:
    """Return the mean loss and the part of right predictions on the source's test examples."""
    model.eval()
    loss_sum, correct, predictions = 0.0, 0, 0
    for first in range(0, len(source.test_x), _TEST_BATCH):
        rows = slice(first, first + _TEST_BATCH)
        targets: Tensor = to_labels(source.test_y[rows])
        logits = model(to_tensor(source.test_x[rows], source, dtype))
        loss_sum += float(loss_of(logits, targets, reduction="sum").double())
        correct += int((logits.argmax(-1) == targets).sum())
        predictions += targets.numel()
    return loss_sum / predictions, correct / predictions
