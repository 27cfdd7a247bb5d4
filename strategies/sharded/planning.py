"""The cheapest way to lay out a model: a signature for every operator, so that little is sent between ranks.

    greedy    each operator in topological order takes the signature whose inputs are boxed most cheaply, as in OneFlow;
              it sees neither the operators behind nor the way back. Where all parameters are given, this is how the
              rest follows from them
    exact     the cheapest of all assignments, by dynamic programming along the order: what is remembered is how the
              tensors lie that are still to be read, so chains are quick and residual connections a little slower

What counts is a whole step: boxing of activations on the way forward, of their gradients on the way back, and the sums
of parameters' gradients. Memory of a rank can be bounded; then `exact` keeps, for each way to stand, all pairs of
bytes sent and bytes held of which none is better in both.

Deviations from OneFlow (arXiv:2110.15032, section 3.2): it counts the forward alone. A parameter lies as its operator
wants it, so nothing is gathered before use, and sums become copies, never pieces, as that is what DTensor does with
them. Products are divided wherever they can be: that every rank computes everything sends nothing, and gains nothing.
A tensor that several operators read is boxed for each of them, forward and back, though DTensor may add up
gradients first and box once: an upper bound then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from strategies.sharded.boxing import gloo_bytes, table_bytes
from strategies.sharded.graph import Graph, Operator
from strategies.sharded.placements import BROADCAST, PARTIAL, Partial, Placement, Split, dual, local_shape
from strategies.sharded.signatures import Signature, is_even, signatures

Fixed = Mapping[str, Placement]


class TooLarge(Exception):
    """No assignment fits into a rank's memory; `least` bytes are the fewest that one needs."""

    def __init__(self, least: float) -> None:
        super().__init__(f"no layout needs less than {least:,.0f} bytes of a rank")
        self.least = least


class Assignment(NamedTuple):
    """A signature for every operator, and what it comes to.

    Args:
        signatures: of the operators, in their order. placements: of parameters and data, by name.
        sent_bytes: of all ranks, in a step of one batch. sum_bytes: of those, sums of parameters' gradients, which are
            made once a step. rank_bytes: what one holds: weights, gradients, optimizer, activations.
    """

    signatures: tuple[Signature, ...]
    placements: Mapping[str, Placement]
    sent_bytes: float
    sum_bytes: float
    rank_bytes: float


class _Path(NamedTuple):
    """How an assignment got so far."""

    sent: float
    sums: float
    held: float
    signature: Signature | None
    before: _Path | None


State = tuple[tuple[str, Placement], ...]


WIDTH = 2000
"""Ways for tensors to lie that `exact` follows at a time. Chains and residual connections have far fewer; where a model
has more, only the cheapest so far are followed, and the result may not be the very cheapest."""

_WORK = ("matmul", "linear", "attention")


def greedy(
    graph: Graph, ranks: int, *, copies: float = 4.0, fixed: Fixed | None = None, whole: bool = False
) -> Assignment:
    """Return what choosing operator by operator comes to; see `exact` for the arguments.

    A piece of a copy costs nothing, but a byte here, as in OneFlow. Of signatures that cost the same, the one is taken
    by which a rank holds least.
    """
    steps = _Steps(graph, ranks, copies, fixed or {}, whole)
    state: State = ()
    path = _Path(0.0, 0.0, 0.0, None, None)
    for place, op in enumerate(graph.operators):
        found = list(steps.after(place, dict(state)))
        if not found:
            raise _none(op)
        chosen, sent, held, state = min(found, key=lambda one: (one[1].forward + one[1].changes, one[2]))
        path = _Path(path.sent + sent.all, path.sums + sent.sums, path.held + held, chosen, path)
    return steps.assignment(path)


