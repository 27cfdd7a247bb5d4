"""What optimizers share whose step of a tensor depends on norms of that whole tensor: LAMB and LARS.

A step has two passes. The first leaves a direction for each tensor and sums squares, the second moves along it by a
rate of the tensor's own. Where a tensor is cut, its squares are summed over all that hold a part of it in between:
norms of a part each would be another algorithm, whose step can differ by half (see the tests). A tensor may be cut

    in flat tensors    pieces of named tensors one behind another: `shard` says which, and how to sum over ranks
    as a DTensor       its placements say over which ranks

Whole tensors on a CPU take both passes a few at a time, so that directions take the memory of the largest tensor, not
of the model; elsewhere each operation is one multi-tensor kernel over everything, and norms come to the host once.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from strategies.optimizers.pieces import Piece, check

VECTORS = "vectors"
"""The exclusion of all tensors of at most one dimension: biases, and gains of normalisation layers."""

_SPAN = 1 << 20
"""Elements from which on the two passes are done before the next tensors' turn, on a CPU: directions take memory."""


class Item(NamedTuple):
    """A whole tensor, or what this rank has of it.

    Args:
        weight, gradient, slots: with as many elements; what the optimizer remembers, in the order of its slots.
        place: its column among the squares. step: of this tensor, from 1.
        decay: its weight decay. adapts: whether the rate is its own. group: the optimizer's parameter group.
    """

    weight: Tensor
    gradient: Tensor
    slots: tuple[Tensor, ...]
    place: int
    step: int
    decay: float
    adapts: bool
    group: dict[str, Any]


class _Cut(NamedTuple):
    pieces: Mapping[Tensor, Sequence[Piece]]
    places: Mapping[str, int]
    total: Callable[[Tensor], Tensor]


class Layerwise(torch.optim.Optimizer):
    """The two passes; a subclass says what each does to some items of one group.

    Args:
        params: parameters, `(name, parameter)` pairs, or groups of either; names are needed for regular expressions.
        defaults: of groups. `exclude`: tensors that neither decay nor have a rate of their own: `"vectors"`, a regular
            expression that is searched for in names, or None. `exclude_adaptation`: further ones without a rate of
            their own, likewise.

    Raises:
        ValueError: when an exclusion is no regular expression.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._cut: _Cut | None = None
        for group in self.param_groups:
            for rule in (group["exclude"], group["exclude_adaptation"]):
                if rule is not None:
                    _pattern(rule)

    @abstractmethod
    def first(self, items: Sequence[Item]) -> list[Tensor]:
        """Return the tensors whose norms count beside the weights'; they are handed to `second`."""

    @abstractmethod
    def second(self, items: Sequence[Item], found: list[Tensor], ratios: Sequence[float]) -> None:
        """Move the weights, given what `first` returned, and each item's ratio."""

    @abstractmethod
    def ratios(self, group: Mapping[str, Any], decay: float, weight: float, other: float) -> float:
        """Return an item's ratio from the norm of its weights and that of what `first` returned."""

    def shard(
        self, pieces: Mapping[Tensor, Sequence[Piece]], names: Sequence[str], total: Callable[[Tensor], Tensor]
    ) -> None:
        """Say that parameters are flat tensors with pieces of named ones, of which other ranks have the rest.

        Args:
            pieces: of each parameter; elements in none of them (padding) stay as they are. One that is all of its
                parameter may be any part of its tensor in any layout, whatever its `start`.
            names: of all named tensors, in the same order on every rank.
            total: returns the sum of a float64 tensor over all ranks. Every `step` calls it once, whatever it has
                gradients for, so that ranks which step as often meet.

        Raises:
            ValueError: when a piece reaches beyond a tensor, lies over another, or has an unknown name.
        """
        check(pieces, names)
        self._cut = _Cut(dict(pieces), {name: place for place, name in enumerate(names)}, total)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for items, num_places, total in self._spans():
            batches = [list(batch) for _, batch in groupby(items, key=lambda item: id(item.group))]
            found = [self.first(batch) for batch in batches]
            squares = _squares(batches, found, num_places)
            norms = total(squares).sqrt().tolist()
            for batch, others in zip(batches, found, strict=True):
                each = [
                    self.ratios(i.group, i.decay, norms[0][i.place], norms[1][i.place]) if i.adapts else 1.0
                    for i in batch
                ]
                self.second(batch, others, each)
        return loss

    # ---------------------------------------------------------------------------------------------------- items

    def _spans(self) -> Iterator[tuple[list[Item], int, Callable[[Tensor], Tensor]]]:
        """Yield items whose squares are summed together, how many columns they take, and how to sum over ranks."""
        if self._cut is not None:
            yield list(self._cut_items(self._cut)), len(self._cut.places), self._cut.total
            return
        waiting: list[Item] = []
        meshes: dict[tuple[Any, tuple[Any, ...]], list[int]] = {}
        distributed, size = False, 0
        for parameter, group, name in self._parameters():
            whole = self._item(parameter, group, name, len(waiting))
            if hasattr(parameter, "device_mesh"):
                distributed = True
                meshes.setdefault((parameter.device_mesh, _sums(parameter)), []).append(len(waiting))
            waiting.append(whole)
            size += whole.weight.numel()
            if size >= _SPAN and whole.weight.device.type == "cpu" and not distributed:
                yield waiting, len(waiting), _alone
                waiting, size = [], 0
        if waiting:
            yield waiting, len(waiting), lambda squares: _summed(squares, meshes)

    def _parameters(self) -> Iterator[tuple[Tensor, dict[str, Any], str | None]]:
        """Yield what has a gradient, with its group and its name."""
        for group in self.param_groups:
            names = group.get("param_names") or [None] * len(group["params"])
            if self._cut is not None:
                names = [None] * len(group["params"])  # the names of what was there before it was flattened
            for parameter, name in zip(group["params"], names, strict=True):
                if parameter.grad is not None:
                    if parameter.grad.is_sparse:
                        raise ValueError(f"{type(self).__name__} takes no sparse gradients, got one of {name or '?'}")
                    yield parameter, group, name

    def _remembered(self, parameter: Tensor) -> tuple[int, list[Tensor]]:
        """Return the number of this step of a parameter, and its slots."""
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        for slot in self.slots:
            if slot not in state:
                state[slot] = torch.zeros_like(parameter)
        return int(state["step"]), [state[slot] for slot in self.slots]

    def _item(self, parameter: Any, group: dict[str, Any], name: str | None, place: int) -> Item:
        gradient = parameter.grad
        step, slots = self._remembered(parameter)
        decays, adapts = _rules(group, name, parameter.dim())
        if hasattr(parameter, "device_mesh"):
            gradient = gradient.redistribute(parameter.device_mesh, parameter.placements).to_local()
            slots = [slot.to_local() for slot in slots]  # type: ignore[attr-defined]
            parameter = parameter.to_local()
        decay = group["weight_decay"] if decays else 0.0
        return Item(parameter, _laid_out(gradient, slots), tuple(slots), place, step, decay, adapts, group)

    def _cut_items(self, cut: _Cut) -> Iterator[Item]:
        for flat, group, _ in self._parameters():
            if flat not in cut.pieces:
                raise ValueError(
                    f"a flat tensor of {flat.numel()} elements has a gradient; say in shard() what it holds"
                )
            step, slots = self._remembered(flat)
            assert flat.grad is not None
            held = [flat, _laid_out(flat.grad, slots), *slots]
            for piece in cut.pieces[flat]:
                decays, adapts = _rules(group, piece.name, len(piece.shape))
                weight, gradient, *own = held
                if piece.length < flat.numel():
                    span = slice(piece.offset, piece.offset + piece.length)
                    weight, gradient, *own = (each.view(-1)[span] for each in held)
                decay = group["weight_decay"] if decays else 0.0
                yield Item(weight, gradient, tuple(own), cut.places[piece.name], step, decay, adapts, group)


