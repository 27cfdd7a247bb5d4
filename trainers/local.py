"""One client's local training: plain mini-batch steps from the received model, and the change they make.

Source: McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, ClientUpdate. Each epoch goes once over the
client's examples in an order drawn for (seed, round, client); the last batch of an epoch may be smaller.

This is the loop that any module and any optimizer of torch can go through. `trainers.batched` computes the same for
the models that it understands, many clients at once. Where the model has a rule of local learning (`local_rule.py`),
gradients are those of its modules' own losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.base import Correction, Tree
from strategies.seeds import generator, integer
from trainers import layout, local_rule, modules, optimizers


class LocalSettings(NamedTuple):
    """How a client trains.

    Args:
        epochs: passes over its examples; ignored when `steps` is given.
        steps: optimizer steps, going round its examples as often as that takes.
        batch_size: examples a step; `None` takes all of them at once.
        optimizer: name and arguments, see `trainers.optimizers`.
        clip_norm: largest norm of a step's whole gradient, corrections included; `None` leaves it.
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


class Task(NamedTuple):
    """One participation of one client.

    Args:
        client, round_: who trains, and from which version of the model.
        start: the tree it starts from.
        repeat: 0 at the client's first participation from this version, 1 at the next: it draws new batches.
        num_steps: local steps, where the client's behaviour says so; `None` takes what the settings say.
        correction: what the server rule adds to its gradients.
    """

    client: int
    round_: int
    start: Tree
    repeat: int = 0
    num_steps: int | None = None
    correction: Correction = Correction()

    @property
    def seed_indices(self) -> tuple[int, ...]:
        """What its random choices are drawn for, beside the run's seed."""
        return (self.round_, self.client, self.repeat) if self.repeat else (self.round_, self.client)


class Trained(NamedTuple):
    """What local training returns: the change of the model, the steps made and the mean loss of an example.

    Args:
        optimizer: what the optimizer remembers, for whoever goes on with it.
    """

    delta: dict[str, Tensor]
    num_steps: int
    loss: float
    optimizer: Mapping[str, Tensor] = MappingProxyType({})


class NotFinite(Exception):
    """Training left the finite numbers."""


