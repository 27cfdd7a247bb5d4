"""Layers of a model that does not list them: its traced graph, cut into consecutive pieces.

Between two pieces travel the tensors that are alive there: one, or several where a residual jumps over the cut. What
depends on sizes and on the model's own tensors alone is computed in every piece that reads it (see `live.py`). Cuts
are made in the gaps between operations with parameters, as late as possible, so that activation functions stay with
their layer, and only where the fewest tensors are alive. A piece with more than half of all such operations, which no
two stages could share, is cut again, at the fewest of its own; so is a model in which two tensors are always alive.

Where the model's own backward brings a value no gradient, none travels: a gradient of zeros would be another thing to
an operation whose inputs were changed since, and to one that makes NaN of it.

No cut is made where anything else is alive, nor between a tensor and a change of it in place: a stage may run a piece
again from what was sent to it. The model's modules and parameters are the pieces' own, unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from torch import fx, nn

from trainers.pipeline.tracing.faithful import attribute, check
from trainers.pipeline.tracing.live import Values, is_size, survey
from trainers.pipeline.tracing.memory import called, changed, storage
from trainers.pipeline.tracing.modes import trace
from trainers.pipeline.tracing.tracer import is_leaf


def traced(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return a model with one tensor as input as a chain of pieces, each named after its first submodule.

    Raises:
        ModelError: when it cannot be traced or its pieces would not compute what it does, naming module and line.
    """
    if is_leaf(model):
        return [(type(model).__name__, model)]
    graph, constants = trace(model)
    check(model, graph)
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "call_method", "get_attr") and not node.users and changed(model, node) is None:
            graph.erase_node(node)  # what nobody reads would travel, and gradients come back for it
    values = survey(model, graph)
    *nodes, output = (node for node in graph.nodes if node not in values.anywhere)
    live, followed = _live([*nodes, output], values, _wanted(model, graph))
    cuts = _cuts(model, nodes, live, values)
    pieces = []
    model.__dict__.update(constants)
    try:
        for begin, end in zip([0, *cuts], [*cuts, len(nodes)], strict=True):
            given = live[begin - 1] if begin else nodes[:1]
            returned = live[end - 1] if end < len(nodes) else output.args[0]
            plain = [] if end == len(nodes) else [node for node in live[end - 1] if followed[node] < end]
            pieces.append(_piece(model, nodes[max(begin, 1) : end], given, returned, plain, len(pieces)))
    finally:
        for name in constants:
            del model.__dict__[name]
    return pieces


# ------------------------------------------------------------------------------------------------------------- cuts


