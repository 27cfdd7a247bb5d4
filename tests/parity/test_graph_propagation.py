"""Propagation matrices against torch_geometric's normalisation and aggregation, on graphs of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strategies.graph import Graph, from_edges, propagation, with_self_loops

RNG = np.random.default_rng(0)
SRC, DST = RNG.integers(0, 50, (2, 150))  # vertices 50 to 54 are isolated
GRAPHS = {
    "directed": from_edges(SRC, DST, 55),
    "undirected": from_edges(SRC, DST, 55, undirected=True),
    "with loops": with_self_loops(from_edges(SRC, DST, 55)),
    "without edges": from_edges([], [], 3),
    "of one vertex": from_edges([], [], 1),
}

every_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def edge_index(graph: Graph) -> torch.Tensor:
    targets = np.repeat(np.arange(graph.num_vertices), graph.in_degrees())
    return torch.from_numpy(np.stack([graph.indices, targets]))


@every_graph
def test_gcn_is_torch_geometrics_gcn_norm(graph: Graph) -> None:
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    (src, dst), weight = gcn_norm(edge_index(graph), num_nodes=graph.num_vertices, dtype=torch.float64)
    theirs = torch.zeros(graph.num_vertices, graph.num_vertices, dtype=torch.float64)
    theirs.index_put_((dst, src), weight, accumulate=True)
    torch.testing.assert_close(torch.from_numpy(propagation(graph, "gcn").toarray()), theirs, rtol=1e-15, atol=0)


@every_graph
@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_mean_and_sum_are_torch_geometrics_aggregations(graph: Graph, kind: str) -> None:
    from torch_geometric.nn import SimpleConv

    x = torch.from_numpy(RNG.standard_normal((graph.num_vertices, 4)))
    theirs = SimpleConv(aggr=kind)(x, edge_index(graph))
    torch.testing.assert_close(torch.from_numpy(propagation(graph, kind) @ x.numpy()), theirs, rtol=1e-13, atol=1e-14)
