"""What a rank's chunks remember of the ranges of their activations, as a part of its state.

    memory.alpha, memory.beta     by layer and place, `3/in0`; names know nothing of stages

What one stage saves of its output counts as the next one's input, and both remember its range, which is the same. Each
replica has seen other examples, and remembers its own: `3/in0@1` is that of replica 1. A replica that finds nothing of
its own begins with the first one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from trainers.activations import SUFFIX, Saver, Trees, export_running, restore_running
from trainers.pipeline.chunk import Chunk
from trainers.pipeline.layers import Layer


def make_saver(memory: Mapping[str, Any] | None, layers: Sequence[Layer], heads: Mapping[int, int]) -> Saver | None:
    """Return what keeps the activations of a chunk's layers; None where they are kept as they are."""
    if memory is None:
        return None
    return Saver(memory, {layer.index: (layer.name, layer.module) for layer in layers}, heads)


def commit_ranges(chunks: Iterable[Chunk]) -> None:
    """End a step."""
    for chunk in chunks:
        if chunk.saver is not None:
            chunk.saver.commit()


def export_ranges(chunks: Iterable[Chunk], replica: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return what a rank's chunks remember, as trees; none where they remember nothing."""
    trees: dict[str, dict[str, Tensor]] = {}
    for chunk in chunks:
        if chunk.saver is None:
            continue
        own, moved = {layer.index for layer in chunk.layers}, chunk.saver.running.moved
        # The next stage's, restored and not moved since, may have aged.
        found = export_running(
            chunk.saver,
            f"{SUFFIX}{replica}" if replica else "",
            lambda name, own=own, moved=moved: int(name.partition("/")[0]) in own or name in moved,
        )
        for tree, tensors in found.items():
            trees.setdefault(tree, {}).update(tensors)
    return trees


def restore_ranges(chunks: Iterable[Chunk], trees: Trees, replica: int = 0) -> None:
    """Take what a replica remembered out of the whole state."""
    for chunk in chunks:
        if chunk.saver is not None:
            restore_running(chunk.saver, trees, f"{SUFFIX}{replica}" if replica else "")
