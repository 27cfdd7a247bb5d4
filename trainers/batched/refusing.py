"""Which models and optimizers cannot be trained side by side, found by looking at them and then by trying."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainers import local_rule, modules
from trainers.batched.block import joined
from trainers.batched.chain import parse
from trainers.batched.general import General
from trainers.batched.orders import schedule
from trainers.batched.stepper import ELEMENTWISE
from trainers.data.base import Dataset, to_labels, to_tensor
from trainers.local import LocalSettings, NotFinite, Task, loss_of, train

_TOLERANCE = 1e-3
"""Largest relative difference of the trial from the loop. Rounding leaves 1e-6, a wrong program much more."""


def refusal(model: nn.Module, settings: LocalSettings, dataset: Dataset) -> str:
    """Return why clients of this model go through the loop, or an empty string when they can be trained batched.

    A chain of known layers is known to work. Any other module is copied and trained for two steps on two clients of
    three and two examples, batched and by the loop; a module that mixes a batch's examples, draws random numbers or
    keeps a state is found out so.
    """
    name = str(settings.optimizer["name"]).lower()
    if name not in ELEMENTWISE:
        return f"optimizer {name} does not work element by element"
    if local_rule.of(model) is not None:
        return "its modules learn one after another, by a rule of local learning"
    for path, module in model.named_modules():
        what = f"{path} ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"{what} mixes the examples of a batch and keeps running statistics"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"{what} draws random numbers"
        if isinstance(module, nn.RNNBase):
            return f"{what} has no batched form in torch.func"
    if parse(model, dataset.input_shape) is not None:
        return ""
    return _tried(model, settings, dataset)


def _tried(model: nn.Module, settings: LocalSettings, dataset: Dataset) -> str:
    copied = copy.deepcopy(model)
    parameter = next(copied.parameters())
    trial = settings._replace(epochs=2, steps=None, batch_size=3)
    rows = [slice(0, 3), slice(3, 5)] if len(dataset.train_x) >= 5 else [slice(0, 2), slice(0, 1)]
    parts = [
        (
            to_tensor(dataset.train_x[each], dataset, parameter.dtype).to(parameter.device),
            to_labels(dataset.train_y[each]).to(parameter.device),
        )
        for each in rows
    ]
    start = modules.snapshot(copied)
    tasks = [Task(client, 1, start) for client in range(2)]
    try:
        unused = _unused(copied, *parts[0])
    except Exception as error:  # a user's module may raise anything; the loop will name the client it does so for
        return f"it raises in training: {_short(error)}"
    if unused:
        return f"{unused} takes no part in the result"
    counters = {name: buffer.clone() for name, buffer in copied.named_buffers()}
    plan = schedule(tasks, [len(x) for x, _ in parts], trial, 0)
    try:
        with torch.no_grad():
            group = General(copied, list(start), trial).train(tasks, joined(parts), plan)
    except Exception as error:  # a user's module may raise anything, and vmap refuses much
        return f"torch.func cannot batch it: {_short(error)}"
    if any(not torch.equal(buffer, counters[name]) for name, buffer in copied.named_buffers()):
        return "its buffers change in training"
    trees = group.multiply_out()
    for row, (task, (x, y)) in enumerate(zip(tasks, parts, strict=True)):
        try:
            expected = train(copied, task, x, y, trial, run_seed=0).delta
        except NotFinite as error:  # as the run will, which says of which client
            return f"on a few examples, {error}"
        away = _length({name: trees[name][row] - tensor for name, tensor in expected.items()})
        if not away <= _TOLERANCE * _length(expected):
            return "it mixes the examples of a batch: batched, a client's update differs from the loop's"
    return ""


def _unused(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """Return the first parameter without a gradient, which the loop's optimizer would leave alone."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        gradients = torch.autograd.grad(loss_of(model(x), y), list(named.values()), allow_unused=True)
    return next((name for name, gradient in zip(named, gradients, strict=True) if gradient is None), "")


def _length(tree: dict[str, Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tree.values())))))


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
