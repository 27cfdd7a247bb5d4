"""Which modules' activations are kept in 8 bits, in which groups, and how they are rounded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn


class Policy(NamedTuple):
    """What is kept in 8 bits, and how.

    Args:
        groups: see `strategies.activations.groups_of`. rules: patterns searched for in the names of modules, with
            whether what is saved there is encoded; the first one found decides, and else `default`.
        min_elements: fewer are left alone. stochastic: rounding. running: ranges that are remembered, or each its own.
    """

    groups: Any
    rules: tuple[tuple[re.Pattern[str], bool], ...]
    default: bool
    min_elements: int
    stochastic: bool
    running: bool

    @classmethod
    def of(cls, memory: Mapping[str, Any]) -> Policy:
        """Return the policy that an experiment's `memory` section asks for.

        Raises:
            re.error: for a pattern that is none.
        """
        layers = memory.get("layers")
        named = {layers: "int8"} if isinstance(layers, str) else dict(layers or {})
        return cls(
            memory.get("groups", 8),
            tuple((re.compile(pattern), what == "int8") for pattern, what in named.items()),
            not isinstance(layers, str),
            memory.get("min_elements", 1024),
            memory.get("rounding", "stochastic") == "stochastic",
            memory.get("range", "running") == "running",
        )

    def encodes(self, name: str) -> bool:
        """Return whether what a module of this name saves is encoded."""
        return next((encode for pattern, encode in self.rules if pattern.search(name)), self.default)


def part_names(layers: Mapping[int, tuple[str, nn.Module]]) -> list[str]:
    """Return the names that patterns are searched for in: of all parts of layers, given by number, name and module."""
    return [join(name, local) for name, module in layers.values() for local, _ in module.named_modules()]


def unused_patterns(memory: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the patterns of a `memory` section that are found in no name."""
    return [rule.pattern for rule, _ in Policy.of(memory).rules if not any(map(rule.search, names))]


def join(layer: str, local: str) -> str:
    """Return the name of a part of a layer."""
    return ".".join(filter(None, (layer, local)))


def heads_of(layers: Mapping[int, nn.Module]) -> dict[int, int]:
    """Return for each layer with attention its heads: the first part that says `heads`, `num_heads` or the like."""
    found = {}
    for index, layer in layers.items():
        for part in layer.modules():
            said = [getattr(part, name, None) for name in ("heads", "num_heads", "num_attention_heads", "n_head")]
            numbers = [number for number in said if isinstance(number, int) and number > 0]
            if numbers:
                found[index] = numbers[0]
                break
    return found
