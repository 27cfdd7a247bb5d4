"""Which placements of its inputs an operator can work on without talking to other ranks, and what comes out of it.

One entry is for one axis of the mesh; on several axes any combination of entries is legal, each on what the axes before
left. Linear operators carry sums on, others must have them added up first.

Source: OneFlow (arXiv:2110.15032), table 1 for the product of matrices; its documentation of SBP for the others. That a
bias may be Broadcast where the product is a sum is DTensor's way: it is added on one rank only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from strategies.sharded.graph import Operator
from strategies.sharded.placements import BROADCAST, PARTIAL, Placement, Split, dual


class Signature(NamedTuple):
    """One legal combination: the placement of each input, and that of the output.

    Args:
        added: the place of a copy that one rank alone adds to its addend of a sum; None for none.
    """

    inputs: tuple[Placement, ...]
    output: Placement
    added: int | None = None

    @property
    def gradients(self) -> tuple[Placement, ...]:
        """How the inputs' gradients lie when the output's lies as `dual(output)` says.

        A copy that meets pieces, or addends, has a different gradient on every rank: their sum is meant. What is added
        to a sum has the gradient of the sum, which is the same on every rank.
        """
        found: list[Placement] = []
        for place, placement in enumerate(self.inputs):
            others = (*self.inputs[:place], *self.inputs[place + 1 :])
            meets = place != self.added and any(other != BROADCAST for other in others)
            found.append(PARTIAL if placement == BROADCAST and meets else dual(placement))
        return tuple(found)


Rule = Callable[[Operator, Sequence[int]], Iterator[Signature]]


def signatures(op: Operator, parts: Sequence[int] = (1,)) -> list[Signature]:
    """Return every legal signature of an operator, the one of copies first.

    Args:
        parts: of which splits may consist, besides those that shapes ask for. An unknown kind works on copies alone.
    """
    whole = Signature((BROADCAST,) * len(op.inputs), BROADCAST)
    rule = _RULES.get(op.kind)
    found = [whole, *(rule(op, parts) if rule is not None else ())]
    return list(dict.fromkeys(found))


def is_even(op: Operator, signature: Signature, ranks: int) -> bool:
    """Return whether all pieces of a signature are of one size."""
    tensors = zip((*op.shapes, op.shape), (*signature.inputs, signature.output), strict=True)
    return all(
        not isinstance(placement, Split)
        or (shape[placement.dim] % (placement.parts * ranks) == 0 and shape[placement.dim] > 0)
        for shape, placement in tensors
    )


def _splits(size: int, dim: int, parts: Sequence[int]) -> Iterator[Split]:
    for part in parts:
        if size > 1 and size % part == 0:
            yield Split(dim, part)


# ------------------------------------------------------------------------------------------------------ the rules


def _matmul(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """[..., m, k] x [k, n] or [..., k, n], with the same leading dimensions."""
    (a, b), out = op.shapes, len(op.shape)
    batch = len(b) - 2
    for dim in range(len(a) - 1):
        for split in _splits(a[dim], dim, parts):
            shared = batch and dim < len(a) - 2
            yield Signature((split, split if shared else BROADCAST), split)
    for split in _splits(b[-1], len(b) - 1, parts):
        yield Signature((BROADCAST, split), Split(out - 1, split.parts))
    for split in _splits(b[-2], len(b) - 2, parts):
        yield Signature((Split(len(a) - 1, split.parts), split), PARTIAL)
    yield Signature((PARTIAL, BROADCAST), PARTIAL)
    yield Signature((BROADCAST, PARTIAL), PARTIAL)


def _linear(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """bias [n], input [m, k] and matrix [k, n], as `addmm` has them."""
    for found in _matmul(op._replace(shapes=op.shapes[1:]), parts):
        if found.output == PARTIAL:
            yield Signature((PARTIAL, *found.inputs), PARTIAL)
            yield Signature((BROADCAST, *found.inputs), PARTIAL, added=0)
        elif isinstance(found.output, Split) and found.output.dim == len(op.shape) - 1:
            yield Signature((Split(0, found.output.parts), *found.inputs), found.output)
        else:
            yield Signature((BROADCAST, *found.inputs), found.output)


def _pointwise(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """Any number of inputs that broadcast, number by number."""
    for dim in range(len(op.shape)):
        for split in _splits(op.shape[dim], dim, parts):
            placed: list[Placement] = []
            for shape in op.shapes:
                own = dim - (len(op.shape) - len(shape))
                placed.append(Split(own, split.parts) if own >= 0 and shape[own] > 1 else BROADCAST)
            yield Signature(tuple(placed), split)


def _linear_pointwise(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """One input, scaled."""
    yield from _pointwise(op, parts)
    yield Signature((PARTIAL,), PARTIAL)


def _add(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    yield from _pointwise(op, parts)
    yield Signature((PARTIAL, PARTIAL), PARTIAL)


def _mul(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    yield from _pointwise(op, parts)
    yield Signature((PARTIAL, BROADCAST), PARTIAL)
    yield Signature((BROADCAST, PARTIAL), PARTIAL)


def _embedding(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """table [v, d], indices [...]; a table split by rows gives zeros for the rows that others have."""
    table, indices = op.shapes
    for dim in range(len(indices)):
        yield from (Signature((BROADCAST, split), split) for split in _splits(indices[dim], dim, parts))
    for split in _splits(table[1], 1, parts):
        yield Signature((split, BROADCAST), Split(len(op.shape) - 1, split.parts))
    if table[0] > 1:
        yield Signature((Split(0), BROADCAST), PARTIAL)


def _layer_norm(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """input [...], then weight and bias, where there are any, over its last `dims` dimensions."""
    for dim in range(len(op.shape) - int(op.arguments["dims"])):
        for split in _splits(op.shape[dim], dim, parts):
            yield Signature((split, *(BROADCAST,) * (len(op.inputs) - 1)), split)


def _softmax(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    along = int(op.arguments["dim"]) % len(op.shape)
    for dim in range(len(op.shape)):
        if dim != along:
            yield from (Signature((split,), split) for split in _splits(op.shape[dim], dim, parts))


def _attention(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """query, key and value [batch, heads, length, width]."""
    for dim in (0, 1):
        for split in _splits(op.shape[dim], dim, parts):
            yield Signature((split,) * len(op.inputs), split)


def _permute(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """`dims`: which dimension of the input each of the output is."""
    (shape,), order = op.shapes, [int(dim) % len(op.shape) for dim in op.arguments["dims"]]
    for dim in range(len(shape)):
        for split in _splits(shape[dim], dim, parts):
            yield Signature((split,), Split(order.index(dim), split.parts))
    yield Signature((PARTIAL,), PARTIAL)


def _select(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """One slice of dimension `dim`, which goes."""
    (shape,), gone = op.shapes, int(op.arguments["dim"]) % len(op.shapes[0])
    for dim in range(len(shape)):
        if dim != gone:
            for split in _splits(shape[dim], dim, parts):
                yield Signature((split,), Split(dim - (dim > gone), split.parts))
    yield Signature((PARTIAL,), PARTIAL)


def _narrow(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """A stretch of dimension `dim`."""
    for signature in _linear_pointwise(op, parts):
        split = signature.output
        if not isinstance(split, Split) or split.dim != int(op.arguments["dim"]) % len(op.shape):
            yield signature


def _by_example(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """Convolutions and the like: examples are independent, and everything else is copied."""
    for split in _splits(op.shapes[0][0], 0, parts):
        yield Signature((split, *(BROADCAST,) * (len(op.inputs) - 1)), split)


def _sum(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """The sum over dimensions `dims`, which go unless `keep`."""
    (shape,) = op.shapes
    gone = {int(dim) % len(shape) for dim in op.arguments["dims"]}
    for dim in range(len(shape)):
        for split in _splits(shape[dim], dim, parts):
            if dim in gone:
                yield Signature((split,), PARTIAL)
            else:
                before = 0 if op.arguments.get("keep") else sum(other < dim for other in gone)
                yield Signature((split,), Split(dim - before, split.parts))
    yield Signature((PARTIAL,), PARTIAL)


def _loss(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    """Predictions [n, c] and targets [n] to one number, a sum over examples or their mean, pieces being even."""
    for split in _splits(op.shapes[0][0], 0, parts):
        yield Signature((split, split), PARTIAL)


def _reshape(op: Operator, parts: Sequence[int]) -> Iterator[Signature]:
    (shape,) = op.shapes
    for dim, size in enumerate(shape):
        for part in sorted({*parts, *_asked(shape, op.shape, dim)}):
            for split in _splits(size, dim, [part]):
                target = reshaped(shape, op.shape, split)
                if target is not None:
                    yield Signature((split,), target)
    yield Signature((PARTIAL,), PARTIAL)


def reshaped(before: Sequence[int], after: Sequence[int], split: Split) -> Split | None:
    """Return where a split is after a reshape; None where pieces would no longer be pieces of one dimension.

    Seen as one row, the numbers are `[lead, rest]` with the rest split into pieces of one size, where lead counts all
    that stands before. The dimension of the result takes the split in which the rest begins, if it too is divided
    evenly (`is_even`); uneven pieces survive only where the dimension stays as it is.
    """
    lead, at = _product(before[: split.dim]) * split.parts, 1
    for dim, extent in enumerate(after):
        if extent > 1 and lead % at == 0 and at * extent > lead:
            part = lead // at
            return Split(dim, part) if extent % part == 0 else None
        at *= extent
    return None


def _asked(before: Sequence[int], after: Sequence[int], dim: int) -> Iterator[int]:
    """Yield of how many parts a dimension consists by what it is cut into: 3, 4 and 4 ask for 3 parts, and 12."""
    start, end = _product(before[:dim]), _product(before[: dim + 1])
    at = 1
    for extent in after:
        if start < at < end and at % start == 0:
            yield at // start
        at *= extent


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


_RULES: dict[str, Rule] = {
    "matmul": _matmul,
    "linear": _linear,
    "pointwise": _pointwise,
    "linear-pointwise": _linear_pointwise,
    "add": _add,
    "mul": _mul,
    "embedding": _embedding,
    "layer-norm": _layer_norm,
    "softmax": _softmax,
    "attention": _attention,
    "permute": _permute,
    "reshape": _reshape,
    "select": _select,
    "narrow": _narrow,
    "by-example": _by_example,
    "sum": _sum,
    "loss": _loss,
}
KINDS = frozenset(_RULES)
"""Kinds of operators that are known."""
