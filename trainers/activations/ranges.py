"""Ranges that a saver remembers, as trees of a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from trainers.activations.policy import Policy
from trainers.activations.saver import Saver

ALPHA, BETA = "memory.alpha", "memory.beta"
"""The trees of a state that remembered ranges are in."""

SUFFIX = "@"
"""What parts the name of a place from the replica whose range it is."""

Trees = Mapping[str, Mapping[str, Tensor]]


def remembers(memory: Mapping[str, Any] | None) -> bool:
    """Return whether ranges are remembered from step to step, so that they belong to the state."""
    return memory is not None and Policy.of(memory).running


def export_running(saver: Saver, suffix: str = "", only: Callable[[str], bool] | None = None) -> Trees:
    """Return the ranges that a saver remembers as trees of a state; none where it remembers none.

    Args:
        suffix: of the names of places. only: which places.
    """
    trees: dict[str, dict[str, Tensor]] = {}
    for tree, tensors in zip((ALPHA, BETA), saver.running.export(), strict=True):
        named = {f"{name}{suffix}": tensor for name, tensor in tensors.items() if only is None or only(name)}
        if named:
            trees[tree] = named
    return trees


def restore_running(saver: Saver, trees: Trees, suffix: str = "") -> None:
    """Take the ranges of a state; with a suffix, where there are any of that name, else those without."""
    found = []
    for tree in (ALPHA, BETA):
        tensors = trees.get(tree, {})
        plain = {name: tensor for name, tensor in tensors.items() if SUFFIX not in name}
        own = {
            name.removesuffix(suffix): tensor for name, tensor in tensors.items() if suffix and name.endswith(suffix)
        }
        found.append({name: tensor.to(saver.device) for name, tensor in (plain | own).items()})
    saver.running.restore(*found)
