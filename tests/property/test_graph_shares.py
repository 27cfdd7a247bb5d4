"""Any graph in any layout: vertices have one place each, shares make up the matrix, messages fit, bytes add up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.graph import (
    METHODS,
    Graph,
    Layout,
    Share,
    exchange_bytes,
    from_edges,
    halo_rows,
    is_symmetric,
    layout,
    permuted,
    pipeline_bytes,
    propagation,
    replicas,
    ring_bytes,
    share,
    transpose,
    with_self_loops,
)

kinds = st.sampled_from(["gcn", "mean", "sum"])
directions = st.sampled_from([lambda matrix: matrix, lambda matrix: matrix.T.tocsr()])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Directed or not, connected or not, with loops or without, down to one vertex without edges."""
    num_vertices = draw(st.integers(1, 24))
    vertex = st.integers(0, num_vertices - 1)
    edges = draw(st.lists(st.tuples(vertex, vertex), max_size=4 * num_vertices))
    src, dst = np.array(edges, np.int64).reshape(-1, 2).T
    graph = from_edges(src, dst, num_vertices, undirected=draw(st.booleans()))
    return with_self_loops(graph) if draw(st.booleans()) else graph


@st.composite
def laid_out(draw: st.DrawFn) -> tuple[Graph, Layout]:
    """A graph and one of its layouts, up to one vertex a chunk."""
    graph = draw(graphs())
    ways = draw(st.integers(1, min(5, graph.num_vertices)))
    most = graph.num_vertices // ways
    slots = draw(st.integers(1, most) | st.just(most))
    return graph, layout(graph, ways, slots, method=draw(st.sampled_from(METHODS)), seed=draw(st.integers(0, 3)))


def tables(x: np.ndarray, made: Layout, shares: list[Share]) -> list[np.ndarray]:
    """Return each way's table of rows: its own, and below them what the others send, in the order it comes."""
    found = []
    for way in range(made.ways):
        rows = [x[made.way(way)]]
        for other in range(made.ways):
            for slot in range(made.slots):
                chunk = x[made.rows(other, slot)]
                rows.append(chunk[shares[other].sends[way][slot]])
        found.append(np.concatenate(rows))
    return found


@settings(deadline=None, max_examples=30)
@given(laid_out())
def test_every_vertex_has_one_place(case: tuple[Graph, Layout]) -> None:
    graph, made = case
    assert sorted(made.order.tolist()) == list(range(graph.num_vertices))
    assert made.offsets[0] == 0 and made.offsets[-1] == graph.num_vertices
    assert len(made.offsets) == made.num_chunks + 1
    assert made.sizes().min() >= 1
    chunks = [made.rows(way, slot) for way in range(made.ways) for slot in range(made.slots)]
    assert all((np.diff(chunk) > 0).all() for chunk in chunks)
    assert np.concatenate(chunks).tolist() == np.concatenate([made.way(way) for way in range(made.ways)]).tolist()
    assert (made.order[made.positions()] == np.arange(graph.num_vertices)).all()


@settings(deadline=None, max_examples=30)
@given(laid_out(), kinds, directions, st.integers(0, 2**32 - 1))
def test_shares_give_the_bits_of_the_whole_matrix(case: tuple[Graph, Layout], kind, direction, seed: int) -> None:
    graph, made = case
    matrix = direction(propagation(graph, kind))
    x = np.random.default_rng(seed).standard_normal((graph.num_vertices, 3))
    whole = matrix @ x
    shares = [share(matrix, made, way) for way in range(made.ways)]
    for way, table in enumerate(tables(x, made, shares)):
        for slot in range(made.slots):
            assert np.array_equal(shares[way].matrices[slot] @ table, whole[made.rows(way, slot)])
    assert sum(part.nnz for one in shares for part in one.matrices) == matrix.nnz


@settings(deadline=None, max_examples=30)
@given(laid_out(), kinds, directions)
def test_what_one_way_sends_is_what_the_other_lacks_in_its_order(case: tuple[Graph, Layout], kind, direction) -> None:
    graph, made = case
    matrix = direction(propagation(graph, kind))
    shares = [share(matrix, made, way) for way in range(made.ways)]
    dense = matrix.toarray()
    for way, mine in enumerate(shares):
        own = set(made.way(way).tolist())
        assert mine.num_own == len(own)
        assert set(mine.halo.tolist()) == set(np.flatnonzero(dense[made.way(way)].any(axis=0)).tolist()) - own
        assert (np.diff(made.positions()[mine.halo]) > 0).all()
        assert len(mine.halo_offsets) == made.num_chunks + 1 and mine.halo_offsets[-1] == mine.num_halo
        for other, theirs in enumerate(shares):
            for slot in range(made.slots):
                chunk = other * made.slots + slot
                got = mine.halo[mine.halo_offsets[chunk] : mine.halo_offsets[chunk + 1]]
                assert made.rows(other, slot)[theirs.sends[way][slot]].tolist() == got.tolist()
        assert all(rows.size == 0 for rows in mine.sends[way])