def loss_of(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits.

    Shapes: logits [B, C] with targets [B], or logits [B, T, C] with targets [B, T] (a language model).
    """
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def batches(
    num_examples: int, settings: LocalSettings, rng: np.random.Generator, num_steps: int | None = None
) -> Iterator[Tensor]:
    """Yield the example indices of every local step, a fresh permutation an epoch.

    `[[0], [1], ...]` of every size is legal: a client with fewer examples than a batch makes one step an epoch.

    Args:
        num_steps: steps to make; `None` asks the settings.
    """
    size = settings.batch_size or num_examples
    left = settings.num_steps(num_examples) if num_steps is None else num_steps
    while left:
        order = torch.from_numpy(rng.permutation(num_examples))
        for start in range(0, num_examples, size):
            if not left:
                return
            left -= 1
            yield order[start : start + size]


def drawn(num_examples: int, settings: LocalSettings, task: Task, run_seed: int) -> Iterator[Tensor]:
    """Return the batches that `train` goes through."""
    return batches(num_examples, settings, generator(run_seed, "batches", *task.seed_indices), task.num_steps)


def needed(
    rows: np.ndarray, settings: LocalSettings, task: Task, run_seed: int
) -> tuple[np.ndarray, Sequence[Tensor] | None]:
    """Return those of a client's examples that its steps see, and what is to be `chosen` of them in `train`.

    A few steps of a client with many examples see few of them, and only those are to be read and made tensors. Where
    steps go round all of them, these are all, and `train` draws for itself.
    """
    num = len(rows)
    num_steps = settings.num_steps(num) if task.num_steps is None else task.num_steps
    if num_steps < 1 or num_steps * (settings.batch_size or num) >= num:
        return rows, None
    steps = list(drawn(num, settings, task, run_seed))
    seen = torch.cat(steps)
    return rows[seen.numpy()], torch.arange(len(seen)).split([len(step) for step in steps])


@torch.enable_grad()  # whoever asks may be folding, which records no gradients
def train(
    model: nn.Module,
    task: Task,
    x: Tensor,
    y: Tensor,
    settings: LocalSettings,
    *,
    run_seed: int,
    optimizer: Mapping[str, Tensor] = MappingProxyType({}),
    chosen: Iterable[Tensor] | None = None,
) -> Trained:
    """Train `model` from `task.start` on one client's examples and return the change.

    The model is overwritten; its convolutions' weights may come to lie channels-last. Dropout and the like draw
    from torch's global generator, which is seeded here for the task and put back afterwards.

    Args:
        x: the client's inputs [n, ...]. y: its targets [n] or [n, T].
        optimizer: what `Trained.optimizer` was, to go on with; a client of a server begins anew each time.
        chosen: the rows of `x` of each step, where they have been drawn before; `None` draws them.

    Raises:
        NotFinite: when the loss or the change holds NaN or infinity.
        ValueError: when the task is to make no steps, or its start does not fit the model.
    """
    if task.num_steps is not None and task.num_steps < 1:
        raise ValueError(f"client {task.client} is to make {task.num_steps} steps; a participation makes at least one")
    layout.settle(model, x)
    modules.load(model, task.start)
    if not model.training:
        model.train()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    own_optimizer = _optimizer(settings, named, optimizer)
    step = _stepper(settings, task, named, own_optimizer)
    parameters, learning = list(named.values()), local_rule.of(model)
    losses, counts = [], []
    with _seeded(x.device, integer(run_seed, "client", *task.seed_indices)), _counters_kept(model):
        for rows in drawn(len(x), settings, task, run_seed) if chosen is None else chosen:
            if learning is None:
                loss = loss_of(model(x[rows]), y[rows])
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            else:
                seed = integer(run_seed, "local rule", *task.seed_indices, len(counts))
                loss, gradients = learning.gradients(x[rows], y[rows], seed, parameters)
            step(gradients)
            losses.append(loss.detach())
            counts.append(len(rows))
    weights = torch.tensor(counts, dtype=torch.float64, device=x.device)
    mean = float(torch.stack(losses).double() @ weights) / sum(counts)
    own = modules.tensors(model)
    delta = dict(zip(own, torch._foreach_sub(list(own.values()), [task.start[name] for name in own]), strict=True))
    # A norm is NaN or infinite when any element is: one fused pass instead of one per tensor and element.
    if not np.isfinite(mean) or not torch.stack(torch._foreach_norm(list(delta.values()))).isfinite().all():
        raise NotFinite(f"training diverged: mean loss {mean} after {len(counts)} steps")
    return Trained(delta, len(counts), mean, optimizers.remembered(own_optimizer, named))


def _optimizer(
    settings: LocalSettings, named: Mapping[str, nn.Parameter], memory: Mapping[str, Tensor]
) -> torch.optim.Optimizer | None:
    """Return the optimizer of a client; None where plain steps do."""
    if optimizers.plain_lr(settings.optimizer) is not None:
        return None
    optimizer = optimizers.build(settings.optimizer, named.items())
    optimizers.remind(optimizer, named, memory)
    return optimizer


def _stepper(
    settings: LocalSettings, task: Task, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None
) -> Any:
    """Return a function that corrects and clips the gradients it is given, in the order of `named`, and steps.

    Args:
        optimizer: None for plain steps.
    """
    lr = optimizers.plain_lr(settings.optimizer) or 0.0
    offset, proximal = task.correction.offset or {}, task.correction.proximal
    names, parameters = list(named), list(named.values())
    starts = [task.start[name].to(parameter.device) for name, parameter in named.items()] if proximal else []

    @torch.no_grad()
    def step(gradients: tuple[Tensor | None, ...]) -> None:
        given = [place for place, gradient in enumerate(gradients) if gradient is not None]
        used, grads = [parameters[place] for place in given], [gradients[place] for place in given]
        if offset:
            grads = [
                grad + offset[names[place]] if names[place] in offset else grad
                for place, grad in zip(given, grads, strict=True)
            ]
        if proximal:
            pull = torch._foreach_sub(used, [starts[place] for place in given])
            grads = torch._foreach_add(grads, pull, alpha=proximal)
        if settings.clip_norm is not None:
            total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            grads = torch._foreach_mul(grads, (settings.clip_norm / (total + 1e-6)).clamp(max=1.0))
        if optimizer is None:
            torch._foreach_add_(used, grads, alpha=-lr)
            return
        for parameter in parameters:
            parameter.grad = None
        for parameter, grad in zip(used, grads, strict=True):
            parameter.grad = optimizers.aligned(grad, parameter)
        optimizer.step()

    return step


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators that a model on `device` draws from, and put them back afterwards.

    `torch.random.fork_rng` and `torch.manual_seed` do the same for every device there is, in 200 microseconds.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [each.get_state() for each in generators]
    try:
        for each in generators:
            each.manual_seed(seed)
        yield
    finally:
        for each, state in zip(generators, states, strict=True):
            each.set_state(state)


@contextmanager
def _counters_kept(model: nn.Module) -> Iterator[None]:
    """Put integer buffers back, which do not travel: whoever trains next on this worker finds them as this one did.

    BatchNorm with `momentum=None` averages over its count of batches, so a count that stayed would tell who was before.
    """
    found = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_floating_point()]
    try:
        yield
    finally:
        for buffer, before in found:
            buffer.copy_(before)
