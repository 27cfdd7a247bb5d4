"""Graphs from lists of edges, by hand: which direction is which, what is dropped, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.graph import (
    Dropped,
    adjacency,
    dropped,
    from_edges,
    is_symmetric,
    permuted,
    propagation,
    transpose,
    with_self_loops,
)

SRC = np.array([2, 0, 0, 1, 2, 3, 0])  # 2->0, 0->1 twice, 1->1, 2->1, 3->3, 0->2
DST = np.array([0, 1, 1, 1, 1, 3, 2])


def lists(graph):
    return [part.tolist() for part in np.split(graph.indices, graph.indptr[1:-1])]


def test_a_vertex_lists_whom_it_aggregates_from() -> None:
    graph = from_edges(SRC, DST, 5)
    assert lists(graph) == [[2], [0, 2], [0], [], []]
    assert (graph.num_vertices, graph.num_edges) == (5, 4)
    assert (graph.indptr.dtype, graph.indices.dtype) == (np.int64, np.int64)
    assert graph.in_degrees().tolist() == [1, 2, 1, 0, 0]
    assert graph.out_degrees().tolist() == [2, 0, 2, 0, 0]


def test_what_is_dropped_is_counted() -> None:
    assert dropped(SRC, DST, 5) == Dropped(num_self_loops=2, num_duplicates=1)
    assert dropped(np.array([0, 1]), np.array([1, 0]), 2) == Dropped(0, 0)


def test_an_undirected_edge_is_two_however_often_it_is_listed() -> None:
    graph = from_edges(SRC, DST, 5, undirected=True)
    assert lists(graph) == [[1, 2], [0, 2], [0, 1], [], []]
    assert is_symmetric(graph)
    assert not is_symmetric(from_edges(SRC, DST, 5))


def test_a_graph_may_have_no_edges() -> None:
    none = np.array([], np.int64)
    assert lists(from_edges(none, none, 2)) == [[], []]
    assert from_edges([], [], 1, undirected=True).num_edges == 0


def test_edges_turn_round_and_vertices_gain_loops() -> None:
    graph = from_edges(SRC, DST, 5)
    assert lists(transpose(graph)) == [[1, 2], [], [0, 1], [], []]
    assert lists(with_self_loops(graph)) == [[0, 2], [0, 1, 2], [0, 2], [3], [4]]
    assert lists(with_self_loops(with_self_loops(graph))) == lists(with_self_loops(graph))


def test_vertices_are_renumbered() -> None:
    graph = from_edges(SRC, DST, 5)
    order = np.array([3, 2, 4, 0, 1])
    moved = permuted(graph, order)
    assert lists(moved) == [[], [3], [], [1], [1, 3]]
    assert (adjacency(moved).toarray() == adjacency(graph).toarray()[np.ix_(order, order)]).all()
    with pytest.raises(ValueError, match="each of 5 vertices once"):
        permuted(graph, np.array([0, 1, 2, 3, 3]))


@pytest.mark.parametrize(
    ("src", "dst", "message"),
    [
        ([0, 5], [1, 1], r"1 edges dangle: src\[1\] is 5, but the ids of 5 vertices are 0 to 4"),
        ([0, 1, 2], [1, -1, 9], r"2 edges dangle: dst\[1\] is -1"),
        ([0, 1], [1], r"same length, got shapes \(2,\) and \(1,\)"),
        ([[0, 1]], [[1, 0]], r"got shapes \(1, 2\)"),
        ([0.0], [1], "src must hold whole numbers, got float64"),
    ],
)
def test_bad_edges_are_refused_with_the_first_of_them(src, dst, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_edges(np.array(src), np.array(dst), 5)


def test_a_graph_has_a_vertex() -> None:
    with pytest.raises(ValueError, match="num_vertices 0"):
        from_edges(np.array([], np.int64), np.array([], np.int64), 0)


def test_propagations_of_a_small_directed_graph_by_hand() -> None:
    graph = from_edges(np.array([0, 2, 0]), np.array([1, 1, 2]), 4)  # in-degrees 0, 2, 1, 0
    third, sixth, half = 3**-0.5, 6**-0.5, 2**-0.5
    gcn = [[1, 0, 0, 0], [third, 1 / 3, sixth, 0], [half, 0, 0.5, 0], [0, 0, 0, 1]]
    assert propagation(graph, "gcn").toarray() == pytest.approx(np.array(gcn))
    assert propagation(graph, "mean").toarray().tolist() == [[0] * 4, [0.5, 0, 0.5, 0], [1, 0, 0, 0], [0] * 4]
    assert propagation(graph, "sum").toarray().tolist() == [[0] * 4, [1, 0, 1, 0], [1, 0, 0, 0], [0] * 4]


def test_an_unknown_propagation_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no propagation 'max'; there are gcn, mean, sum"):
        propagation(from_edges([], [], 1), "max")
