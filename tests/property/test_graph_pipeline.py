"""Random graphs, ways, chunks and stages: bytes are the formulas', to the byte; corrections are right in the mean."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.config.schema import Experiment
from orchestrator.graph_stages import divide, settings_of
from orchestrator.preparing import Prepared
from strategies.pipeline import Action, gpipe
from tests.parity import graph_emulation as emulation
from tests.parity.graph_emulation import Detached, Model, chunks_of, pipeline_gradients
from trainers import models
from trainers.data.graphs.base import GraphData
from trainers.graph.inline import InlineGraphPipeline
from trainers.graph.layers import Gcn, GraphLayer
from trainers.graph.settings import Settings

SMALL = {
    "gcn": {"name": "gcn", "layers": 3, "hidden": 5},
    "sage": {"name": "sage", "layers": 3, "hidden": 11},
    "gcnii": {"name": "gcnii", "layers": 2, "hidden": 5},
    "resgcn": {"name": "resgcn", "layers": 1, "hidden": 6},
    "gat": {"name": "gat", "layers": 2, "hidden": 3, "heads": 2},
    "asks-twice": {"target": "tests.parity.graph_emulation:asking_net"},
}


@st.composite
def runs(draw: st.DrawFn) -> tuple[Experiment, GraphData]:
    """An experiment on a graph of any shape that it fits."""
    ways, slots = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    vertices = draw(st.integers(max(ways * slots, 12), 40))
    data = emulation.directed(vertices, draw(st.integers(0, 120)), seed=draw(st.integers(0, 99)))
    section = dict(SMALL[draw(st.sampled_from(sorted(SMALL)))])
    dtype = draw(st.sampled_from(["float32", "float64"]))
    section |= {"dtype": dtype}
    if "target" not in section:
        section["dropout"] = draw(st.sampled_from([0.0, 0.5]))
    layers = emulation.num_layers(section)
    cut = draw(st.sampled_from(emulation.cuts(layers)))
    strategy = {
        "kind": "graph-pipeline", "stages": len(cut), "partition": list(cut), "ways": ways, "chunks": slots,
        "epochs": 2, "recompute": draw(st.booleans()), "refresh": draw(st.integers(0, 2)),
        "chunking": draw(st.sampled_from(["metis", "contiguous", "random"])),
    }  # fmt: skip
    data_section = {"name": "sbm"}  # in place of which `data` is used
    return Experiment(name="bytes", seed=3, data=data_section, model=section, strategy=strategy), data


@settings(max_examples=8, deadline=None)
@given(runs())
def test_counted_bytes_are_those_of_the_formulas_to_the_byte(run: tuple[Experiment, GraphData]) -> None:
    experiment, data = run
    model = models.build(
        experiment.model.model_dump(), input_shape=(data.num_features,), num_classes=data.num_classes, seed=0
    )
    stages = divide(Prepared(experiment, data, None, model))
    pipeline = InlineGraphPipeline(settings_of(experiment, stages.layers), data, cut=stages.cut)
    for epoch in (1, 2):
        result = pipeline.epoch(epoch)
        assert result.boundary_bytes == stages.epoch.boundary
        assert result.exchange_bytes == stages.epoch.exchange
        assert pipeline.epoch(epoch).exchange_bytes == result.exchange_bytes
        pipeline.evaluate(epoch)


# ------------------------------------------------------------------------------------- gradients over random orders


class Sums(GraphLayer):
    """Linear in its rows, so that only what crosses chunks is wrong."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        return graph.propagate(self.linear(x), "gcn")


def one_hop(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(Sums(input_shape[0], num_classes))


def three_hops(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(Sums(input_shape[0], 6), Gcn(6, 5), Gcn(5, num_classes))


def _mean_over_orders(target: str, correction: float, data: GraphData) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradient with perfect history, in the mean over all orders of four chunks, and the true one.

    Weights rest, so that after an epoch the history is what a fresh pass computes.
    """
    rests = {"name": "sgd", "lr": 0.0, "kwargs": {}}
    given = emulation.settings({"target": target}, slots=4, refresh=1, correction=correction, optimizer=rests)
    orders = [(0, 1, 2, 3)] * 4 + list(permutations(range(4)))  # four: history gets right layer by layer

    class Ordered(Settings):
        def actions(self, stage: int, epoch: int) -> list[Action]:
            order = orders[epoch - 1]
            return [action._replace(microbatch=order[action.microbatch]) for action in gpipe(1, 4)[0]]

    pipeline = InlineGraphPipeline(Ordered(*given), data)
    total: dict[str, Tensor] = {}
    for epoch in range(1, len(orders) + 1):
        pipeline.epoch(epoch)
        if epoch > 4:
            for name, gradient in pipeline_gradients(pipeline).items():
                total[name] = total.get(name, torch.zeros_like(gradient)) + gradient / 24
    return total, emulation.full(Model(given, data)).gradients


def _error(found: tuple[dict[str, Tensor], dict[str, Tensor]], name: str) -> float:
    mean, true = found
    return float((mean[name] - true[name]).norm() / true[name].norm())


def test_doubled_gradients_are_right_in_the_mean_over_one_hop_between_chunks_and_not_over_several() -> None:
    data = emulation.undirected()
    one = f"{__name__}:one_hop"
    assert _error(_mean_over_orders(one, 2.0, data), "0.linear.weight") < 1e-12
    assert _error(_mean_over_orders(one, 1.0, data), "0.linear.weight") > 0.05
    three = f"{__name__}:three_hops"
    doubled, plain = (_mean_over_orders(three, correction, data) for correction in (2.0, 1.0))
    hops = ["2.weight", "1.weight", "0.linear.weight"]
    assert _error(doubled, hops[0]) < 1e-12 or _error(doubled, hops[1]) < 1e-12  # one hop behind the loss
    assert 0.01 < _error(doubled, hops[2]) < _error(plain, hops[2])


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_chunks_of_any_graph_are_autograd_with_older_rows_detached(draws: st.DataObject) -> None:
    ways, slots = draws.draw(st.integers(1, 3)), draws.draw(st.integers(1, 4))
    vertices = draws.draw(st.integers(max(ways * slots, 12), 33))
    data = emulation.directed(vertices, draws.draw(st.integers(0, 140)), seed=draws.draw(st.integers(0, 99)))
    name = draws.draw(st.sampled_from(["sage", "gcnii", "gat", "asks-twice"]))
    refresh, correction = draws.draw(st.integers(0, 2)), draws.draw(st.sampled_from([1.0, 2.0]))
    cut = draws.draw(st.sampled_from(emulation.cuts(emulation.num_layers(dict(emulation.settings(name).model)))))
    made = emulation.settings(
        name, slots=slots, ways=ways, layers=cut, refresh=refresh, correction=correction,
        recompute=draws.draw(st.booleans()), optimizer={"name": "sgd", "lr": 0.0, "kwargs": {}},
    )  # fmt: skip
    pipeline = InlineGraphPipeline(made, data)
    plain = Detached(Model(made, data), chunks_of(pipeline.ranks[0].reach.layout), refresh, correction)
    from strategies.graph.order import chunk_order

    for epoch in (1, 2, 3):
        order = chunk_order(made.seed, epoch, slots, True)
        loss = pipeline.epoch(epoch).loss
        emulation.assert_close(pipeline, loss, plain.epoch(epoch, np.asarray(order).tolist()))
