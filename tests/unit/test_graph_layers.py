"""Sparse products, views and models on them: the same bits for a row wherever it stands, cuts anywhere, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from strategies.graph import Graph, from_edges, propagation
from trainers import models
from trainers.graph.convolutions import PyG, as_layer, graph_chain
from trainers.graph.kernels import KERNELS, RULE, Matrix
from trainers.graph.layers import Activated, Gcn, GraphLayer, Sage, call, run
from trainers.graph.view import FullView, edge_index, pattern
from trainers.models import ModelError

DTYPES = (torch.float32, torch.float64)
SECTIONS: list[dict[str, Any]] = [
    {"name": "gcn", "layers": 3, "hidden": 5},
    {"name": "sage", "layers": 3, "hidden": 5},
    {"name": "gcnii", "layers": 3, "hidden": 5},
    {"name": "resgcn", "layers": 3, "hidden": 5},
    {"name": "gat", "layers": 3, "hidden": 2, "heads": 3, "output_heads": 2},
]


def made_graph(num_vertices: int = 60, num_edges: int = 300, seed: int = 0) -> Graph:
    """A directed graph; vertices 57 to 59 have no edges, and 50 to 56 only send."""
    rng = np.random.default_rng(seed)
    return from_edges(rng.integers(0, 57, num_edges), rng.integers(0, 50, num_edges), num_vertices)


def made_matrix(rows: int = 200, columns: int = 300, entries: int = 4000) -> sp.csr_matrix:
    """A matrix with empty rows, whose rows do not store their columns in ascending order."""
    rng = np.random.default_rng(0)
    matrix = sp.csr_matrix(
        (rng.standard_normal(entries), (rng.integers(0, rows - 20, entries), rng.integers(0, columns, entries))),
        (rows, columns),
    )
    renamed = rng.permutation(columns)
    return sp.csr_matrix((matrix.data, renamed[matrix.indices], matrix.indptr), matrix.shape)


def made_rows(num: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(num, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


class PartView:
    """Some vertices of a graph as own ones; the rows of the others come from a table for each thing that is asked."""

    def __init__(self, graph: Graph, own: np.ndarray) -> None:
        self.graph, self.own, self.tables, self.asked = graph, own, list[Tensor](), 0

    def table(self, x: Tensor) -> Tensor:
        table = self.tables[self.asked].clone()
        self.asked += 1
        table[torch.from_numpy(self.own)] = x
        return table

    def propagate(self, x: Tensor, kind: str) -> Tensor:
        return Matrix(propagation(self.graph, kind)[self.own], dtype=x.dtype).multiply(self.table(x))

    def sources(self, x: Tensor, self_loops: bool = False) -> tuple[Tensor, Tensor]:
        return self.table(x), edge_index(propagation(self.graph, pattern(self_loops))[self.own])


class Listening(FullView):
    """The whole graph, keeping what is asked."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph, dtype=torch.float64)
        self.heard: list[Tensor] = []

    def propagate(self, x: Tensor, kind: str) -> Tensor:
        self.heard.append(x.detach())
        return super().propagate(x, kind)

    def sources(self, x: Tensor, self_loops: bool = False) -> tuple[Tensor, Tensor]:
        self.heard.append(x.detach())
        return super().sources(x, self_loops)


# ------------------------------------------------------------------------------------------------------ products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_product_is_scipy_s_to_rounding(kernel: str, dtype: torch.dtype) -> None:
    matrix, dense = made_matrix(), made_rows(300, 33)
    found = Matrix(matrix, dtype=dtype, kernel=kernel).multiply(dense.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), torch.from_numpy(matrix @ dense.numpy()), rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4
    )
    assert not found[180:].any()


