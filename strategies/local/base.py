"""What every rule of local learning is: a network as modules, each of which learns without hearing from later ones.

    x, y --start--> carry_0 --module 0--> carry_1 --module 1--> ... carry_K --scores--> class scores
                              |learn               |learn

A rule makes *modules* of a model's *units*. A unit is a piece of the model that no cut goes through; composed, the
units are the model, and the last unit, the *head*, gives the class scores (`units.py` finds them). A module keeps the
units' own parameters, so that the model is trained in place, and adds what its loss needs (an auxiliary network, a
fixed projection). Between modules travel tensors that no gradient can cross, since they are detached: there is no
message for gradients, and no module waits for a later one.

    train   carry = module(carry, targets, seed); then, `inner_steps` times, module.learn() and a step of its optimizer
    infer   carry = module.infer(carry)

What a module returns was computed *before* it learned from that batch, so it may be sent first and learned from later.
`serial.py` is this as a program in one process, which every way to run it is held against. Left out: processes,
queues, schedules of the learning rate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Carry = dict[str, Tensor]
"""What travels between modules: batch-first tensors by name, never requiring grad. `h` is the activation; a rule adds
its own (`positive`, `negative`, `scores`)."""


class LocalModule(nn.Module, ABC):
    """One module's program: what it sends on, how it learns, how it answers.

    Its parameters are the ones it trains; no other module has any of them. Projections that are drawn once and stay,
    and the like, are buffers.
    """

    inner_steps: int = 1
    """How often `learn` is called for a batch, with a step of the optimizer after each."""

    @abstractmethod
    def forward(self, carry: Carry, targets: Tensor, seed: int) -> Carry:
        """Return the next module's carry, detached, and keep what `learn` needs of this batch.

        Args:
            carry: of this module; not written to.
            targets: classes `[B]`.
            seed: of this module for this batch (`serial.module_seed`); the only source of random numbers.
        """

    @abstractmethod
    def learn(self) -> float:
        """Put the gradient of the loss for the kept batch into `.grad` of this module's parameters; return the loss.

        By autograd inside the module, or by the rule's formula. The caller has set all `.grad` to None and steps the
        optimizer afterwards. After the last of `inner_steps` calls nothing of the batch is kept.
        """

    @abstractmethod
    def infer(self, carry: Carry) -> Carry:
        """Return the next module's carry for evaluation; leaves parameters, buffers, modes and the kept batch alone."""


class FeedbackModule(LocalModule):
    """A module that is also sent something from above, which no gradient is and no batch has part in.

    `serial.descend` says when.
    """

    @abstractmethod
    def feedback(self, c: Tensor) -> Tensor:
        """Keep what the module above sends, for the batches to come, and return what goes to the module below.

        Shapes: a row for each class, `[C, ...]`; the top module is sent the identity.
        """


class LocalRule(NamedTuple):
    """A rule of local learning, its arguments bound.

    Args:
        name: as experiment files call it.
        modules: `(units, *, num_classes, input_shape, seed) -> modules in order`. The units' parameters are theirs
            from then on; what a rule draws comes from `seed`; `input_shape` is one example's. ValueError when the
            units do not suit the rule.
        start: `(x [B, ...], y [B] or None, num_classes, seed) -> the first module's carry`; y only in training.
        scores: `last carry of infer -> class scores [B, C]`, the largest of which is the prediction.
        stream: `forward` when a module needs the carry of the one before; `none` when every module can train on
            `start`'s carry alone, whatever the others do.
    """

    name: str
    modules: Callable[..., list[LocalModule]]
    start: Callable[[Tensor, Tensor | None, int, int], Carry]
    scores: Callable[[Carry], Tensor]
    stream: Literal["forward", "none"] = "forward"


@contextmanager
def drawing(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let layers draw from a generator seeded with `seed`; torch's own state is afterwards what it was before.

    Layers such as dropout, and constructors of layers, can draw from torch's default generator only.
    """
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            assert device is not None
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode and without autograd; every part's mode is afterwards what it was before."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
