"""Graph pipelines against themselves: bits with any stages, recomputed, resumed; histories, evaluation, misuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from strategies.graph import Graph
from tests.parity.graph_emulation import (
    ADAM,
    COSINE,
    FEW,
    MODELS,
    NETS,
    Asks,
    Model,
    cuts,
    directed,
    epochs,
    num_layers,
    pairs,
    pipeline_gradients,
    same_states,
    settings,
    state,
    undirected,
)
from trainers.data.graphs.base import GraphData
from trainers.graph.inline import InlineGraphPipeline
from trainers.graph.layers import Gcn, GraphLayer, run
from trainers.graph.rank import GraphRank
from trainers.graph.view import FullView
from trainers.pipeline.chunk import LayerFailed

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------- stages, recomputation: to the bit

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"slots": 4},
    "corrected-ways": {"slots": 2, "ways": 2, "correction": 2.0, "refresh": 1},
    "dropout-clipped-noisy-adam": {
        "slots": 3, "dropout": 0.4, "clip_norm": 0.05, "optimizer": ADAM, "learning_rate": COSINE, "refresh": 2,
        "gradient_noise": {"eta": 0.01, "gamma": 0.55},
    },
    "no-history-in-order": {"slots": 4, "refresh": 0, "shuffle": False, "dropout": 0.2},
    "one-chunk-many-ways": {"ways": 3, "dropout": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("option", list(OPTIONS))
@pytest.mark.parametrize("name", ["gcnii", pytest.param("gat", marks=pytest.mark.slow)])
def test_any_number_of_stages_and_recomputation_give_the_bits_of_one_stage(name: str, option: str) -> None:
    data, changes = undirected(), OPTIONS[option]
    layers = num_layers(dict(settings(name).model))
    one, losses = epochs(settings(name, **changes), data, 3)
    for cut, recompute in (((1, layers - 1), False), ((1,) * layers, True)):
        other, others = epochs(settings(name, **changes, layers=cut, recompute=recompute), data, 3)
        assert others == losses
        same_states(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("option", list(OPTIONS))
@pairs()
def test_all_cuts_into_stages_give_the_bits_of_one_stage(data: GraphData, name: str, option: str) -> None:
    changes = dict(OPTIONS[option])
    if "target" in MODELS[name]:
        changes.pop("dropout", None)
    one, losses = epochs(settings(name, **changes), data, 4)
    for cut in cuts(num_layers(dict(settings(name).model))):
        for recompute in (False, True):
            other, others = epochs(settings(name, **changes, layers=cut, recompute=recompute), data, 4)
            assert others == losses
            same_states(one, other)


def test_masks_of_dropout_are_the_same_in_the_second_pass_and_differ_between_ways_chunks_and_epochs() -> None:
    masks: dict[tuple[int, int, int], list[Tensor]] = {}
    given = settings({"target": f"{NETS}:asking_net"}, slots=3, ways=2, recompute=True)
    pipeline = InlineGraphPipeline(given, undirected())

    def drop(rank: GraphRank, x: Tensor) -> Tensor:
        mask = torch.nn.functional.dropout(torch.ones_like(x), 0.5)
        slot = rank.view._slot
        assert slot is not None
        masks.setdefault((epoch, rank.way, slot), []).append(mask)
        return mask * x

    for rank in pipeline.ranks:
        rank._chunk.layers[1].module.forward = partial(drop, rank)  # type: ignore[method-assign]
        rank._chunk._draws[1] = True
    for epoch in (1, 2):
        pipeline.epoch(epoch)
    assert len(masks) == 2 * 2 * 3
    assert all(torch.equal(*passes) for passes in masks.values())
    assert len({tuple(first[:5].flatten().tolist()) for first, _ in masks.values()}) == len(masks)


# ----------------------------------------------------------------------------------------------------- the history


@pytest.mark.parametrize(("name", "refresh"), [("gat", 1), ("gcn", 3)])
def test_the_history_moves_only_when_it_is_due_and_then_to_the_rows_of_that_epoch(name: str, refresh: int) -> None:
    given = settings(name, slots=3, ways=2, refresh=refresh)
    pipeline = InlineGraphPipeline(given, undirected())
    before: dict[str, Tensor] = {}
    for epoch in range(1, 8):
        pipeline.epoch(epoch)
        history = state(pipeline)["history"]
        assert len(history) >= 4
        rows = {
            f"{site.name}/{rank.way}": site.table.rows for rank in pipeline.ranks for site in rank.view._sites.values()
        }
        if epoch % refresh == 0:
            assert all(torch.equal(history[key], rows[key]) for key in history)
            assert all(bool(rows.abs().sum() > 0) for rows in history.values())
            assert not before or all(not torch.equal(history[key], before[key]) for key in history)
        elif before:
            assert all(torch.equal(history[key], before[key]) for key in history)
        else:
            assert all(not bool(rows.any()) for rows in history.values())
        before = history


def test_without_a_history_none_is_kept() -> None:
    pipeline, _ = epochs(settings("gcn", slots=3, refresh=0), undirected())
    assert not state(pipeline).get("history")
    pipeline, _ = epochs(settings("gcn", slots=1, refresh=2), undirected())
    assert not state(pipeline).get("history")


def test_no_gradient_reaches_the_history_and_gradients_begin_at_zero() -> None:
    data = undirected()
    given = settings("gcn", slots=3, refresh=1, optimizer={"name": "sgd", "lr": 0.0, "kwargs": {}})
    pipeline, _ = epochs(given, data, 2)
    for rank in pipeline.ranks:
        for site in rank.view._sites.values():
            assert not site.table.rows.requires_grad and site.table.rows.grad_fn is None
            site._gradients[:-1].fill_(
                torch.nan
            )  # what an epoch leaves is never read by the next; the last row is zeros
    result = pipeline.epoch(3)
    assert np.isfinite(result.loss)
    assert all(bool(g.isfinite().all()) for g in pipeline_gradients(pipeline).values())


class Skips(GraphLayer):
    """Adds the mean of neighbours, but for one chunk, for which it does not ask or asks and does not use it."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks, self.without = asks, -1

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        if graph._slot != self.without:
            return x + graph.propagate(x, "mean")
        return x + 0 * graph.propagate(x, "mean").detach() if self.asks else x


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("refresh", [0, 5])
def test_a_layer_left_out_for_a_chunk_leaves_nothing_of_an_epoch_before(asks: bool, refresh: int) -> None:
    optimizer = {"name": "sgd", "lr": 0.0, "kwargs": {}}
    given = settings("resgcn", slots=3, refresh=refresh, shuffle=False, optimizer=optimizer)
    found = []
    for epochs_before in (1, 0):
        pipeline, skips = InlineGraphPipeline(given, undirected()), Skips(asks)
        pipeline.ranks[0]._chunk.layers[2].module.forward = skips.forward  # type: ignore[method-assign]
        for _ in range(epochs_before):
            pipeline.epoch(1)
        skips.without = 1
        pipeline.epoch(2)
        found.append(pipeline_gradients(pipeline))
    one, other = found
    assert one and all(torch.equal(one[name], other[name]) for name in one)


