"""Whether the patterns of a `memory` section find anything in the layers of the model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from orchestrator.config import Origins
from orchestrator.config.memory import Memory, plain
from orchestrator.errors import ConfigError, Problem
from trainers.activations import part_names, unused_patterns

Layers = Mapping[int, tuple[str, nn.Module]]
"""By number, name and module, as `trainers.activations.Saver` takes them."""


def memory_problems(memory: Memory | None, layers: Layers, where: Origins) -> list[Problem]:
    """Return a problem for each pattern that finds no part of any layer."""
    section = plain(memory)
    if section is None:
        return []
    path = "strategy.memory.layers"
    names = part_names(layers)
    shown = [name for name in names if name]
    told = ", ".join(shown[:6]) + (", ..." if len(shown) > 6 else "")
    return [
        Problem(where(path), path, f"got {pattern!r}, which finds no part of the model", f"parts are {told}")
        for pattern in unused_patterns(section, names)
    ]


def insist_parts(memory: Memory | None, layers: Layers, where: Origins) -> None:
    """Check that each pattern finds a part of some layer.

    Raises:
        ConfigError: with the problems of `memory_problems`.
    """
    if problems := memory_problems(memory, layers, where):
        raise ConfigError(problems)