def _laid_out(gradient: Tensor, slots: Sequence[Tensor]) -> Tensor:
    """Return a gradient that lies in memory as the slots do: torch's fused steps go through memory in its order."""
    if gradient.stride() == slots[0].stride():
        return gradient
    return torch.empty_like(slots[0]).copy_(gradient)


# ------------------------------------------------------------------------------------------------- exclusions


@cache
def _pattern(rule: str) -> re.Pattern[str]:
    try:
        return re.compile(rule)
    except re.error as error:
        raise ValueError(f"exclude: {rule!r} is neither {VECTORS!r} nor a regular expression: {error}") from error


def _excludes(rule: str | None, name: str | None, num_dimensions: int) -> bool:
    if rule is None:
        return False
    if rule == VECTORS:
        return num_dimensions <= 1
    if name is None:
        raise ValueError(f"exclude: {rule!r} is searched for in names, but parameters came without: give named ones")
    return _pattern(rule).search(name) is not None


def _rules(group: Mapping[str, Any], name: str | None, num_dimensions: int) -> tuple[bool, bool]:
    """Return whether a tensor decays, and whether its rate is its own."""
    excluded = _excludes(group["exclude"], name, num_dimensions)
    return not excluded, not excluded and not _excludes(group["exclude_adaptation"], name, num_dimensions)


# -------------------------------------------------------------------------------------------------- squares


def _squares(batches: Sequence[Sequence[Item]], found: Sequence[Sequence[Tensor]], num_places: int) -> Tensor:
    """Return the squared norms of the weights and of what was found, `[2, num_places]`, by the items' places."""
    squares = torch.zeros(2, num_places, dtype=torch.float64)
    places: list[int] = []
    norms: tuple[list[Tensor], list[Tensor]] = ([], [])
    for items, others in zip(batches, found, strict=True):
        chosen = [place for place, item in enumerate(items) if item.adapts and item.weight.numel()]
        if chosen:
            places += [items[place].place for place in chosen]
            norms[0].extend(_norms([items[place].weight for place in chosen]))
            norms[1].extend(_norms([others[place] for place in chosen]))
    if places:
        lengths = torch.stack([torch.stack(row) for row in norms]).double().cpu()
        squares.index_add_(1, torch.tensor(places), lengths.square())
    return squares


def _norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch._foreach_norm(tensors, 2, dtype=wide)


def _alone(squares: Tensor) -> Tensor:
    return squares


def _sums(parameter: Any) -> tuple[Any, ...]:
    """Return for each dimension of a DTensor's mesh whether squares are to be summed over it, as placements."""
    from torch.distributed.tensor import Partial, Replicate

    return tuple(Partial() if placement.is_shard() else Replicate() for placement in parameter.placements)


def _summed(squares: Tensor, meshes: Mapping[tuple[Any, tuple[Any, ...]], list[int]]) -> Tensor:
    """Sum the columns of DTensors over the ranks that share them, one all-reduce for all of equal placements."""
    if not meshes:
        return squares
    from torch.distributed.tensor import DTensor

    for (mesh, placements), places in meshes.items():
        local = squares[:, places].to(mesh.device_type)
        squares[:, places] = DTensor.from_local(local, mesh, placements).full_tensor().to(squares.device)
    return squares
