"""Graph layers against torch_geometric's, with copied weights: results and gradients in float64 to 1e-10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from strategies.graph import Graph, from_edges
from trainers.graph.attention import Gat
from trainers.graph.convolutions import PyG, as_layer, graph_chain
from trainers.graph.layers import Gcn, Gcnii, GraphLayer, Sage, run
from trainers.graph.view import FullView
from trainers.models import ModelError

pyg = pytest.importorskip("torch_geometric.nn")


def made_graph(directed: bool, seed: int = 0) -> Graph:
    """Of 40 vertices the last 4 have no edges, and where it is directed some only send."""
    rng = np.random.default_rng(seed)
    return from_edges(rng.integers(0, 36, 150), rng.integers(0, 30, 150), 40, undirected=not directed)


@pytest.fixture(params=[True, False], ids=["directed", "undirected"])
def graph(request) -> Graph:
    return made_graph(request.param)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_weights(module: nn.Module) -> nn.Module:
    """Give every parameter, biases too, numbers that matter."""
    for index, parameter in enumerate(module.parameters()):
        parameter.data = draws(*parameter.shape, seed=index + 10)
    return module.double().eval()


def held_against(
    ours: Callable[[list[Tensor]], Tensor],
    theirs: Callable[[list[Tensor]], Tensor],
    pairs: list[tuple[Tensor, Tensor]],
    num_inputs: int = 1,
    width: int = 6,
) -> None:
    """Compare results and gradients of inputs and of (our, their) parameters."""
    found = []
    for forward, side in ((ours, 0), (theirs, 1)):
        inputs = [draws(40, width, seed=seed).requires_grad_() for seed in range(num_inputs)]
        result = forward(inputs)
        wanted = [*inputs, *(pair[side] for pair in pairs)]
        found.append([result, *torch.autograd.grad((result * draws(*result.shape, seed=99)).sum(), wanted)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other.reshape(mine.shape), rtol=0, atol=1e-10)


@pytest.mark.parametrize("out_width", [3, 6, 9])
def test_gcn(graph, out_width) -> None:
    layer, other = with_weights(Gcn(6, out_width)), pyg.GCNConv(6, out_width).double()
    other.lin.weight.data, other.bias.data = layer.weight.data.clone(), layer.bias.data.clone()
    view = FullView(graph, dtype=torch.float64)
    edges = view.sources(draws(40, 6))[1]
    pairs = [(layer.weight, other.lin.weight), (layer.bias, other.bias)]
    held_against(lambda x: layer(*x, view), lambda x: other(*x, edges), pairs)


@pytest.mark.parametrize("out_width", [3, 6, 9])
def test_sage(graph, out_width) -> None:
    layer, other = with_weights(Sage(6, out_width)), pyg.SAGEConv(6, out_width).double()
    pairs = [(layer.weight, other.lin_l.weight), (layer.root, other.lin_r.weight), (layer.bias, other.lin_l.bias)]
    for mine, theirs in pairs:
        theirs.data = mine.data.clone()
    view = FullView(graph, dtype=torch.float64)
    edges = view.sources(draws(40, 6))[1]
    held_against(lambda x: layer(*x, view), lambda x: other(*x, edges), pairs)


@pytest.mark.parametrize(("alpha", "theta", "depth"), [(0.1, 0.5, 1), (0.3, 1.5, 7)])
def test_gcnii(graph, alpha, theta, depth) -> None:
    layer = with_weights(Gcnii(6, depth, alpha=alpha, theta=theta))
    other = pyg.GCN2Conv(6, alpha, theta, depth).double()
    other.weight1.data = layer.weight.data.T.clone()
    view = FullView(graph, dtype=torch.float64)
    edges = view.sources(draws(40, 6))[1]
    held_against(lambda x: layer(*x, view)[0], lambda x: other(*x, edges).relu(), [], num_inputs=2)
    gradients = []
    for weight, forward in (
        (layer.weight, lambda *x: layer(*x, view)[0]),
        (other.weight1, lambda *x: other(*x, edges).relu()),
    ):
        gradients.append(torch.autograd.grad(forward(draws(40, 6), draws(40, 6, seed=1)).sum(), weight)[0])
    torch.testing.assert_close(gradients[0], gradients[1].T, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("heads", "concat"), [(1, True), (3, True), (3, False)])
def test_gat(graph, heads, concat) -> None:
    layer = with_weights(Gat(6, 4, heads=heads, concat=concat))
    other = pyg.GATConv(6, 4, heads=heads, concat=concat).double()
    pairs = [
        (layer.weight, other.lin.weight), (layer.source, other.att_src), (layer.target, other.att_dst),
        (layer.bias, other.bias),
    ]  # fmt: skip
    for mine, theirs in pairs:
        theirs.data = mine.data.reshape(theirs.shape).clone()
    view = FullView(graph, dtype=torch.float64)
    edges = view.sources(draws(40, 6))[1]
    held_against(lambda x: layer(*x, view), lambda x: other(*x, edges), pairs)


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "SAGEConv": lambda: pyg.SAGEConv(6, 5, aggr="max"),
    "GATConv": lambda: pyg.GATConv(6, 5, heads=2),
    "GATConv, two inputs": lambda: pyg.GATConv((6, 6), 5, add_self_loops=False),
    "GATv2Conv": lambda: pyg.GATv2Conv(6, 5),
    "GraphConv": lambda: pyg.GraphConv(6, 5),
    "GINConv": lambda: pyg.GINConv(nn.Linear(6, 5)),
    "TransformerConv": lambda: pyg.TransformerConv(6, 5, heads=2),
    "FeaStConv": lambda: pyg.FeaStConv(6, 5),
    "SimpleConv": lambda: pyg.SimpleConv("sum", combine_root="self_loop"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_torch_geometric_on_a_view_is_itself(graph, name) -> None:
    conv = with_weights(CONVOLUTIONS[name]())
    layer, view = as_layer(conv), FullView(graph, dtype=torch.float64)
    assert isinstance(layer, PyG)
    edges = view.sources(draws(40, 6))[1]
    pairs = [(parameter, parameter) for parameter in conv.parameters()]
    held_against(lambda x: layer(*x, view), lambda x: conv(*x, edges), pairs)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_gives_a_part_of_the_vertices_what_the_whole_graph_gives_them(name) -> None:
    graph, x = made_graph(directed=True), draws(40, 6)
    own = torch.from_numpy(np.random.default_rng(3).permutation(40)[:17])

    class Part(FullView):
        """`own` in their own order, over rows of the whole graph."""

        def sources(self, rows: Tensor, self_loops: bool = False) -> tuple[Tensor, Tensor]:
            assert torch.equal(rows, x[own])
            source, target = super().sources(x, self_loops)[1]
            edges = [(source[target == vertex], place) for place, vertex in enumerate(own)]
            places = torch.cat([torch.full_like(sources, place) for sources, place in edges])
            return x, torch.stack((torch.cat([sources for sources, _ in edges]), places))

    layer = as_layer(with_weights(CONVOLUTIONS[name]()))
    whole = layer(x, FullView(graph, dtype=torch.float64))
    torch.testing.assert_close(layer(x[own], Part(graph, dtype=torch.float64)), whole[own], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("conv", "said"),
    [
        (lambda: pyg.GCNConv(6, 5), "GCNConv takes all vertices at once(.|\n)*use trainers.graph.layers.Gcn$"),
        (lambda: pyg.GCN2Conv(6, 0.1), "GCN2Conv takes all vertices at once(.|\n)*use trainers.graph.layers.Gcnii$"),
        (lambda: pyg.APPNP(3, 0.1), "APPNP takes all vertices at once(.|\n)*such as SAGEConv"),
        (lambda: pyg.PointTransformerConv(6, 5), "wants x, pos, edge_index, but a view has rows and edge_index only"),
        (lambda: pyg.SAGEConv(6, 5, flow="target_to_source"), "SAGEConv has flow 'target_to_source'"),
        (lambda: nn.Sequential(pyg.SAGEConv(6, 5)), "Sequential holds SAGEConv as '0', but is called without a graph"),
    ],
)  # fmt: skip
def test_a_convolution_that_needs_the_whole_graph_is_refused(conv, said) -> None:
    with pytest.raises(ModelError, match=said):
        as_layer(conv())


def test_a_list_with_bare_convolutions_is_a_model_whose_parameters_keep_their_names(graph) -> None:
    class Own(GraphLayer):
        def forward(self, x: Tensor, view: Any) -> Tensor:
            return view.propagate(x, "mean")

    layers = [pyg.SAGEConv(6, 5), nn.ReLU(), Own(), pyg.GATConv(5, 3)]
    model = nn.Sequential(*layers).double().eval()
    chain, view, x = graph_chain(model), FullView(graph, dtype=torch.float64), draws(40, 6)
    edges = view.sources(x)[1]
    expected = layers[3](view.propagate(layers[0](x, edges).relu(), "mean"), edges)
    found = run([layer.module for layer in chain.layers], x, view)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert list(chain.uses) == [name for name, _ in model.named_parameters()]
    for name, (use,) in chain.uses.items():
        assert chain.layers[use.layer].module.get_parameter(use.local) is model.get_parameter(name)
