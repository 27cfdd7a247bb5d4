"""A model whose clients train it by a rule of local learning, with the model's own forward for everything else.

The rule's modules are made of the model's units and keep its parameters; their auxiliary networks become further
parameters of the model, `local_learning.*`, which travel, are aggregated and are checkpointed as all others, unless
`aggregate_keys` leaves them with the clients. Evaluation never runs them.

What is saved is memory: of a batch, activations are kept for one module at a time (`kept_bytes`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from strategies.local import LocalRule, rule, units
from strategies.local.memory import Saved, backward_bytes
from strategies.local.serial import module_seed
from trainers.models.base import ModelError

NAME = "local_learning"


class LocalLearning(nn.Module):
    """The modules that a rule made of a model. As a layer it is the identity, so that an nn.Sequential may hold it.

    Args:
        made: the rule. modules: in order.
    """

    def __init__(self, made: LocalRule, modules: Sequence[nn.Module], num_classes: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self._rule, self._num_classes = made, num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def gradients(
        self, x: Tensor, y: Tensor, seed: int, parameters: Sequence[nn.Parameter]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the last module's loss of a batch, and each parameter's gradient by its own module's loss.

        Args:
            seed: of what modules draw for this batch.
        """
        for parameter in parameters:
            parameter.grad = None
        carry, loss = self._rule.start(x, y, self._num_classes, seed), 0.0
        for index, part in enumerate(self.parts):
            carry = part(carry, y, module_seed(seed, index))
            loss = part.learn()  # type: ignore[operator]
        found = tuple(parameter.grad for parameter in parameters)
        for parameter in parameters:
            parameter.grad = None
        return torch.tensor(loss, device=x.device), found


def attach(
    model: nn.Module, section: Mapping[str, Any], *, input_shape: Sequence[int], num_classes: int, seed: int
) -> None:
    """Make a model one that is trained by a rule.

    Args:
        section: the rule's name and arguments.
        seed: of the auxiliary networks' first weights.

    Raises:
        ModelError: when the model has no units that the rule can take.
    """
    made = rule(section["name"], **{key: value for key, value in section.items() if key != "name"})
    try:
        modules = made.modules(units(model), num_classes=num_classes, input_shape=tuple(input_shape), seed=seed)
    except ValueError as error:
        raise ModelError(
            f"{made.name}: {error}", "choose a model with several layers, or strategy.client.rule=null"
        ) from error
    setattr(model, NAME, LocalLearning(made, modules, num_classes))


def of(model: nn.Module) -> LocalLearning | None:
    """Return how a model is trained, where that is by a rule."""
    found = getattr(model, NAME, None)
    return found if isinstance(found, LocalLearning) else None


def kept_bytes(model: nn.Module, x: Tensor, y: Tensor) -> tuple[int, int]:
    """Return the most bytes that autograd keeps for a batch: by the model's rule, and by backpropagation.

    The model is not changed.
    """
    tried = copy.deepcopy(model).train()
    learning = of(tried)
    assert learning is not None
    parameters = list(tried.parameters())
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        with Saved([tried]) as saved:
            learning.gradients(x, y, 0, parameters)
        return saved.peak_bytes, backward_bytes(tried, x, y)
