"""Server optimizers: what a server does with the direction that its clients' updates come to.

A server rule turns a fold into something like a gradient, such as the negated mean change; a server optimizer steps
against it. Any rule takes any of them, so FedAdam is FedAvg with `adam`, and SCAFFOLD with `yogi` is one line away.

    sgd       v <- momentum v + g;    x <- x - lr v               (nesterov: x <- x - lr (g + momentum v))
    adam      m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2;                     x <- x - lr m / (sqrt(v) + tau)
    yogi      m likewise;             v <- v - (1 - b2) g^2 sign(v - g^2);          x likewise
    adagrad   m likewise;             v <- v + g^2;                                 x likewise

Source: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021
(arXiv:2003.00295), Algorithms 1 and 2, with `g = -Delta_t`. As there, nothing corrects the moments' bias, `tau` is
outside the root, and `v_{-1} = tau^2`, the least that the paper allows. Momentum is torch's (no dampening).

A step reads and moves the names of its gradient alone: what a round did not aggregate keeps weights and moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from strategies.base import State, Tree


class ServerOptimizer(NamedTuple):
    """How a server steps against something like a gradient.

    Args:
        init: `model -> state`, under slots of its own.
        step: `(state, model, gradient) -> (state, model)`. The state may hold slots of others, which are kept.
    """

    init: Callable[[Tree], State]
    step: Callable[[State, Tree, Tree], tuple[State, Tree]]


Choice = Mapping[str, Any] | ServerOptimizer
"""A name with arguments, such as `{"name": "adam", "beta1": 0.9}`, or an optimizer that is already built."""

PLAIN: Choice = {"name": "sgd"}


def sgd(lr: float = 1.0, momentum: float = 0.0, nesterov: bool = False) -> ServerOptimizer:
    """Return gradient descent; without momentum it remembers nothing."""

    def init(model: Tree) -> State:
        return {"momentum": filled(model, 0.0)} if momentum else {}

    def step(state: State, model: Tree, gradient: Tree) -> tuple[State, Tree]:
        direction = tuple(gradient.values())
        if momentum:
            velocity = torch._foreach_mul(_of(state["momentum"], gradient), momentum)
            torch._foreach_add_(velocity, direction)
            state = {**state, "momentum": replaced(state["momentum"], gradient, velocity)}
            direction = torch._foreach_add(direction, velocity, alpha=momentum) if nesterov else velocity
        return state, replaced(model, gradient, torch._foreach_add(_of(model, gradient), direction, alpha=-lr))

    return ServerOptimizer(init, step)


def adam(lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> ServerOptimizer:
    """Return Adam as federated: no bias correction."""

    def grown(moment: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
        return list(torch._foreach_add(torch._foreach_mul(moment, beta2), squares, alpha=1 - beta2))

    return _adaptive(grown, lr, beta1, tau)


def yogi(lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> ServerOptimizer:
    """Return Yogi: the second moment grows like Adam's and shrinks by no more than a squared gradient."""

    def grown(moment: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
        signs = torch._foreach_sign(torch._foreach_sub(moment, squares))
        return list(torch._foreach_addcmul(moment, squares, signs, value=beta2 - 1))

    return _adaptive(grown, lr, beta1, tau)


def adagrad(lr: float = 0.1, beta1: float = 0.0, tau: float = 1e-3) -> ServerOptimizer:
    """Return Adagrad; `beta1` 0, its usual form, has no momentum."""

    def grown(moment: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
        return list(torch._foreach_add(moment, squares))

    return _adaptive(grown, lr, beta1, tau)


def _adaptive(
    grown: Callable[[list[Tensor], list[Tensor]], list[Tensor]], lr: float, beta1: float, tau: float
) -> ServerOptimizer:
    def init(model: Tree) -> State:
        return {"momentum": filled(model, 0.0), "second_moment": filled(model, tau * tau)}

    def step(state: State, model: Tree, gradient: Tree) -> tuple[State, Tree]:
        slopes = list(gradient.values())
        first = torch._foreach_mul(_of(state["momentum"], gradient), beta1)
        torch._foreach_add_(first, slopes, alpha=1 - beta1)
        second = grown(_of(state["second_moment"], gradient), list(torch._foreach_mul(slopes, slopes)))
        roots = torch._foreach_sqrt(second)
        torch._foreach_add_(roots, tau)
        state = {
            **state,
            "momentum": replaced(state["momentum"], gradient, first),
            "second_moment": replaced(state["second_moment"], gradient, second),
        }
        return state, replaced(model, gradient, torch._foreach_addcdiv(_of(model, gradient), first, roots, value=-lr))

    return ServerOptimizer(init, step)


SERVER_OPTIMIZERS: Mapping[str, Callable[..., ServerOptimizer]] = {
    "sgd": sgd, "adam": adam, "yogi": yogi, "adagrad": adagrad,
}  # fmt: skip
"""Name in an experiment file -> function that builds it from `lr` and the section's own arguments."""


def build(choice: Choice, lr: float) -> ServerOptimizer:
    """Return the optimizer chosen. One that is already built keeps its own rate; `lr` is for a named one.

    Raises:
        KeyError: when the name is not in `SERVER_OPTIMIZERS`.
    """
    if isinstance(choice, ServerOptimizer):
        return choice
    arguments = {key: value for key, value in choice.items() if key != "name"}
    return SERVER_OPTIMIZERS[choice["name"]](lr, **arguments)


# ------------------------------------------------------------------------------------- trees, as rules need them


def divided(model: Tree, total: Tree, divisor: float) -> Tree:
    """Return `total / divisor` for the names of the model that `total` holds, in the model's order and dtypes."""
    names = [name for name in model if name in total]
    means = torch._foreach_mul([total[name] for name in names], 1.0 / divisor)
    return {name: mean.to(model[name].dtype) for name, mean in zip(names, means, strict=True)}


def filled(tree: Tree, value: float) -> Tree:
    """Return a tree of the same names, shapes and dtypes that holds `value` everywhere."""
    return {name: torch.full_like(tensor, value) for name, tensor in tree.items()}


def replaced(tree: Tree, names: Iterable[str], tensors: Iterable[Tensor]) -> Tree:
    """Return `tree` with new tensors under some of its names, its order kept."""
    return {**tree, **dict(zip(names, tensors, strict=True))}


def _of(tree: Tree, names: Iterable[str]) -> list[Tensor]:
    return [tree[name] for name in names]