def _wanted(model: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """Return what the output depends on; changes in place of memory that it may read are part of it."""
    changes = [(node, storage(model, target)) for node in graph.nodes if (target := changed(model, node)) is not None]
    found: set[fx.Node] = set()
    roots: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            roots.add(storage(model, node))
            waiting += [*node.all_input_nodes, *(change for change, root in changes if root in roots)]
    return found


def _live(
    nodes: Sequence[fx.Node], values: Values, wanted: Collection[fx.Node]
) -> tuple[list[list[fx.Node]], dict[fx.Node, int]]:
    """Return, for each node, the values that are read behind it, and for each value, where a gradient comes from last.

    A value is in the first list in the order they were made. None comes from who asks for a size, nor from what the
    output does not depend on, such as a module whose result nobody reads.
    """
    last, followed = dict.fromkeys(nodes, -1), dict.fromkeys(nodes, -1)
    for index, node in enumerate(nodes):
        last.update(dict.fromkeys(_reads(node, values), index))
        if node in wanted and not is_size(node) and called(node) != "detach":
            followed.update(dict.fromkeys(_reads(node, values, sizes=False), index))
    found: list[list[fx.Node]] = []
    for index, node in enumerate(nodes):
        before = found[-1] if found else []
        found.append([other for other in [*before, node] if last[other] > index])
    return found, followed


def _reads(node: fx.Node, values: Values, *, sizes: bool = True) -> list[fx.Node]:
    """Return what a node reads, attributes too; also through what is computed anywhere, unless that is a size."""
    found, waiting, seen = [], list(node.all_input_nodes), set()
    while waiting:
        used = waiting.pop()
        if used in seen:
            continue
        seen.add(used)
        if used in values.anywhere and (sizes or not is_size(used)):
            waiting += used.all_input_nodes
        if used.op == "get_attr" or used not in values.anywhere:
            found.append(used)
    return found


def _cuts(model: nn.Module, nodes: Sequence[fx.Node], live: Sequence[Sequence[fx.Node]], values: Values) -> list[int]:
    """Return the places, as indices of the first node behind each."""
    together = _kept_together(model, nodes)
    heavy = [index for index, node in enumerate(nodes) if _has_parameters(model, node, values)]
    gaps: list[list[tuple[int, int]]] = []  # between heavy nodes: (number of tensors, place)
    for before, after in pairwise(heavy):
        places = [place for place in range(before + 1, after + 1) if live[place - 1] and place not in together]
        gaps.append([(len(live[p - 1]), p) for p in places if all(node in values.travels for node in live[p - 1])])
    cuts: set[int] = set()
    segments = [(0, len(heavy))]  # of heavy nodes
    while segments:
        first, behind = segments.pop()
        inside = gaps[first : behind - 1]
        counts = [number for gap in inside for number, _ in gap]
        if not counts or 2 * (behind - first) <= len(heavy):
            continue
        edges = [first]
        for offset, gap in enumerate(inside, 1):
            fitting = [place for number, place in gap if number == min(counts)]
            if fitting:
                cuts.add(fitting[-1])
                edges.append(first + offset)
        segments += pairwise([*edges, behind])
    return sorted(cuts)


def _kept_together(model: nn.Module, nodes: Sequence[fx.Node]) -> set[int]:
    """Return the places between a tensor and a change of it in place."""
    place = {node: index for index, node in enumerate(nodes)}
    found: set[int] = set()
    for index, node in enumerate(nodes):
        target = changed(model, node)
        if target is not None:
            found.update(range(place.get(storage(model, target), 0) + 1, index + 1))
    return found


def _has_parameters(model: nn.Module, node: fx.Node, values: Values) -> bool:
    if node.op == "call_module" and any(True for _ in model.get_submodule(str(node.target)).parameters()):
        return True
    return any(isinstance(attribute(model, used), nn.Parameter) for used in _reads(node, values))


# ------------------------------------------------------------------------------------------------------------ pieces


def _piece(
    model: nn.Module,
    nodes: Sequence[fx.Node],
    given: Sequence[fx.Node],
    returned: object,
    plain: Sequence[fx.Node],
    number: int,
) -> tuple[str, nn.Module]:
    """Return the module that takes the values `given` and returns those `returned`, a tuple or one.

    Args:
        plain: of those returned, the ones that no gradient will come back for.
    """
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in given}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:
            copies[node] = graph.node_copy(node, copy_of)  # what is computed anywhere, and attributes
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copy_of)
    for node in plain:
        copies[node] = graph.call_method("detach", (copy_of(node),))
    if isinstance(returned, list):
        returned = returned[0] if len(returned) == 1 else tuple(returned)
    graph.output(fx.map_arg(returned, copy_of))
    module = fx.GraphModule(model, graph, class_name="Traced")
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for owner in module.modules():
        for name, tensor in list(owner._buffers.items()):
            if tensor is not None and id(tensor) not in known:  # fx makes buffers of constants; no checkpoint has them
                del owner._buffers[name]
                object.__setattr__(owner, name, tensor)
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    reads = [str(node.target) for node in graph.nodes if node.op == "get_attr" and node.target != "training"]
    return next(iter([*calls, *reads]), f"piece{number}"), module