@pytest.mark.parametrize("width", [1, 7, 64, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_has_the_same_bits_in_any_matrix_and_whatever_its_columns_are_called(
    kernel: str, dtype: torch.dtype, width: int
) -> None:
    rng = np.random.default_rng(2)
    matrix, dense = made_matrix(), made_rows(300, width, dtype)
    whole = Matrix(matrix, dtype=dtype, kernel=kernel).multiply(dense)
    for count in (1, 2, 77):
        rows = rng.permutation(200)[:count]
        part, renamed = matrix[rows], rng.permutation(300)
        other = sp.csr_matrix((part.data, np.argsort(renamed)[part.indices], part.indptr), part.shape)
        found = Matrix(other, dtype=dtype, kernel=kernel).multiply(dense[renamed])
        assert torch.equal(found, whole[rows])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_number_of_threads_moves_no_bit(kernel: str) -> None:
    matrix, dense, threads = made_matrix(), made_rows(300, 40, torch.float32), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(Matrix(matrix, kernel=kernel).multiply(dense))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_matrix_without_entries_or_rows_multiplies(kernel: str) -> None:
    assert not Matrix(sp.csr_matrix((4, 3)), kernel=kernel).multiply(torch.ones(3, 5)).any()
    assert Matrix(sp.csr_matrix((0, 3)), kernel=kernel).multiply(torch.ones(3, 5)).shape == (0, 5)
    assert Matrix(sp.csr_matrix((4, 0)), kernel=kernel).multiply(torch.ones(0, 5)).shape == (4, 5)
    assert Matrix(made_matrix(), kernel=kernel).multiply(torch.ones(300, 0)).shape == (200, 0)


def test_auto_is_a_rule_and_indices_are_small_where_they_fit() -> None:
    matrix = made_matrix()
    for dtype in DTYPES:
        made = Matrix(matrix, dtype=dtype)
        assert made.kernel == RULE["cpu", dtype]
        assert made.num_bytes == 4 * (201 + matrix.nnz) + dtype.itemsize * matrix.nnz


def test_rows_need_not_be_contiguous_and_the_kernel_gives_the_same_bits() -> None:
    made, dense = Matrix(made_matrix()), made_rows(300, 8, torch.float32)
    spread = torch.empty(300, 16)[:, ::2].copy_(dense)
    assert not spread.is_contiguous()
    assert torch.equal(made.multiply(spread), made.multiply(dense))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Matrix(made_matrix(), kernel="mkl"), "unknown kernel 'mkl'; kernels are auto, bag"),
        (lambda: Matrix(made_matrix(), dtype=torch.float16), "float16 on cpu was asked for"),
        (lambda: Matrix(made_matrix()).multiply(torch.ones(299, 4)), "multiplies 300 rows"),
        (lambda: Matrix(made_matrix()).multiply(torch.ones(300, 4).double()), "multiplies 300 rows of torch.float32"),
        (lambda: Matrix(made_matrix()).multiply(torch.ones(300, 4, device="meta")), "the rows are on meta"),
        (lambda: Matrix(sp.csr_matrix((np.ones(1), np.array([9]), np.array([0, 1])), (1, 3))), "ind"),
        (lambda: FullView(made_graph()).propagate(torch.ones(60, 2), "median"), "no propagation 'median'"),
    ],
)
def test_what_cannot_be_multiplied_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# --------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("kind", ["gcn", "mean", "sum"])
@pytest.mark.parametrize("undirected", [False, True])
def test_the_whole_graph_propagates_with_the_right_gradient(kind: str, undirected: bool) -> None:
    graph = from_edges(np.array([0, 1, 1, 4, 9]), np.array([1, 0, 2, 3, 4]), 11, undirected=undirected)
    view, x = FullView(graph, dtype=torch.float64), made_rows(11, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: view.propagate(x, kind), x)
    expected = propagation(graph, kind).toarray() @ x.detach().numpy()
    np.testing.assert_allclose(view.propagate(x, kind).detach().numpy(), expected, atol=1e-14)


def test_sources_of_the_whole_graph_are_all_rows_and_edges_by_target() -> None:
    graph = from_edges(np.array([2, 0, 1]), np.array([0, 1, 0]), 4)
    rows, edges = FullView(graph).sources(x := torch.ones(4, 2))
    assert rows is x
    assert edges.tolist() == [[1, 2, 0], [0, 0, 1]]
    assert FullView(graph).sources(x, self_loops=True)[1].tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 0, 0, 1, 1, 2, 3]]


# -------------------------------------------------------------------------------------------------------- models


@pytest.fixture(params=SECTIONS, ids=lambda section: section["name"])
def section(request) -> dict[str, Any]:
    return request.param


def built(section: dict[str, Any], dtype: str = "float64") -> nn.Module:
    return models.build({**section, "dtype": dtype}, input_shape=(9,), num_classes=4, seed=3)


def test_a_model_returns_logits_of_every_vertex_and_all_of_it_trains(section) -> None:
    model, view = built(section, "float32"), FullView(made_graph())
    logits = model(made_rows(60, 9, torch.float32), view)
    assert logits.shape == (60, 4)
    logits.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_the_depth_is_as_asked_for(section) -> None:
    for layers in (1, 2, 5):
        model, view = built({**section, "layers": layers}), Listening(made_graph())
        assert model(made_rows(60, 9), view).shape == (60, 4)
        assert len(view.heard) == layers


def test_a_model_may_be_cut_between_any_two_layers(section) -> None:
    model, view, x = built(section).eval(), FullView(made_graph(), dtype=torch.float64), made_rows(60, 9)
    layers = [layer.module for layer in graph_chain(model).layers]
    for cut in range(1, len(layers)):
        carry = run(layers[:cut], x, view)
        assert all(len(tensor) == 60 for tensor in (carry if isinstance(carry, tuple) else (carry,)))
        assert torch.equal(run(layers[cut:], carry, view), model(x, view))