# ----------------------------------------------------------------------------------------------------- evaluation


@FEW
def test_an_evaluation_is_the_full_graph_whatever_the_cut_and_moves_nothing(data: GraphData, name: str) -> None:
    dropout = {} if "target" in MODELS[name] else {"dropout": 0.5}
    model = Model(settings(name, **dropout), data)
    model.module.eval()
    view = FullView(Graph(np.asarray(data.indptr), np.asarray(data.indices)), dtype=torch.float64)
    with torch.no_grad():
        returned = run(model.layers, model.x, view)
    want = {}
    for part in ("train", "val", "test"):
        mask = torch.from_numpy(getattr(data, f"{part}_mask"))
        want[f"{part}/accuracy"] = float((returned.argmax(-1) == model.y)[mask].double().mean())
        want[f"{part}/loss"] = float(torch.nn.functional.cross_entropy(returned[mask], model.y[mask]))
    for changes in ({}, {"slots": 3, "stages": 2}, {"ways": 3, "slots": 2}):
        given = settings(name, **dropout, **changes, refresh=1, optimizer={"name": "sgd", "lr": 0.0, "kwargs": {}})
        first, later = InlineGraphPipeline(given, data), InlineGraphPipeline(given, data)
        got = first.evaluate(0)
        assert got == pytest.approx({k: want[k] for k in got if not k.startswith("best")} | best(got, want), abs=1e-12)
        for epoch in (1, 2):
            assert first.epoch(epoch) == pytest.approx(later.epoch(epoch), nan_ok=True, abs=0)
            before = state(first)["history"] if changes else {}
            assert first.evaluate(epoch)["val/loss"] == got["val/loss"]
            after = state(first)["history"] if changes else {}
            assert all(torch.equal(after[key], rows) for key, rows in before.items())