def exact(
    graph: Graph,
    ranks: int,
    *,
    copies: float = 4.0,
    memory: float | None = None,
    fixed: Fixed | None = None,
    whole: bool = False,
    gloo: bool = False,
) -> Assignment:
    """Return the assignment by which least is sent.

    Args:
        ranks: of the mesh axis that is planned. copies: times the bytes of weights that a rank holds of them: itself,
            gradient and what the optimizer remembers. memory: bytes that a rank may hold.
        fixed: placements of parameters and data that are given. whole: whether every rank may compute a product that
            could be divided. gloo: count as gloo does, not by the table.

    Raises:
        TooLarge: when nothing fits into `memory`. ValueError: when no signature has the fixed placements.
    """
    steps = _Steps(graph, ranks, copies, fixed or {}, whole, gloo_bytes if gloo else table_bytes)
    now: dict[State, list[_Path]] = {(): [_Path(0.0, 0.0, 0.0, None, None)]}
    least = 0.0
    for place, op in enumerate(graph.operators):
        following: dict[State, list[_Path]] = {}
        for state, paths in now.items():
            for chosen, sent, held, after in steps.after(place, dict(state)):
                kept = following.setdefault(after, [])
                kept.extend(
                    _Path(path.sent + sent.all, path.sums + sent.sums, path.held + held, chosen, path) for path in paths
                )
        if not following:
            raise _none(op)
        least = min(path.held for paths in following.values() for path in paths)
        now = {state: _best(paths, memory) for state, paths in following.items()}
        now = {state: paths for state, paths in now.items() if paths}
        if len(now) > WIDTH:
            cheapest = sorted(now.items(), key=lambda item: item[1][0].sent)[:WIDTH]
            now = dict(cheapest)
        if not now:
            raise TooLarge(least)
    return steps.assignment(min((p for paths in now.values() for p in paths), key=lambda p: (p.sent, p.held)))


def price(
    graph: Graph, ranks: int, chosen: Sequence[Signature], placements: Fixed, *, copies: float = 4.0
) -> Assignment:
    """Return what signatures come to that are chosen already, on pieces of any size.

    Raises:
        ValueError: when an operator cannot have its signature where the others have theirs.
    """
    steps = _Steps(graph, ranks, copies, placements, whole=True)
    path, state = _Path(0.0, 0.0, 0.0, None, None), dict[str, Placement]()
    for op, signature in zip(graph.operators, chosen, strict=True):
        cost = steps.cost(op, signature, state)
        if cost is None:
            raise _none(op)
        sent, held, placed = cost
        state |= {**placed, op.output: signature.output}
        path = _Path(path.sent + sent.all, path.sums + sent.sums, path.held + held, signature, path)
    return steps.assignment(path)


def _none(op: Operator) -> ValueError:
    return ValueError(f"{op.kind} in {op.where or 'the model'} has no signature for how its inputs lie")


def _best(paths: list[_Path], memory: float | None) -> list[_Path]:
    """Return the cheapest path; with a bound, all within it that no other beats in both ways."""
    if memory is None:
        return [min(paths, key=lambda path: (path.sent, path.held))]
    kept: list[_Path] = []
    for path in sorted(paths, key=lambda path: (path.sent, path.held)):
        if path.held <= memory and (not kept or path.held < kept[-1].held):
            kept.append(path)
    return kept


class _Sent(NamedTuple):
    """Bytes that an operator sends forward, back and for parameters, and how many inputs it lays out differently."""

    forward: float
    back: float
    sums: float
    changes: int

    @property
    def all(self) -> float:
        return self.forward + self.back + self.sums


