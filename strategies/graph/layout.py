"""Who has which vertices: a graph's vertices in W ways, each way's in S slots.

    way 0                   way 1
    slot 0 | slot 1 | ..    slot 0 | slot 1 | ..      order:   |0,0|0,1|..|1,0|1,1|..|
                                                      offsets: 0   ^   ^           ^ N

Ways are processes that exchange boundary rows; slots are what a pipeline runs one after the other. All ways run a
slot together, so every chunk, a slot of a way, should cost the same: a vertex costs what a number of edges cost, and
its edges.

Source: GNNPipe (arXiv:2308.10087) cuts by METIS (Karypis and Kumar, "A Fast and High Quality Multilevel Scheme for
Partitioning Irregular Graphs", SIAM J. Sci. Comput. 20(1), 1998); its scripts weigh a vertex by 50 + degree.
Deviations: those cut four times as many parts as chunks and group them at random, and a way takes consecutive chunks;
here the ways are cut first, so that few rows are exchanged, and then each way's own graph into slots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from strategies import seeds
from strategies.graph.structure import Graph, Integers, adjacency

METHODS = ("metis", "contiguous", "random")


class Layout(NamedTuple):
    """Chunk `way * slots + slot` holds the vertices `order[offsets[chunk]:offsets[chunk + 1]]`, ascending.

    Args:
        order: every vertex once, way by way, and slot by slot within a way.
        offsets: where each chunk begins, and at the end the number of vertices.

    Shapes: `order [num_vertices]`, `offsets [ways * slots + 1]`, both int64.
    """

    order: Integers
    offsets: Integers
    ways: int
    slots: int

    @property
    def num_vertices(self) -> int:
        """Number of vertices of the graph."""
        return len(self.order)

    @property
    def num_chunks(self) -> int:
        """Number of chunks: `ways * slots`."""
        return self.ways * self.slots

    def rows(self, way: int, slot: int) -> Integers:
        """Return the vertices of one chunk, ascending, without copying."""
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}: slots count from 0")
        self.span(way)  # raises where there is no such way
        return self.order[self.offsets[self.slots * way + slot] : self.offsets[self.slots * way + slot + 1]]

    def way(self, way: int) -> Integers:
        """Return the vertices of all slots of one way, in layout order, without copying."""
        start, end = self.span(way)
        return self.order[start:end]

    def span(self, way: int) -> tuple[int, int]:
        """Return where one way begins and ends in `order`."""
        if not 0 <= way < self.ways:
            raise IndexError(f"way {way} of {self.ways}: ways count from 0")
        return int(self.offsets[way * self.slots]), int(self.offsets[(way + 1) * self.slots])

    def positions(self) -> Integers:
        """Return of every vertex where it stands in `order`."""
        found = np.empty(self.num_vertices, np.int64)
        found[self.order] = np.arange(self.num_vertices)
        return found

    def sizes(self) -> Integers:
        """Return the number of vertices of every chunk."""
        return np.diff(self.offsets)


def layout(
    graph: Graph, ways: int, slots: int, *, method: str = "metis", seed: int = 0, vertex_cost: int = 50
) -> Layout:
    """Divide a graph's vertices into ways and slots of about equal cost.

    The same arguments give the same layout. METIS draws from the C library's generator, which it seeds first. Where
    parts have a handful of vertices it may complain on standard output, and is corrected.

    Args:
        method: `metis` cuts as little as it can; `contiguous` cuts the vertices in the order of their ids, for
            graphs whose order is good already; `random` cuts them shuffled, the control.
        seed: of METIS and of the shuffle.
        vertex_cost: what a vertex costs beside its edges, in edges; its in-edges and its out-edges each count half.

    Raises:
        ValueError: when there are fewer vertices than chunks, no such method, or a number is out of range.
    """
    if ways < 1 or slots < 1:
        raise ValueError(f"ways and slots must be at least 1, got {ways} and {slots}")
    if graph.num_vertices < ways * slots:
        raise ValueError(
            f"{graph.num_vertices} vertices cannot fill {ways} ways x {slots} slots = {ways * slots} chunks; "
            f"use fewer slots or ways"
        )
    if vertex_cost < 0:
        raise ValueError(f"vertex_cost must be at least 0, got {vertex_cost}")
    costs = np.maximum(2 * vertex_cost + graph.in_degrees() + graph.out_degrees(), 1)
    if method == "metis":
        chunk_of = _metis(graph, costs, ways, slots, seed)
    elif method == "contiguous":
        chunk_of = _cut(costs, ways * slots)
    elif method == "random":
        shuffled = seeds.generator(seed, "layout").permutation(graph.num_vertices)
        chunk_of = np.empty(graph.num_vertices, np.int64)
        chunk_of[shuffled] = _cut(costs[shuffled], ways * slots)
    else:
        raise ValueError(f"no layout method {method!r}; there are {', '.join(METHODS)}")
    sizes = np.bincount(chunk_of, minlength=ways * slots)
    return Layout(np.argsort(chunk_of, kind="stable"), np.concatenate(([0], np.cumsum(sizes))), ways, slots)


def _cut(costs: Integers, num_parts: int) -> Integers:
    """Return the part of each of a row of vertices: consecutive, none empty, each about as costly as the next."""
    before = np.concatenate(([0], np.cumsum(costs)))
    inner = np.arange(1, num_parts)
    starts = np.searchsorted(before, before[-1] * (inner / num_parts))
    starts = np.maximum.accumulate(np.maximum(starts - inner, 0)) + inner  # each at least one after the last
    starts = np.minimum(starts, len(costs) - num_parts + inner)
    return np.repeat(np.arange(num_parts), np.diff(np.concatenate(([0], starts, [len(costs)]))))


def _metis(graph: Graph, costs: Integers, ways: int, slots: int, seed: int) -> Integers:
    """Return the chunk of every vertex.

    Ways are cut twice, by METIS's volume objective, which counts the rows that ways send each other, and by its number
    of cut edges; what sends fewer rows is kept, as on some graphs the first is led astray. Slots are cut by the number
    of edges, which are those that may see historical embeddings. All count edges without their direction.
    """
    pattern = adjacency(graph, np.bool_)
    neighbours = sp.csr_matrix(pattern + pattern.T)
    neighbours.setdiag(False)  # METIS takes no self-loops
    neighbours.eliminate_zeros()
    cuts = [_parts(neighbours, costs, ways, seeds.integer(seed, "layout"), by_volume) for by_volume in (True, False)]
    way_of = min(cuts, key=lambda cut: _volume(neighbours, cut, ways))
    _fill(way_of, costs, ways, slots)
    chunk_of = np.empty(graph.num_vertices, np.int64)
    for way in range(ways):
        own = np.flatnonzero(way_of == way)
        slot_of = _parts(neighbours[own][:, own], costs[own], slots, seeds.integer(seed, "layout", way), False)
        _fill(slot_of, costs[own], slots, 1)
        chunk_of[own] = way * slots + slot_of
    return chunk_of


def _parts(neighbours: sp.csr_matrix, costs: Integers, num_parts: int, seed: int, by_volume: bool) -> Integers:
    """Return METIS's part of every vertex: by direct k-way partition for volume, else by bisection, for cut edges.

    Bisection balances best; k-way parts are kept within 0.3 % of the mean cost, where vertices allow it.
    """
    if num_parts == 1:
        return np.zeros(len(costs), np.int64)
    from pymetis import CSRAdjacency, ObjType, Options, part_graph

    options = {"objtype": int(ObjType.VOL), "ufactor": 3} if by_volume else {}
    weights = np.maximum(costs // (1 + int(costs.sum()) // 2**30), 1)  # METIS adds them in 32 bits
    _, parts = part_graph(
        num_parts,
        CSRAdjacency(neighbours.indptr, neighbours.indices),
        vweights=weights.astype(np.int32),
        recursive=not by_volume,
        options=Options(seed=seed % 2**31, **options),
    )
    return np.asarray(parts, np.int64)


def _volume(neighbours: sp.csr_matrix, parts: Integers, num_parts: int) -> int:
    """Return how many rows the parts send each other: of every vertex, the other parts with a neighbour of it."""
    needed = np.zeros((num_parts, len(parts)), np.bool_)
    needed[np.repeat(parts, np.diff(neighbours.indptr)), neighbours.indices] = True
    needed[parts, np.arange(len(parts))] = False
    return int(np.count_nonzero(needed))


def _fill(parts: Integers, costs: Integers, num_parts: int, at_least: int) -> None:
    """Move the cheapest vertices to parts with fewer than `at_least`, as METIS leaves some where parts are small."""
    sizes = np.bincount(parts, minlength=num_parts)
    while sizes.min() < at_least:
        poor, rich = int(sizes.argmin()), int(sizes.argmax())
        members = np.flatnonzero(parts == rich)
        parts[members[costs[members].argmin()]] = poor
        sizes[[poor, rich]] += (1, -1)
