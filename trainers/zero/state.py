"""What a rank holds of a state, as pieces under the parameters' names, and how it takes its part out of any state.

    model             parameters, in full precision, and floating-point buffers
    counters          integer buffers
    optimizer.SLOT    what the optimizer remembers: of each element, or once a parameter (`step`)
    memory.*          ranges of activations that are kept in 8 bits (`keeping`), by place; the first rank writes them

Every element is written by one rank: of what all ranks hold alike (buffers, frozen parameters, all of stage 0) each
writes a part. Reading asks for the elements that this rank holds, whatever the number of ranks and the stage that
wrote them were; or for nothing but the model, where the state has nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainers import optimizers
from trainers.pipeline.state import Trees
from trainers.shards import Piece, pieces_of
from trainers.zero.fragments import Fragment, basic, fragments, is_shared

_OPTIMIZER = "optimizer."


class Source(Protocol):
    """A state to read from: `trainers.shards.Shards`, or `Whole`."""

    @property
    def trees(self) -> list[str]: ...
    def names(self, tree: str) -> list[str]: ...
    def read(self, tree: str, name: str, start: int = 0, length: int | None = None) -> Tensor: ...


class Whole:
    """A state that is here whole, read like files of pieces."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees

    @property
    def trees(self) -> list[str]:
        return list(self._trees)

    def names(self, tree: str) -> list[str]:
        """As `Shards.names`."""
        return list(self._trees.get(tree, {}))

    def read(self, tree: str, name: str, start: int = 0, length: int | None = None) -> Tensor:
        """As `Shards.read`."""
        flat = self._trees[tree][name].reshape(-1)
        return flat[start:] if length is None else flat[start : start + length]


def pieces(engine: Any, rank: int, ranks: int, dtype: torch.dtype) -> Iterator[Piece]:
    """Yield what this rank is to write, as views of what it holds.

    Args:
        dtype: of the model in checkpoints, for what ranks keep in less.
    """
    optimizer, shared = basic(engine.optimizer), is_shared(engine)
    for found in fragments(engine):
        low, high = (found.length * rank // ranks, found.length * (rank + 1) // ranks) if shared else (0, found.length)
        first = found.start == 0 and low == 0
        if low < high:
            yield Piece("model", found.name, found.shape, found.start + low, found.values[low:high])
        for slot, value in optimizer.state.get(found.moved, {}).items():
            tree = _OPTIMIZER + slot
            if not isinstance(value, Tensor | int | float | bool):
                continue
            held = torch.as_tensor(value)
            if held.shape == found.moved.shape and (held.dim() or not found.shape):
                if low < high:
                    yield Piece(tree, found.name, found.shape, found.start + low, found.of(held)[low:high])
            elif first:
                yield Piece(tree, found.name, (), 0, held.detach().reshape(-1))
    yield from _frozen(engine.module, rank, ranks, dtype)
    for name, buffer in engine.module.named_buffers():
        tree = "model" if buffer.is_floating_point() else "counters"
        yield from pieces_of(tree, [(name, buffer)], rank, ranks)


def _frozen(model: nn.Module, rank: int, ranks: int, dtype: torch.dtype) -> Iterator[Piece]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        part = getattr(parameter, "ds_tensor", None)
        if part is None:
            yield from pieces_of("model", [(name, parameter.to(dtype))], rank, ranks)
            continue
        start = rank * part.ds_numel
        length = min(part.ds_numel, parameter.ds_numel - start)
        if length > 0:
            yield Piece("model", name, tuple(parameter.ds_shape), start, part.detach()[:length].to(dtype))


@torch.no_grad()
def restore(engine: Any, source: Source, rank: int, section: Mapping[str, Any]) -> None:
    """Take this rank's part out of a state.

    Args:
        section: the experiment's, of the optimizer: it says what is remembered of each element.
    """
    own = fragments(engine)
    for found in own:
        found.values.copy_(source.read("model", found.name, found.start, found.length))
    for name, parameter in engine.module.named_parameters():
        _place(name, parameter, source, rank)
    for name, buffer in engine.module.named_buffers():
        tree = "model" if buffer.is_floating_point() else "counters"
        if name in source.names(tree):
            buffer.copy_(source.read(tree, name).view(buffer.shape))
    _remind(basic(engine.optimizer), own, source, section)


def remembered(source: Source) -> dict[str, dict[str, Tensor]]:
    """Return the trees `memory.*` of a state, whole."""
    trees = [tree for tree in source.trees if tree.startswith("memory.")]
    return {tree: {name: source.read(tree, name).clone() for name in source.names(tree)} for tree in trees}


def _place(name: str, parameter: Any, source: Source, rank: int) -> None:
    """Fill in what the forward pass reads."""
    part = getattr(parameter, "ds_tensor", None)
    if part is None or parameter.ds_status.name == "AVAILABLE":
        parameter.data.copy_(source.read("model", name).view(parameter.data.shape))
    if part is not None:
        start = rank * part.ds_numel
        length = min(part.ds_numel, parameter.ds_numel - start)
        if length > 0:
            part[:length].copy_(source.read("model", name, start, length))


def _remind(optimizer: torch.optim.Optimizer, own: list[Fragment], source: Source, section: Mapping[str, Any]) -> None:
    by_slot = {tree.removeprefix(_OPTIMIZER): tree for tree in source.trees if tree.startswith(_OPTIMIZER)}
    if not by_slot:
        return
    by_element = optimizers.slots(section)
    for slot, tree in by_slot.items():
        names = set(source.names(tree))
        for found in own:
            if found.name not in names:
                continue
            state = optimizer.state[found.moved]
            if by_element.get(slot, False):
                if slot not in state:
                    state[slot] = torch.zeros_like(found.moved)
                found.of(state[slot]).copy_(source.read(tree, found.name, found.start, found.length))
            else:
                state[slot] = source.read(tree, found.name).clone().view(())
