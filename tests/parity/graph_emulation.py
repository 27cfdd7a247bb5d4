"""What graph pipelines are held against: plain statements in dense torch, one process, no chunk machinery.

full        the whole graph and plain autograd
detached    chunk after chunk; rows of chunks that have been are live, others are older values, detached; autograd
authors     GNNPipe's own loop: gradients of aggregates in a table, doubled once a chunk is through, zeroed first
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.graph import Graph, Layout, from_edges, propagation
from strategies.graph.order import chunk_order
from trainers import models
from trainers.data.graphs import registry
from trainers.data.graphs.base import GraphData
from trainers.graph.convolutions import graph_chain
from trainers.graph.inline import InlineGraphPipeline
from trainers.graph.layers import GraphLayer, run
from trainers.graph.settings import Settings
from trainers.graph.view import FullView, pattern

NETS = "tests.parity.graph_emulation"
ADAM = {"name": "adam", "lr": 0.02, "kwargs": {}}
COSINE = {"name": "cosine", "warmup_steps": 2, "final": 0.1}


# ------------------------------------------------------------------------------------------------ graphs and models


def undirected() -> GraphData:
    """A small graph of an odd size, whose features have both signs."""
    section = {"name": "sbm", "vertices": 47, "classes": 3, "features": 9, "degree": 5}
    return registry.load(section, seed=1)


def directed(num_vertices: int = 41, num_edges: int = 150, seed: int = 0, features: int = 9) -> GraphData:
    """Edges one way; some vertices only send, some only receive, and the last have no edges at all."""
    rng = np.random.default_rng(seed)
    connected = max(2, num_vertices - 4)
    graph = from_edges(
        rng.integers(0, connected, num_edges), rng.integers(0, num_vertices - 2, num_edges), num_vertices
    )
    parts = rng.permutation(np.arange(num_vertices) % 3)
    x = rng.standard_normal((num_vertices, features)).astype(np.float32)
    masks = [parts == part for part in range(3)]
    return GraphData("made", x, rng.integers(0, 3, num_vertices), graph.indptr, graph.indices, *masks, 3)


GRAPHS: dict[str, Callable[[], GraphData]] = {"undirected": undirected, "directed": directed}

MODELS: dict[str, dict[str, Any]] = {
    "gcn": {"name": "gcn", "layers": 3, "hidden": 6},
    "sage": {"name": "sage", "layers": 3, "hidden": 6},
    "gcnii": {"name": "gcnii", "layers": 2, "hidden": 6},
    "resgcn": {"name": "resgcn", "layers": 2, "hidden": 6},
    "gat": {"name": "gat", "layers": 3, "hidden": 3, "heads": 2},
    "pyg": {"target": f"{NETS}:pyg_net"},
    "asks-twice": {"target": f"{NETS}:asking_net"},
}
"""Every model with few layers; those without a target take `dropout`."""


def pyg_net(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    from torch_geometric.nn import GATv2Conv, SAGEConv

    width = input_shape[0]
    return nn.Sequential(SAGEConv(width, 6), nn.Tanh(), GATv2Conv(6, 4, heads=2), nn.ELU(), SAGEConv(8, num_classes))


class Asks(GraphLayer):
    """Asks its view several things, of its input too, and lets autograd add up what comes back."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.25)
        self.first, self.second = nn.Linear(in_width, out_width), nn.Linear(in_width, out_width)

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        twice = graph.propagate(self.second(graph.propagate(self.drop(x), "mean")), "sum")
        rows, (source, target) = graph.sources(self.first(x))
        largest = torch.tanh(rows).index_select(0, source)
        return twice / 5 + torch.zeros_like(twice).index_add(0, target, largest)