@settings(deadline=None, max_examples=30)
@given(laid_out(), kinds, st.randoms(use_true_random=False))
def test_entries_of_a_row_stand_in_the_order_of_vertices(case: tuple[Graph, Layout], kind, random) -> None:
    graph, made = case
    matrix = propagation(graph, kind)
    mixed = matrix.copy()
    for first, last in pairwise(matrix.indptr):
        entries = list(range(first, last))
        random.shuffle(entries)
        mixed.indices[first:last], mixed.data[first:last] = matrix.indices[entries], matrix.data[entries]
    mixed.has_sorted_indices = False
    for way in range(made.ways):
        mine = share(mixed, made, way)
        vertices = np.concatenate([made.way(way), mine.halo])
        for slot, part in enumerate(mine.matrices):
            assert (part.indices.dtype, part.indptr.dtype) == (np.int32, np.int32)
            wanted = matrix[made.rows(way, slot)]
            assert part.shape == (wanted.shape[0], mine.num_own + mine.num_halo)
            assert part.indptr.tolist() == wanted.indptr.tolist()
            assert vertices[part.indices].tolist() == wanted.indices.tolist()
            assert part.data.tolist() == wanted.data.tolist()


@settings(deadline=None, max_examples=30)
@given(laid_out(), kinds, st.lists(st.integers(1, 9), max_size=4), st.lists(st.integers(1, 9), max_size=4))
def test_formulas_are_what_one_counts(
    case: tuple[Graph, Layout], kind, forward: list[int], backward: list[int]
) -> None:
    graph, made = case
    matrix = propagation(graph, kind)
    back = matrix.T.tocsr()
    counted, sent = 0, [0, 0]
    for way in range(made.ways):
        for direction, (each, widths) in enumerate(((matrix, forward), (back, backward))):
            for to_way in share(each, made, way).sends:
                for rows in to_way:
                    sent[direction] += len(rows)
                    counted += sum(len(rows) * width * 8 for width in widths)
    rows = [int(halo_rows(each, made).sum()) for each in (matrix, back)]
    assert rows == sent
    assert replicas(matrix, made) == sent[0] / graph.num_vertices <= made.ways - 1
    assert exchange_bytes(*rows, forward, backward, 8) == counted
    crossing = sum(
        len(made.rows(w, s)) * width * 8 for width in forward for w in range(made.ways) for s in range(made.slots)
    )
    assert pipeline_bytes(forward, [], graph.num_vertices, 8) == crossing
    if is_symmetric(graph):
        assert rows[0] == rows[1]


@given(st.integers(1, 40), st.integers(1, 6))
def test_a_ring_sends_each_of_its_pieces_on_until_all_have_it(num_values: int, ways: int) -> None:
    pieces = [len(piece) for piece in np.array_split(np.arange(num_values), ways)]
    reduce_scatter = sum(pieces[(way - hop) % ways] for hop in range(ways - 1) for way in range(ways))
    assert ring_bytes(num_values, ways, 4) == 2 * reduce_scatter * 4


@settings(deadline=None, max_examples=30)
@given(graphs(), kinds, st.randoms(use_true_random=False))
def test_numbers_of_vertices_do_not_matter_to_a_propagation(graph: Graph, kind, random) -> None:
    order = list(range(graph.num_vertices))
    random.shuffle(order)
    moved = propagation(permuted(graph, np.array(order)), kind).toarray()
    assert np.array_equal(moved, propagation(graph, kind).toarray()[np.ix_(order, order)])


@settings(deadline=None, max_examples=30)
@given(graphs())
def test_turning_edges_round_twice_changes_nothing(graph: Graph) -> None:
    again = transpose(transpose(graph))
    assert np.array_equal(again.indptr, graph.indptr) and np.array_equal(again.indices, graph.indices)
    assert (np.diff(graph.indptr) >= 0).all()
    src, dst = graph.indices, np.repeat(np.arange(graph.num_vertices), graph.in_degrees())
    assert sorted(set(zip(dst.tolist(), src.tolist(), strict=True))) == list(
        zip(dst.tolist(), src.tolist(), strict=True)
    )


@settings(deadline=None, max_examples=30)
@given(graphs())
def test_gcn_is_symmetric_to_the_bit_where_the_graph_is(graph: Graph) -> None:
    matrix = propagation(graph, "gcn")
    if is_symmetric(graph):
        assert (matrix != sp.csr_matrix(matrix.T)).nnz == 0
    assert matrix.has_canonical_format
    assert matrix.diagonal().min() > 0