def test_a_part_of_the_vertices_gets_what_the_whole_graph_gives_them(section) -> None:
    graph, x = made_graph(), made_rows(60, 9)
    own = np.random.default_rng(4).permutation(60)[:23]
    model, whole, part = built(section).eval(), Listening(graph), PartView(graph, own)
    expected = model(x, whole)
    part.tables = whole.heard
    with torch.no_grad():
        torch.testing.assert_close(model(x[own], part), expected[own], rtol=0, atol=1e-12)


def test_the_narrower_side_is_what_is_aggregated() -> None:
    x, widths = made_rows(60, 6), []
    for layer in (Gcn(6, 3), Gcn(6, 6), Gcn(6, 8), Sage(6, 3), Sage(6, 6), Sage(6, 8)):
        view = Listening(made_graph())
        layer.double()(x, view)
        widths.append(view.heard[0].shape[1])
    assert widths == [3, 6, 6, 3, 6, 6]


def test_weights_begin_as_glorot_draws_them_and_biases_at_zero(section) -> None:
    model = built({**section, "hidden": 40, "layers": 2})
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert bound * 0.7 < parameter.abs().max() <= bound, name
        else:
            assert not parameter.any(), name


def test_evaluation_draws_nothing_and_training_draws_dropout(section) -> None:
    model, view, x = built({**section, "dropout": 0.5}), FullView(made_graph(), dtype=torch.float64), made_rows(60, 9)
    assert not torch.equal(model.train()(x, view), model(x, view))
    assert torch.equal(model.eval()(x, view), model(x, view))


def test_gcnii_decays_its_affine_maps_less() -> None:
    model = built({"name": "gcnii", "layers": 2, "hidden": 5, "dense_decay": 0.2})
    assert model.decay_groups() == [
        (1.0, ["layers.1.weight", "layers.2.weight"]),
        (0.2, [f"layers.{layer}.linear.{name}" for layer in (0, 3) for name in ("weight", "bias")]),
    ]


def test_features_must_be_a_row(section) -> None:
    with pytest.raises(ModelError, match=f"model {section['name']} needs a row of features"):
        models.build(section, input_shape=(1, 8, 8), num_classes=4, seed=0)


@pytest.mark.parametrize("kind", ["federated", "peers", "pipeline"])
def test_a_strategy_that_trains_on_examples_refuses_models_of_graphs(section, kind: str) -> None:
    assert {"gcn", "sage", "gcnii", "resgcn", "gat"} == set(models.GRAPH_NAMES) == {one["name"] for one in SECTIONS}
    with pytest.raises(ConfigError) as caught:
        load_experiment({"name": "x", "data": {"name": "cora"}, "model": section, "strategy": {"kind": kind}})
    told = [problem for problem in caught.value.problems if problem.path == "model.name"]
    assert len(told) == 1 and f"aggregates over a whole graph, but a {kind} strategy" in told[0].message


# ----------------------------------------------------------------------------------------------- users' own layers


class Twice(GraphLayer):
    def forward(self, x: Tensor, graph: Any) -> Tensor:
        return graph.propagate(graph.propagate(x, "mean"), "mean")


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Gcn(9, 4)


def test_a_list_of_layers_is_a_model() -> None:
    layers = [nn.Linear(9, 5), nn.ReLU(), Twice(), Activated(Sage(5, 4))]
    chain = graph_chain([layer.double() for layer in layers])
    assert [layer.module for layer in chain.layers] == layers
    assert run(
        [layer.module for layer in chain.layers], made_rows(60, 9), FullView(made_graph(), dtype=torch.float64)
    ).shape == (60, 4)


def test_layers_take_the_view_last_and_others_none() -> None:
    class Pair(GraphLayer):
        def forward(self, x: Tensor, initial: Tensor, graph: Any) -> tuple[Tensor, Tensor]:
            return x + graph.propagate(initial, "sum"), initial

    view = FullView(from_edges(np.array([0]), np.array([1]), 2))
    x, initial = call(Pair(), (torch.zeros(2, 1), torch.tensor([[3.0], [5.0]])), view)
    assert x.tolist() == [[0.0], [3.0]] and initial.tolist() == [[3.0], [5.0]]
    assert call(nn.Identity(), x, view) is x


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: [nn.Sequential(nn.Linear(9, 9), nn.ReLU()), Hidden()], "Hidden holds Gcn as 'inner', but is called"),
        (lambda: Hidden(), "Hidden is no list of layers"),
        (lambda: [PyG(nn.Linear(2, 2))], "Linear is no convolution of torch_geometric"),
    ],
)
def test_what_is_no_list_of_layers_is_refused(model: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        graph_chain(model())


def test_a_plain_module_is_left_as_it_is() -> None:
    linear = nn.Linear(2, 2)
    assert as_layer(linear) is linear