def asking_net(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    layers = [Asks(input_shape[0], 6), nn.Tanh(), Asks(6, num_classes)]
    for layer in (layers[0], layers[2]):
        layer.drop.p = 0.0
    return nn.Sequential(*layers)


def normed_net(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """With batch normalisation behind an aggregation of the features, which is exact in every chunk."""
    from trainers.graph.layers import Gcn

    return nn.Sequential(Gcn(input_shape[0], 12), nn.BatchNorm1d(12), nn.ReLU(), Gcn(12, num_classes))


def settings(model: str | dict[str, Any] = "gcn", **changes: Any) -> Settings:
    section = dict(MODELS[model] if isinstance(model, str) else model)
    section["dtype"] = "float64"
    if "target" not in section:
        section["dropout"] = changes.pop("dropout", 0.0)
    base: dict[str, Any] = {
        "model": section, "seed": 3, "model_seed": 5, "stages": 1, "ways": 1, "slots": 1, "chunking": "metis",
        "layers": None, "shuffle": True, "refresh": 23, "correction": 1.0, "recompute": False, "kernel": "auto",
        "optimizer": {"name": "sgd", "lr": 0.1, "kwargs": {}}, "clip_norm": None, "epochs": 10, "patience": None,
        "learning_rate": {"name": "constant", "warmup_steps": 0, "final": 0.0},
    }  # fmt: skip
    base.update(changes)
    if base["layers"] is None:
        num = num_layers(section)
        first = num - base["stages"] + 1
        base["layers"] = (first, *[1] * (base["stages"] - 1))
    base["stages"] = len(base["layers"])
    return Settings(**base)


def built(section: dict[str, Any], data: GraphData, seed: int = 5) -> nn.Module:
    return models.build(section, input_shape=(data.num_features,), num_classes=data.num_classes, seed=seed)


def num_layers(section: dict[str, Any]) -> int:
    return len(graph_chain(models.build(section, input_shape=(9,), num_classes=3, seed=0)).layers)


def cuts(layers: int) -> list[tuple[int, ...]]:
    """Every way to cut so many layers into stages."""
    found = []
    for mask in range(2 ** (layers - 1)):
        ends = [place + 1 for place in range(layers - 1) if mask >> place & 1]
        found.append(tuple(np.diff([0, *ends, layers]).tolist()))
    return found


# ----------------------------------------------------------------------------------------------- plain statements


class Plain(NamedTuple):
    """Loss and gradients by name of one epoch."""

    loss: float
    gradients: dict[str, Tensor]


class Model:
    """A model with the names that a pipeline gives its parameters, whole in this process."""

    def __init__(self, given: Settings, data: GraphData) -> None:
        self.data = data
        module = built(dict(given.model), data, given.model_seed)
        chain = graph_chain(module)
        self.module = module
        self.layers = [layer.module for layer in chain.layers]
        self.names = dict(module.named_parameters())
        self.x = torch.tensor(np.asarray(data.x), dtype=torch.float64)
        self.y = torch.tensor(np.asarray(data.y))
        self.mask = torch.tensor(np.asarray(data.train_mask))
        self.dense = {
            kind: torch.from_numpy(propagation(Graph(data.indptr, data.indices), kind).toarray())
            for kind in ("gcn", "mean", "sum")
        }

    def loss(self, returned: Tensor, ids: Tensor) -> Tensor:
        """The part of the mean loss that is these vertices'."""
        chosen = self.mask[ids]
        return functional.cross_entropy(returned[chosen], self.y[ids][chosen], reduction="sum") / self.mask.sum()

    def take(self, loss: Tensor | float) -> Plain:
        """Return what `.grad` has, and forget it."""
        found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in self.names.items()}
        self.module.zero_grad(set_to_none=True)
        return Plain(float(loss), found)


def full(model: Model) -> Plain:
    """One epoch on the whole graph."""
    data = model.data
    view = FullView(Graph(np.asarray(data.indptr), np.asarray(data.indices)), dtype=torch.float64)
    model.module.train()
    loss = model.loss(run(model.layers, model.x, view), torch.arange(data.num_vertices))
    loss.backward()
    return model.take(loss.detach())


class Detached:
    """Chunk after chunk with autograd; keeps the history from epoch to epoch.

    Args:
        chunks: vertices of each slot, of all ways. correction: gradients that cross chunks are multiplied by it.
    """

    def __init__(self, model: Model, chunks: Sequence[Tensor], refresh: int, correction: float) -> None:
        self.model, self.chunks, self.refresh, self.correction = model, chunks, refresh, correction
        self.tables: dict[tuple[int, int], Tensor] = {}
        self._asked: tuple[int, int] = (0, 0)

    def epoch(self, number: int, order: Sequence[int]) -> Plain:
        """Train-mode epoch `number`, from 1; no update."""
        self.live: dict[tuple[int, int], dict[int, Tensor]] = {}
        self.model.module.train()
        total: Any = 0.0
        for slot in order:
            self.slot, x = slot, self.model.x[self.chunks[slot]]
            self.inputs = x
            carry: Any = x
            for index, layer in enumerate(self.model.layers):
                self._asked = (index, 0)
                carry = run([layer], carry, self)  # type: ignore[arg-type]
            total = total + self.model.loss(carry, self.chunks[slot])
        total.backward()
        if self.refresh and number % self.refresh == 0:
            for site, rows in self.live.items():
                self.tables[site] = self._table(site, rows).detach()
        return self.model.take(total.detach())

    # ------------------------------------------------------------------------------------- what layers ask of it

    def propagate(self, x: Tensor, kind: str) -> Tensor:
        ids = self.chunks[self.slot]
        return self.model.dense[kind][ids] @ self._all(x)

    def sources(self, x: Tensor, self_loops: bool = False) -> tuple[Tensor, Tensor]:
        ids = self.chunks[self.slot]
        matrix = self.model.dense[pattern(self_loops)][ids]
        target, source = matrix.nonzero().T
        return self._all(x), torch.stack([source, target])

    def _all(self, x: Tensor) -> Tensor:
        site = self._asked
        self._asked = (site[0], site[1] + 1)
        if x is self.inputs:
            return self.model.x
        self.live.setdefault(site, {})[self.slot] = x
        return self._table(site, self.live[site])

    def _table(self, site: tuple[int, int], live: dict[int, Tensor]) -> Tensor:
        width = next(iter(live.values())).shape[1]
        old = self.tables.get(site, torch.zeros(self.model.data.num_vertices, width, dtype=torch.float64))
        parts = []
        for slot, ids in enumerate(self.chunks):
            rows = live.get(slot, old[ids])
            if slot in live and slot != self.slot and self.correction != 1:
                rows = self.correction * rows - (self.correction - 1) * rows.detach()
            parts.append(rows)
        back = torch.argsort(torch.cat(list(self.chunks)))
        return torch.cat(parts)[back]


class Authors(Detached):
    """GNNPipe's loop, for models that aggregate by `propagate` only: each aggregation cuts autograd's graph."""

    def epoch(self, number: int, order: Sequence[int]) -> Plain:
        model = self.model
        model.module.train()
        self.live, self.cut, self.got = {}, {}, {}
        losses = {}
        for slot in order:
            self.slot, self.inputs = slot, model.x[self.chunks[slot]]
            carry: Any = self.inputs
            for index, layer in enumerate(model.layers):
                self._asked = (index, 0)
                carry = run([layer], carry, self)  # type: ignore[arg-type]
            losses[slot] = model.loss(carry, self.chunks[slot])
        for slot in reversed(list(order)):
            ids = self.chunks[slot]
            losses[slot].backward(retain_graph=True)
            for site in sorted(self.live, reverse=True):
                kind, aggregate = self.cut[site, slot]
                gradient = aggregate.grad if aggregate.grad is not None else torch.zeros_like(aggregate)
                table = self.got.setdefault(site, torch.zeros(len(model.y), gradient.shape[1], dtype=torch.float64))
                table[ids] = gradient
                x = self.live[site][slot]
                if x.requires_grad:
                    x.backward(model.dense[kind].T[ids] @ table, retain_graph=True)
            for table in self.got.values():
                table[ids] *= self.correction
        if self.refresh and number % self.refresh == 0:
            for site, rows in self.live.items():
                self.tables[site] = self._table(site, rows).detach()
        return model.take(sum(float(loss.detach()) for loss in losses.values()))

    def propagate(self, x: Tensor, kind: str) -> Tensor:
        site = self._asked
        rows = super().propagate(x, kind).detach()
        if x is self.inputs:
            return rows
        rows.requires_grad_()
        self.cut[site, self.slot] = (kind, rows)
        return rows


# ---------------------------------------------------------------------------------------------------- pipelines


def chunks_of(cut: Layout) -> list[Tensor]:
    """Return the vertices of each slot, of all ways together."""
    return [torch.from_numpy(np.concatenate([cut.rows(w, s) for w in range(cut.ways)])) for s in range(cut.slots)]


def pipeline_gradients(pipeline: InlineGraphPipeline) -> dict[str, Tensor]:
    """Return the gradients of the last epoch, by name, of the first way."""
    found = {}
    for rank in pipeline.ranks:
        if rank.way == 0:
            for name, parameter in rank.part.own:
                found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    return found


def assert_close(pipeline: InlineGraphPipeline, loss: float, plain: Plain, tolerance: float = 1e-10) -> None:
    assert abs(loss - plain.loss) < tolerance
    got = pipeline_gradients(pipeline)
    assert got.keys() == plain.gradients.keys()
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def epochs(given: Settings, data: GraphData, number: int = 3, **more: Any) -> tuple[InlineGraphPipeline, list[float]]:
    pipeline = InlineGraphPipeline(given, data, **more)
    return pipeline, [pipeline.epoch(epoch).loss for epoch in range(1, number + 1)]


def state(pipeline: InlineGraphPipeline) -> dict[str, dict[str, Tensor]]:
    return pipeline.export()


def same_states(left: InlineGraphPipeline, right: InlineGraphPipeline) -> None:
    a, b = state(left), state(right)
    assert a.keys() == b.keys()
    for tree in a:
        assert a[tree].keys() == b[tree].keys(), tree
        for name, tensor in a[tree].items():
            assert torch.equal(tensor, b[tree][name]), f"{tree} {name}"


def follow(pipeline: InlineGraphPipeline, plain: Detached, number: int, tolerance: float = 1e-10) -> None:
    """Train some epochs, and hold loss and gradients of each against a plain statement with the same weights."""
    given = pipeline.ranks[0].settings
    for epoch in range(1, number + 1):
        order = chunk_order(given.seed, epoch, given.slots, given.shuffle)
        weights = state(pipeline)["model"]
        with torch.no_grad():
            for name, parameter in plain.model.names.items():
                parameter.copy_(weights[name])
        loss = pipeline.epoch(epoch).loss
        assert_close(pipeline, loss, plain.epoch(epoch, order.tolist()), tolerance)


def pairs(*fast: str) -> Any:
    """Every model on every graph; those that are not named are slow."""
    every = [(graph, name) for name in MODELS for graph in GRAPHS]
    marks = {pair: () if f"{pair[0]} {pair[1]}" in fast else (pytest.mark.slow,) for pair in every}
    return pytest.mark.parametrize(
        ("graph", "name"), [pytest.param(*pair, marks=marks[pair], id=f"{pair[0]}-{pair[1]}") for pair in every]
    )


BOTH = pairs(
    "undirected gcn", "directed sage", "directed gcnii", "undirected resgcn", "directed gat", "directed pyg",
    "undirected asks-twice",
)  # fmt: skip
FEW = pairs("directed gcnii", "undirected gat")
