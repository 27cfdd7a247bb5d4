"""Layouts by hand: where METIS cuts, how the others cut, how loads balance, what is refused."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from strategies.graph import METHODS, chunk_order, from_edges, layout, propagation, replicas, with_self_loops


def cliques(num_cliques: int, size: int):
    """Cliques in a ring, one edge from each to the next, their vertices dealt in turn."""
    edges = [
        (clique + num_cliques * a, clique + num_cliques * b)
        for clique in range(num_cliques)
        for a, b in combinations(range(size), 2)
    ]
    edges += [(clique, (clique + 1) % num_cliques) for clique in range(num_cliques)]
    src, dst = np.array(edges).T
    return from_edges(src, dst, num_cliques * size, undirected=True)


def skewed(num_vertices: int, num_edges: int):
    """A graph in which vertex v has about 1 / sqrt(v) of the edges of the first."""
    rng = np.random.default_rng(0)
    src, dst = (rng.random((2, num_edges)) ** 2 * num_vertices).astype(np.int64)
    return from_edges(src, dst, num_vertices, undirected=True)


def test_metis_finds_cliques_first_for_ways_then_for_slots() -> None:
    made = layout(cliques(6, 12), ways=2, slots=3)
    assert made.sizes().tolist() == [12] * 6
    found = {tuple(made.rows(way, slot) % 6) for way in range(2) for slot in range(3)}
    assert found == {(clique,) * 12 for clique in range(6)}
    ways = [sorted(set((made.way(way) % 6).tolist())) for way in range(2)]
    assert all(sum((b - a) % 6 == 1 for a in way for b in way) == 2 for way in ways), "a way's cliques are neighbours"


def test_metis_sends_fewer_rows_than_a_random_layout() -> None:
    graph = cliques(8, 16)
    matrix = propagation(graph, "gcn")
    assert replicas(matrix, layout(graph, 2, 2)) == 4 / 128, "two edges cross, and four vertices are sent"
    assert replicas(matrix, layout(graph, 2, 2, method="random")) > 0.9


def star(num_leaves: int, hub: int):
    vertices = np.arange(num_leaves + 1)
    leaves = vertices[vertices != hub]
    return from_edges(leaves, np.full(num_leaves, hub), num_leaves + 1, undirected=True)


def test_contiguous_chunks_are_cut_where_edges_balance() -> None:
    assert layout(star(8, hub=0), 1, 2, method="contiguous", vertex_cost=0).sizes().tolist() == [1, 8]
    assert layout(star(8, hub=0), 1, 2, method="contiguous", vertex_cost=1000).sizes().tolist() == [5, 4]
    assert layout(from_edges([], [], 6), 1, 3, method="contiguous", vertex_cost=0).sizes().tolist() == [2, 2, 2]


def test_edges_cost_both_ends_since_gradients_travel_back() -> None:
    src, dst = np.zeros(8, np.int64), np.arange(1, 9)
    for out in (from_edges(src, dst, 9), from_edges(dst, src, 9)):
        assert layout(out, 1, 2, method="contiguous", vertex_cost=0).sizes().tolist() == [1, 8]


@pytest.mark.parametrize("hub", [0, 4, 8])
def test_a_hub_dearer_than_a_chunk_leaves_no_other_chunk_empty(hub: int) -> None:
    for method in METHODS:
        for ways, slots in ((1, 4), (2, 2), (1, 8), (3, 3), (9, 1)):
            made = layout(star(8, hub), ways, slots, method=method, vertex_cost=0)
            assert made.sizes().min() >= 1


def test_self_loops_cost_what_they_do_and_cut_nothing() -> None:
    graph = skewed(500, 3000)
    plain, looped = layout(graph, 2, 3, vertex_cost=50), layout(with_self_loops(graph), 2, 3, vertex_cost=49)
    assert np.array_equal(plain.order, looped.order)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("ways", "slots"), [(1, 8), (2, 4), (4, 1)])
def test_chunks_of_a_skewed_graph_cost_about_the_same(method: str, ways: int, slots: int) -> None:
    graph = skewed(2000, 20_000)
    made = layout(graph, ways, slots, method=method)
    costs = 50 + graph.in_degrees()
    of_chunks = np.add.reduceat(costs[made.order], made.offsets[:-1])
    assert of_chunks.max() / of_chunks.mean() < 1.03


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_layout(method: str) -> None:
    graph = skewed(500, 3000)
    first, again, other = (layout(graph, 2, 3, method=method, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.order, again.order)
    assert np.array_equal(first.offsets, again.offsets)
    assert np.array_equal(first.order, other.order) == (method == "contiguous")


def test_the_ways_do_not_depend_on_the_number_of_slots() -> None:
    graph = skewed(500, 3000)
    few, many = layout(graph, 3, 1), layout(graph, 3, 16)
    assert all(np.array_equal(np.sort(few.way(way)), np.sort(many.way(way))) for way in range(3))


def test_of_the_vertices_of_a_part_the_cheapest_fill_one_that_metis_leaves_empty() -> None:
    made = layout(star(3, hub=0), 2, 1, vertex_cost=0)  # METIS finds no better cut than none at all
    assert sorted(made.sizes().tolist()) == [1, 3]
    assert min((made.way(way) for way in range(2)), key=len) != [0], "a leaf moves, not the hub"


def test_impossible_layouts_are_refused() -> None:
    graph = from_edges([], [], 5)
    with pytest.raises(ValueError, match="5 vertices cannot fill 2 ways x 3 slots = 6 chunks; use fewer"):
        layout(graph, 2, 3)
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        layout(graph, 0, 2)
    with pytest.raises(ValueError, match="vertex_cost must be at least 0, got -1"):
        layout(graph, 1, 2, vertex_cost=-1)
    with pytest.raises(ValueError, match="no layout method 'scotch'; there are metis, contiguous, random"):
        layout(graph, 1, 1, method="scotch")


def test_a_layout_has_no_other_ways_or_slots_than_its_own() -> None:
    made = layout(from_edges([], [], 6), 2, 3, method="contiguous")
    assert made.num_chunks == 6
    assert made.rows(1, 2).tolist() == [5]
    assert made.way(1).tolist() == [3, 4, 5]
    for way, slot in ((2, 0), (-1, 0), (0, 3), (0, -1)):
        with pytest.raises(IndexError, match="count from 0"):
            made.rows(way, slot)


def test_orders_are_shuffled_anew_every_epoch_or_left_alone() -> None:
    orders = [chunk_order(7, epoch, 8, True).tolist() for epoch in range(20)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 20
    assert orders[3] == chunk_order(7, 3, 8, True).tolist() != chunk_order(8, 3, 8, True).tolist()
    assert chunk_order(7, 3, 8, False).tolist() == list(range(8))