class _Steps:
    """What each operator may do next, and what that costs."""

    def __init__(
        self,
        graph: Graph,
        ranks: int,
        copies: float,
        fixed: Fixed,
        whole: bool,
        count: Callable[[Placement, Placement, float, int], float] = table_bytes,
    ) -> None:
        self._graph, self._ranks, self._copies, self._fixed, self._count = graph, ranks, copies, fixed, count
        parts = sorted({p.parts for p in fixed.values() if isinstance(p, Split)} | {1} | _parts(graph))
        self._legal = [_legal(op, parts, ranks, whole) for op in graph.operators]
        self._last = {name: place for place, op in enumerate(graph.operators) for name in op.inputs}
        self._produced = {op.output for op in graph.operators}
        self._whole, self._weights, self._learning = whole, _from(graph, all), _from(graph, any)

    def after(self, place: int, state: dict[str, Placement]) -> Iterator[tuple[Signature, _Sent, float, State]]:
        """Yield for each signature: it, what is sent, the bytes held more, and how tensors lie then."""
        op = self._graph.operators[place]
        for chosen in self._legal[place]:
            cost = self.cost(op, chosen, state)
            if cost is None:
                continue
            sent, held, placed = cost
            following = {**state, **placed, op.output: chosen.output}
            live = tuple(sorted((name, p) for name, p in following.items() if self._last.get(name, -1) > place))
            yield chosen, sent, held, live

    def cost(
        self, op: Operator, chosen: Signature, state: Mapping[str, Placement]
    ) -> tuple[_Sent, float, dict[str, Placement]] | None:
        """Return what a signature sends, holds, and where it finds what no operator makes; None where it cannot be."""
        graph, ranks = self._graph, self._ranks
        sent, back, sums, changes = 0.0, 0.0, 0.0, 0
        output = local_shape(op.shape, chosen.output, ranks)
        held = float(graph.num_bytes(output) if op.kept is None else math.prod(output) * op.kept)
        placed: dict[str, Placement] = {}
        inputs = zip(op.inputs, op.shapes, chosen.inputs, chosen.gradients, strict=True)
        for name, shape, wanted, gradient in inputs:
            num_bytes = graph.num_bytes(shape)
            if name not in self._produced:
                given = self._given(name, wanted, {**state, **placed})
                if given is None or not self._reachable(name, given, wanted):
                    return None
                sent += self._through(given, wanted, num_bytes)
                if name not in state and name not in placed and name in graph.parameters:
                    held += self._copies * graph.num_bytes(local_shape(shape, given, ranks))
                placed[name] = given
                changes += given != wanted
                if graph.parameters.get(name):
                    sums += self._count(gradient, dual(given), num_bytes, ranks)
                continue
            lies = state[name]
            if not self._reachable(name, lies, wanted):
                return None
            if lies != wanted:
                changes += 2 if isinstance(lies, Partial) and isinstance(wanted, Split) else 1
                sent += self._through(lies, wanted, num_bytes)
            if gradient != dual(lies) and name in self._weights:
                sums += self._count(gradient, dual(lies), num_bytes, ranks)
            elif gradient != dual(lies) and name in self._learning:
                back += self._through(gradient, dual(lies), num_bytes)
        return _Sent(sent, back, sums, changes), held, placed

    def _reachable(self, name: str, lies: Placement, wanted: Placement) -> bool:
        """Return whether a tensor may be laid out so: nothing becomes a sum, weights are gathered if need be only."""
        if lies == wanted:
            return True
        return not isinstance(wanted, Partial) and (name not in self._weights or self._whole or lies == BROADCAST)

    def _through(self, lies: Placement, wanted: Placement, num_bytes: float) -> float:
        """Return what it costs to lay an activation out differently, where sums become copies first."""
        between = BROADCAST if isinstance(lies, Partial) else lies
        first = self._count(lies, between, num_bytes, self._ranks)
        return first + self._count(between, wanted, num_bytes, self._ranks)

    def _given(self, name: str, wanted: Placement, state: Mapping[str, Placement]) -> Placement | None:
        """Return how a tensor lies that no operator makes: as it did before, as it is fixed, or else as is wanted."""
        if name in state:
            return state[name]
        if name in self._fixed:
            return self._fixed[name]
        if name in self._graph.parameters:
            return None if wanted == PARTIAL else wanted
        if name in self._graph.data:
            return wanted if wanted == BROADCAST or (isinstance(wanted, Split) and wanted == Split(0)) else None
        return BROADCAST

    def assignment(self, path: _Path) -> Assignment:
        """Return what a path stands for."""
        chosen, at = list[Signature](), path
        while at.before is not None:
            assert at.signature is not None
            chosen.append(at.signature)
            at = at.before
        chosen.reverse()
        placements: dict[str, Placement] = {}
        for op, signature in zip(self._graph.operators, chosen, strict=True):
            for name, wanted in zip(op.inputs, signature.inputs, strict=True):
                if name not in self._produced and (name in self._graph.parameters or name in self._graph.data):
                    placements.setdefault(name, self._fixed.get(name, wanted))
        return Assignment(tuple(chosen), placements, path.sent, path.sums, path.held)


def _legal(op: Operator, parts: Sequence[int], ranks: int, whole: bool) -> list[Signature]:
    even = [signature for signature in signatures(op, parts) if is_even(op, signature, ranks)]
    if whole or op.kind not in _WORK or ranks == 1:
        return even
    return [s for s in even if any(isinstance(placement, Split) for placement in s.inputs)] or even


def _from(graph: Graph, of: Callable[[Iterator[bool]], bool]) -> set[str]:
    """Return the tensors that are made of trained parameters: of nothing else, or of some."""
    found = {name for name, trained in graph.parameters.items() if trained}
    for op in graph.operators:
        if of(name in found for name in op.inputs):
            found.add(op.output)
    return found


def _parts(graph: Graph) -> set[int]:
    """Return of how many parts some dimension consists that an operator cuts: what fused projections ask for."""
    found: set[int] = set()
    for op in graph.operators:
        if op.kind == "reshape" and len(op.shape) > len(op.shapes[0]):
            asked: Sequence[Signature] = signatures(op)
            found |= {s.inputs[0].parts for s in asked if isinstance(s.inputs[0], Split) and s.inputs[0].dim > 0}
    return {part for part in found if part <= 4}