def best(got: dict[str, float], want: dict[str, float]) -> dict[str, float]:
    return {"best/epoch": 0.0, "best/val_accuracy": want["val/accuracy"], "best/test_accuracy": want["test/accuracy"]}


def test_an_evaluation_before_training_does_not_change_what_is_trained() -> None:
    class Drops(Asks):
        """Asks about its input where it is evaluated, and about other rows where it is trained."""

    def net(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Sequential(Drops(input_shape[0], 6), nn.Tanh(), Gcn(6, num_classes))

    globals()["dropping_net"] = net
    data, given = directed(), settings({"target": f"{__name__}:dropping_net"}, slots=2, ways=2, refresh=1)
    first, later = InlineGraphPipeline(given, data), InlineGraphPipeline(given, data)
    first.evaluate(0)
    for epoch in (1, 2):
        assert first.epoch(epoch).loss == later.epoch(epoch).loss
        assert first.evaluate(epoch)["val/loss"] == later.evaluate(epoch)["val/loss"]


def test_the_global_random_stream_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    given = settings("gcn", slots=3, ways=2, stages=2, dropout=0.5, recompute=True)
    pipeline, _ = epochs(given, undirected(), 2)
    pipeline.evaluate(2)
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("name", "refresh"),
    [("gcn", 2), pytest.param("gat", 1, marks=pytest.mark.slow), pytest.param("sage", 0, marks=pytest.mark.slow)],
)
def test_a_state_taken_up_by_other_stages_goes_on_with_the_same_bits(name: str, refresh: int) -> None:
    data = undirected()
    changes: dict[str, Any] = {"slots": 3, "ways": 2, "refresh": refresh, "optimizer": ADAM, "dropout": 0.3}
    whole, losses = epochs(settings(name, **changes), data, 5)
    for cut_at, layers in ((2, (1, 1, 1)), (3, (2, 1))):
        first, _ = epochs(settings(name, **changes), data, cut_at)
        second = InlineGraphPipeline(settings(name, **changes, layers=layers), data)
        second.restore(first.export())
        second.evaluate(cut_at)
        assert [second.epoch(epoch).loss for epoch in range(cut_at + 1, 6)] == losses[cut_at:]
        got = state(second)
        for tree, tensors in state(whole).items():
            if tree not in ("best", "selection"):
                assert all(torch.equal(got[tree][n], tensor) for n, tensor in tensors.items()), tree


# ---------------------------------------------------------------------------------------------------- misbehaviour


class Writes(GraphLayer):
    """Changes in place what it is given."""

    def __init__(self, in_width: int, out_width: int, where: str) -> None:
        super().__init__()
        self.linear, self.where = nn.Linear(in_width, out_width), where

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        if self.where == "input":
            x.mul_(2)
        return self.linear(graph.propagate(x, "mean").mul_(2 if self.where == "aggregate" else 1.0))


def writing(where: str, first: bool) -> Callable[..., nn.Module]:
    def net(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        width = input_shape[0]
        ahead = [] if first else [nn.Linear(width, width)]
        return nn.Sequential(*ahead, Writes(width, num_classes, where))

    return net


writes_input, writes_constant, writes_aggregate = (
    writing("input", True), writing("aggregate", True), writing("aggregate", False)
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "recompute"), [("writes_input", False), ("writes_constant", False), ("writes_aggregate", True)]
)
def test_a_layer_that_changes_in_place_what_is_handed_out_again_is_told(name: str, recompute: bool) -> None:
    given = settings({"target": f"{__name__}:{name}"}, slots=2, recompute=recompute)
    with pytest.raises(LayerFailed, match="changed in place"):
        pipeline = InlineGraphPipeline(given, undirected())
        for epoch in (1, 2):
            pipeline.epoch(epoch)


def test_a_layer_may_change_in_place_what_is_not_handed_out_again() -> None:
    given = settings({"target": f"{__name__}:writes_aggregate"}, slots=2)
    assert all(np.isfinite(epochs(given, undirected(), 2)[1]))
