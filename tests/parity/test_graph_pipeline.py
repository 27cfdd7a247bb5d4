"""A graph pipeline against plain statements (`graph_emulation`): every mode, every order of chunks, over epochs."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from strategies.graph import Graph, Layout
from strategies.pipeline import Action, gpipe
from tests.parity.graph_emulation import (
    ADAM,
    BOTH,
    COSINE,
    FEW,
    NETS,
    Authors,
    Detached,
    Model,
    assert_close,
    built,
    chunks_of,
    cuts,
    directed,
    epochs,
    follow,
    full,
    num_layers,
    pairs,
    settings,
    state,
    undirected,
)
from trainers.data.graphs.base import GraphData
from trainers.graph.inline import InlineGraphPipeline
from trainers.graph.layers import run
from trainers.graph.settings import Settings
from trainers.graph.view import FullView

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------------- one chunk: exact


@BOTH
def test_one_chunk_has_the_gradients_of_the_full_graph_for_some_cuts_into_stages_and_ways(
    data: GraphData, name: str
) -> None:
    plain = full(Model(settings(name), data))
    layers = num_layers(dict(settings(name).model))
    some = [(layers,), (1, layers - 1), (1,) * layers]
    for ways, cut in zip((1, 3, 4), some, strict=True):
        pipeline, (loss,) = epochs(settings(name, layers=cut, ways=ways), data, 1)
        assert_close(pipeline, loss, plain)


@pytest.mark.slow
@pairs()
@pytest.mark.parametrize("chunking", ["metis", "contiguous", "random"])
def test_one_chunk_has_the_gradients_of_the_full_graph_for_all_cuts_into_stages_and_ways(
    data: GraphData, name: str, chunking: str
) -> None:
    plain = full(Model(settings(name), data))
    for cut in cuts(num_layers(dict(settings(name).model))):
        for ways in (1, 2, 3, 4):
            pipeline, (loss,) = epochs(settings(name, layers=cut, ways=ways, chunking=chunking), data, 1)
            assert_close(pipeline, loss, plain)


def test_ways_that_only_send_or_only_receive_are_exact() -> None:
    for name in ("gcn", "gat", "asks-twice"):
        for turned in (False, True):
            data = one_way(turned)
            given = settings(name, ways=2, slots=3, chunking="contiguous", refresh=1, correction=2.0)
            pipeline = InlineGraphPipeline(given, data, cut=halves(data.num_vertices, 3))
            plain = Detached(Model(given, data), chunks_of(halves(data.num_vertices, 3)), 1, 2.0)
            follow(pipeline, plain, 2)


def one_way(turned: bool) -> GraphData:
    """A graph whose edges all lead from its first half to its second, or the other way, and within the first."""
    data = directed(40, 600, seed=4)
    targets = np.repeat(np.arange(40), np.diff(data.indptr))
    keep = (data.indices < 20) & ((targets >= 20) | (data.indices % 2 == 0))
    source, target = data.indices[keep], targets[keep]
    from strategies.graph import from_edges

    graph = from_edges(39 - source, 39 - target, 40) if turned else from_edges(source, target, 40)
    return data._replace(indptr=graph.indptr, indices=graph.indices)


def halves(num_vertices: int, slots: int) -> Layout:
    bounds = np.linspace(0, num_vertices, 2 * slots + 1).astype(np.int64)
    bounds[slots] = num_vertices // 2
    return Layout(np.arange(num_vertices), bounds, 2, slots)


# ------------------------------------------------------------------------------------- chunks: history is detached


@BOTH
def test_chunks_are_autograd_with_older_rows_detached_over_epochs(data: GraphData, name: str) -> None:
    for refresh in (0, 1, 2, 3):
        given = settings(name, slots=3, refresh=refresh, ways=1 + refresh % 2)
        pipeline = InlineGraphPipeline(given, data)
        plain = Detached(Model(given, data), chunks_of(pipeline.ranks[0].reach.layout), refresh, 1.0)
        follow(pipeline, plain, 2 + refresh)


@pytest.mark.parametrize("correction", [1.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_every_order_of_four_chunks_is_autograd_with_older_rows_detached(
    correction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, orders = directed(29, 90), list(permutations(range(4)))
    given = settings(mixed(), slots=4, refresh=1, correction=correction)

    def actions(self: Settings, stage: int, epoch: int) -> list[Action]:
        order = orders[(epoch - 1) % 24]
        return [action._replace(microbatch=order[action.microbatch]) for action in gpipe(1, 4)[0]]

    monkeypatch.setattr(Settings, "actions", actions)
    pipeline = InlineGraphPipeline(given, data)
    plain = Detached(Model(given, data), chunks_of(pipeline.ranks[0].reach.layout), 1, correction)
    for epoch, order in enumerate(orders, 1):
        weights = state(pipeline)["model"]
        with torch.no_grad():
            for name, parameter in plain.model.names.items():
                parameter.copy_(weights[name])
        assert_close(pipeline, pipeline.epoch(epoch).loss, plain.epoch(epoch, order))


def mixed() -> dict[str, Any]:
    return {"target": f"{NETS}:asking_net"}


@pytest.mark.parametrize("name", ["gcn", "sage", "gcnii", "resgcn"])
def test_corrections_are_the_authors_loop(name: str) -> None:
    for made, correction in ((directed, 2.0), (undirected, 2.0), (undirected, 1.5), (directed, 1.0)):
        data, given = made(), settings(name, slots=4, refresh=2, correction=correction)
        pipeline = InlineGraphPipeline(given, data)
        follow(pipeline, Authors(Model(given, data), chunks_of(pipeline.ranks[0].reach.layout), 2, correction), 3)


@FEW
def test_the_hybrid_is_one_process_whose_chunks_are_those_of_all_ways(data: GraphData, name: str) -> None:
    for correction in (1.0, 2.0):
        given = settings(name, slots=3, ways=3, stages=2, refresh=2, correction=correction)
        pipeline = InlineGraphPipeline(given, data)
        follow(pipeline, Detached(Model(given, data), chunks_of(pipeline.ranks[0].reach.layout), 2, correction), 3)


def test_the_two_emulations_agree() -> None:
    data = directed()
    given = settings("resgcn", slots=4)
    cut = InlineGraphPipeline(given, data).ranks[0].reach.layout
    both = [kind(Model(given, data), chunks_of(cut), 1, 2.0) for kind in (Detached, Authors)]
    for epoch in (1, 2):
        left, right = (each.epoch(epoch, [2, 0, 3, 1]) for each in both)
        assert abs(left.loss - right.loss) < 1e-12
        for name, gradient in left.gradients.items():
            torch.testing.assert_close(gradient, right.gradients[name], rtol=0, atol=1e-12)


# -------------------------------------------------------------------------------------------------- whole trainings


@pytest.mark.parametrize("ways", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_weights_after_epochs_of_adam_with_clipping_and_a_schedule_are_those_of_plain_torch(ways: int) -> None:
    data = directed()
    given = settings("sage", ways=ways, stages=2, optimizer=ADAM, learning_rate=COSINE, clip_norm=0.3, epochs=8)
    pipeline = InlineGraphPipeline(given, data)
    model = Model(given, data)
    optimizer = torch.optim.Adam(model.module.parameters(), lr=0.02)
    clipped = []
    for epoch in range(1, 9):
        loss = pipeline.epoch(epoch)
        plain = full(model)
        norm = float(sum(gradient.square().sum() for gradient in plain.gradients.values())) ** 0.5
        for name, parameter in model.names.items():
            parameter.grad = plain.gradients[name] * min(1.0, 0.3 / norm)
        assert abs(norm - loss.norm) < 1e-10 and abs(loss.loss - plain.loss) < 1e-10
        clipped.append(norm > 0.3)
        warm = epoch / 3 if epoch <= 2 else 1 - 0.9 * (1 - np.cos(np.pi * (epoch - 2) / 6)) / 2
        optimizer.param_groups[0]["lr"] = 0.02 * warm
        optimizer.step()
        model.module.zero_grad(set_to_none=True)
    assert any(clipped)
    for name, parameter in model.names.items():
        torch.testing.assert_close(state(pipeline)["model"][name], parameter.detach(), rtol=0, atol=1e-8)


def test_batch_normalisation_moves_its_statistics_once_an_epoch_by_those_of_all_vertices() -> None:
    data = undirected()
    section = {"target": f"{NETS}:normed_net"}
    exact, _ = epochs(settings(section), data, 1)
    plain = built(dict(settings(section).model), data)
    plain.train()
    view = FullView(Graph(data.indptr, data.indices), dtype=torch.float64)
    run(list(plain), torch.tensor(data.x, dtype=torch.float64), view)
    rounded = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(state(exact)["model"]["1.running_mean"], plain[1].running_mean, **rounded)
    torch.testing.assert_close(state(exact)["model"]["1.running_var"], plain[1].running_var, **rounded)
    for changes in ({"slots": 3}, {"ways": 3}, {"slots": 2, "ways": 2, "recompute": True, "stages": 2}):
        pipeline = InlineGraphPipeline(settings(section, **changes, refresh=0), data)
        pipeline.evaluate(0)
        assert not bool(state(pipeline)["model"]["1.running_mean"].any())
        pipeline.epoch(1)
        got = state(pipeline)
        assert int(got["counters"]["1.num_batches_tracked"]) == 1
        torch.testing.assert_close(got["model"]["1.running_mean"], plain[1].running_mean, **rounded)
        torch.testing.assert_close(got["model"]["1.running_var"], plain[1].running_var, **rounded)
