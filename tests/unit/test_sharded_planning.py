"""Costs of changing a layout against OneFlow's table, and the planner against trying everything."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest

from strategies.sharded import (
    BROADCAST,
    PARTIAL,
    Graph,
    Operator,
    Split,
    TooLarge,
    collective,
    exact,
    gloo_bytes,
    greedy,
    is_even,
    mesh_bytes,
    parse,
    plan_mesh,
    price,
    show,
    signatures,
    table_bytes,
)

S0, S1 = Split(0), Split(1)


def mlp(widths: list[int], batch: int) -> Graph:
    operators, x, parameters = [], "x", {}
    for layer, (a, b) in enumerate(itertools.pairwise(widths)):
        weight, bias, t, y = (f"{layer}.{name}" for name in ("weight", "bias", "t", "y"))
        parameters |= {weight: True, bias: True}
        operators.append(Operator("permute", (weight,), t, ((b, a),), (a, b), {"dims": (1, 0)}))
        operators.append(Operator("linear", (bias, x, t), y, ((b,), (batch, a), (a, b)), (batch, b)))
        x = y
        if layer < len(widths) - 2:
            x = f"{layer}.h"
            operators.append(Operator("pointwise", (y,), x, ((batch, b),), (batch, b)))
    operators.append(Operator("loss", (x, "targets"), "loss", ((batch, widths[-1]), (batch,)), ()))
    return Graph(tuple(operators), parameters, frozenset({"x", "targets"}))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_changing_a_layout_costs_what_the_table_says(ranks) -> None:
    t = 840.0
    assert table_bytes(S0, S0, t, ranks) == 0
    assert table_bytes(BROADCAST, S0, t, ranks) == 0
    assert table_bytes(S0, S1, t, ranks) == t * (ranks - 1) / ranks
    assert table_bytes(S0, BROADCAST, t, ranks) == t * (ranks - 1)
    assert table_bytes(PARTIAL, S0, t, ranks) == t * (ranks - 1)
    assert table_bytes(PARTIAL, BROADCAST, t, ranks) == 2 * t * (ranks - 1)
    assert gloo_bytes(S0, S1, t, ranks) == t * (ranks - 1)


@pytest.mark.parametrize("source", [S0, BROADCAST])
def test_nothing_becomes_a_sum(source) -> None:
    with pytest.raises(ValueError, match="is not laid out as a sum"):
        collective(source, PARTIAL)


def test_on_a_mesh_each_axis_moves_what_the_others_left() -> None:
    assert mesh_bytes((PARTIAL, S1), (BROADCAST, S1), 100, (2, 5)) == 2 * 100 * (2 - 1)
    assert mesh_bytes((PARTIAL, BROADCAST), (BROADCAST, BROADCAST), 100, (2, 5)) == 5 * 2 * 100
    assert mesh_bytes((S0, S1), (BROADCAST, BROADCAST), 100, (2, 5)) == 100 * 4 + 5 * 100


@pytest.mark.parametrize("text", ["S(0)", "S(12)", "S(0/3)", "B", "P"])
def test_placements_are_read_as_they_are_written(text) -> None:
    assert show(parse(text)) == text


@pytest.mark.parametrize("text", ["", "S", "S(-1)", "S(0/0)", "R", "S(0)S(1)", "b"])
def test_what_is_no_placement_is_refused(text) -> None:
    with pytest.raises(ValueError, match=r"is no placement; expected S\(0\)"):
        parse(text)


def small(rows: int, a: int, b: int, c: int) -> Graph:
    """Two products of matrices with a nonlinear operator between, and a residual connection round it."""
    operators = (
        Operator("matmul", ("x", "v"), "h", ((rows, a), (a, b)), (rows, b)),
        Operator("pointwise", ("h",), "g", ((rows, b),), (rows, b)),
        Operator("add", ("h", "g"), "k", ((rows, b), (rows, b)), (rows, b)),
        Operator("matmul", ("k", "w"), "y", ((rows, b), (b, c)), (rows, c)),
        Operator("loss", ("y", "targets"), "loss", ((rows, c), (rows,)), ()),
    )
    return Graph(operators, {"v": True, "w": True}, frozenset({"x", "targets"}))


@pytest.mark.parametrize("sizes", [(8, 4, 6, 2), (2, 2, 16, 2), (4, 64, 2, 8), (64, 2, 4, 2)])
@pytest.mark.parametrize("whole", [True, False])
def test_no_assignment_sends_less_than_the_planner_s(sizes, whole) -> None:
    graph, found = small(*sizes), []
    for chosen in itertools.product(*([s for s in signatures(op) if is_even(op, s, 2)] for op in graph.operators)):
        divided = all(any(isinstance(p, Split) for p in chosen[place].inputs) for place in (0, 3))
        if whole or divided:
            with suppress(ValueError):  # an operator that cannot follow the one before
                found.append(price(graph, 2, chosen, {}).sent_bytes)
    assert len(found) > 50
    planned = exact(graph, 2, whole=whole)
    assert planned.sent_bytes == min(found)
    assert price(graph, 2, planned.signatures, planned.placements).sent_bytes == planned.sent_bytes


def test_the_planner_finds_the_cut_of_megatron() -> None:
    """Rows, then columns: one sum of the output forward, where data parallelism sums all gradients."""
    graph = mlp([64, 4096, 10], 32)
    planned = exact(graph, 2)
    assert {name: show(p) for name, p in planned.placements.items()} == {
        "0.weight": "S(0)", "0.bias": "S(0)", "1.weight": "S(1)", "1.bias": "B", "x": "B", "targets": "B",
    }  # fmt: skip
    assert planned.sent_bytes == 2 * 32 * 10 * 4
    parallel = dict.fromkeys(graph.parameters, BROADCAST) | dict.fromkeys(graph.data, S0)
    data_parallel = greedy(graph, 2, fixed=parallel, whole=True)
    assert data_parallel.sent_bytes == 2 * 4 * (64 * 4096 + 4096 + 4096 * 10 + 10)
    assert planned.rank_bytes < data_parallel.rank_bytes


def test_with_a_large_batch_the_planner_splits_the_examples() -> None:
    planned = exact(mlp([8, 16, 10], 4096), 2)
    assert planned.placements["x"] == S0
    assert all(planned.placements[name] == BROADCAST for name in mlp([8, 16, 10], 4096).parameters)


def test_greedy_never_sends_less_than_exact() -> None:
    for widths, batch in (([8, 16, 10], 4), ([64, 4096, 10], 32), ([32] * 6, 16)):
        assert greedy(mlp(widths, batch), 2).sent_bytes >= exact(mlp(widths, batch), 2).sent_bytes


def test_memory_bounds_a_rank() -> None:
    graph = mlp([64, 64, 64], 4096)  # by bytes alone, examples are split and weights copied
    free = exact(graph, 2)
    bound = exact(graph, 2, memory=free.rank_bytes - 1)
    assert bound.rank_bytes < free.rank_bytes and bound.sent_bytes > free.sent_bytes
    with pytest.raises(TooLarge, match="no layout needs less than"):
        exact(graph, 2, memory=1000)


def test_an_operator_that_is_not_known_is_computed_whole() -> None:
    before = Operator("pointwise", ("x",), "h", ((8, 4),), (8, 4))
    odd = Operator("cumsum", ("h",), "y", ((8, 4),), (8, 4))
    assert signatures(odd) == [((BROADCAST,), BROADCAST, None)]
    planned = greedy(Graph((before, odd), {}, frozenset({"x"})), 2, fixed={"x": S0})
    assert planned.sent_bytes == 8 * 4 * 4


def test_axes_of_a_mesh_are_counted_with_each_other_in_place() -> None:
    """Data times tensor parallelism: gradients of halves over one axis, activations of halves over the other."""
    graph = mlp([8, 16, 10], 32)
    fixed = {"0.weight": S0, "0.bias": S0, "1.weight": S1, "1.bias": BROADCAST}
    copies = dict.fromkeys(graph.parameters, BROADCAST)
    both = plan_mesh(
        graph,
        (2, 2),
        lambda left, axis: greedy(
            left,
            2,
            whole=True,
            fixed={**(fixed if axis else copies), **dict.fromkeys(graph.data, BROADCAST if axis else S0)},
        ),
    )
    split, copied = 8 * 16 + 16 + 16 * 10, 10
    assert both.axis_bytes == (4 * 2 * (split + 2 * copied), 4 * 2 * 32 * 10)
    assert both.placements["1.weight"] == (BROADCAST, S1)
