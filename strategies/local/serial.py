"""Local learning as a program in one process: the statement that every way to run it is held against.

Module by module: forward, then the module's own steps, then the next module on what was computed before those steps.
A module's result depends on its own state, its carry, the targets and its seed alone; so modules that run side by
side, each a batch behind the one before it, do the same operations on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from strategies.local.base import LocalModule, LocalRule
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
    carry = rule.start(x, y, num_classes, seed)
    losses = []
    for index, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
        carry = module(carry, y, module_seed(seed, index))
        losses.append(learn(module, optimizer))
    return losses


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
