"""Local learning as a program in one process: the statement that every way to run it is held against.

Module by module: forward, then the module's own steps, then the next module on what was computed before those steps.
A module's result depends on its own state, its carry, the targets and its seed alone; so modules that run side by
side, each a batch behind the one before it, do the same operations on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from strategies.local.base import FeedbackModule, LocalModule, LocalRule
from strategies.seeds import integer


def train_batch(
    modules: Sequence[LocalModule],
    optimizers: Sequence[Optimizer],
    rule: LocalRule,
    x: Tensor,
    y: Tensor,
    seed: int,
    *,
    num_classes: int,
) -> list[float]:
    """Train every module on one batch.

    Args:
        optimizers: one a module, of that module's parameters.
        x, y: examples `[B, ...]` and classes `[B]`.
        seed: of this batch, at least 0.

    Returns:
        Each module's loss, of the last of its inner steps.
    """
    descend(modules, num_classes)
    carry = rule.start(x, y, num_classes, seed)
    losses = []
    for index, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
        carry = module(carry, y, module_seed(seed, index))
        losses.append(learn(module, optimizer))
    return losses


def descend(modules: Sequence[LocalModule], num_classes: int, before: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Send the classes down the modules, where they take feedback; elsewhere do nothing.

    Args:
        before: what each module sent at an earlier batch. Without it, the top is asked first, and every module hears
            what those above make of the classes with the weights they have now. With it, every module hears what the
            one above sent then: what a pipeline does in which each module, when it begins a batch, takes what the
            module above sent when it began that earlier batch, and then sends down once. It need not wait for more.

    Returns:
        What each module sent, first module first; empty where none takes feedback.
    """
    taking = [module for module in modules if isinstance(module, FeedbackModule)]
    if not taking:
        return []
    weight = next(taking[-1].parameters())
    c = torch.eye(num_classes, dtype=weight.dtype, device=weight.device)
    if before is not None:
        return [module.feedback(sent) for module, sent in zip(taking, [*before[1:], c], strict=True)]
    sent_down: list[Tensor] = []
    for module in reversed(taking):
        c = module.feedback(c)
        sent_down.insert(0, c)
    return sent_down


def learn(module: LocalModule, optimizer: Optimizer) -> float:
    """Make a module's inner steps on the batch it keeps; return the loss of the last."""
    loss = float("nan")
    for _ in range(module.inner_steps):
        optimizer.zero_grad(set_to_none=True)
        loss = module.learn()
        optimizer.step()
    return loss


def predict(modules: Sequence[LocalModule], rule: LocalRule, x: Tensor, *, num_classes: int, seed: int = 0) -> Tensor:
    """Return class scores `[B, C]` of examples.

    Args:
        seed: of what `rule.start` draws, if it draws anything.
    """
    carry = rule.start(x, None, num_classes, seed)
    for module in modules:
        carry = module.infer(carry)
    return rule.scores(carry)


def module_seed(seed: int, index: int) -> int:
    """Return the seed of one module for a batch; `seed` is the batch's."""
    return integer(seed, "local module", index)
