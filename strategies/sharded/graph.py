"""A model as the planner sees it: operators in order, the tensors between them by name, and their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from strategies.sharded.placements import local_shape

if TYPE_CHECKING:
    from strategies.sharded.signatures import Signature


class Operator(NamedTuple):
    """One operator.

    Args:
        kind: one of `signatures.KINDS`, or any other word for one that is not known, which computes whole tensors.
        inputs, output: names of tensors. shapes, shape: theirs. arguments: what the kind asks for.
        where: the layer that calls it. kept: bytes of each number of the output that wait for backward; None for all.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    arguments: Mapping[str, Any] = {}
    where: str = ""
    kept: int | None = None


class Graph(NamedTuple):
    """Operators in the order they are computed.

    Args:
        parameters: names of tensors that are trained or frozen weights, with whether a gradient is wanted.
        data: names of tensors that come from the data: every rank reads what it likes of them, batch first.
        itemsize: bytes of a number, of every tensor.
    """

    operators: tuple[Operator, ...]
    parameters: Mapping[str, bool]
    data: frozenset[str]
    itemsize: int = 4

    def num_bytes(self, shape: Sequence[int]) -> int:
        return math.prod(shape) * self.itemsize

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        known: dict[str, tuple[int, ...]] = {}
        for op in self.operators:
            known.update(zip(op.inputs, op.shapes, strict=True))
            known[op.output] = op.shape
        return known


def shard(graph: Graph, chosen: Sequence[Signature], ranks: int) -> Graph:
    """Return the graph that one rank computes, on which the next mesh axis is planned.

    Args:
        chosen: the signature of each operator.
    """
    operators = []
    for op, signature in zip(graph.operators, chosen, strict=True):
        shapes = tuple(local_shape(s, p, ranks) for s, p in zip(op.shapes, signature.inputs, strict=True))
        operators.append(op._replace(shapes=shapes, shape=local_shape(op.shape, signature.output, ranks)))
    return graph._replace(operators=tuple(operators))
