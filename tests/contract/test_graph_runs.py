"""A graph pipeline is a function of its experiment: cut at any checkpoint, or with other stages, the bits are the same.

Also what is refused or told when something is wrong: settings of a resume, a user's layers, diverging losses, data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import orchestrator
from orchestrator import graph_stages
from orchestrator.checkpoints import CheckpointStore
from orchestrator.config import load_experiment
from orchestrator.engines.base import RunState, StepReport
from orchestrator.engines.gang import GangEngine
from orchestrator.engines.graph_course import GraphCourse
from orchestrator.errors import ConfigError, ResumeError, WorkerError
from orchestrator.interrupts import Interrupts
from orchestrator.preparing import Prepared, prepare
from orchestrator.run import resume_run
from tests.contract.federated_plays import same_tree
from trainers.graph.layers import Gcn, GraphLayer

EPOCHS = 5


def config(root: Path | None = None, **changes: Any) -> dict[str, Any]:
    """An experiment on a small graph; `changes` are fields of `strategy`, or sections beside it."""
    beside = {key: changes.pop(key) for key in ("data", "model", "evaluate", "checkpoint") if key in changes}
    return {
        "name": "graph-play",
        "seed": 4,
        "data": {"name": "sbm", "vertices": 60, "classes": 3, "features": 8, "degree": 6},
        "model": {"name": "gcnii", "layers": 2, "hidden": 6, "dropout": 0.3},
        "strategy": {
            "kind": "graph-pipeline", "stages": 2, "chunks": 3, "epochs": EPOCHS, "refresh": 2,
            "partition": [2, 2] if "stages" not in changes else "time", **changes,
        },
        "evaluate": {"every": 2},
        "checkpoint": {"every": 1},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        **({"storage": {"root": str(root)}} if root else {}),
        **beside,
    }  # fmt: skip


@lru_cache(maxsize=8)
def _prepared(text: str) -> tuple[Prepared, graph_stages.GraphStages]:
    prepared = prepare(load_experiment(yaml.safe_load(text)).experiment)
    return prepared, graph_stages.divide(prepared)


def engine(settings: Mapping[str, Any]) -> GangEngine:
    prepared, stages = _prepared(yaml.safe_dump(dict(settings)))
    return GangEngine(prepared, GraphCourse(prepared, stages), None, Interrupts(), lambda kind, fields: None)


def play(settings: Mapping[str, Any], cuts: Sequence[tuple[int, Mapping[str, Any]]] = ()) -> list[StepReport]:
    """Run an experiment; after each of `cuts` another engine goes on from a checkpoint, with other settings."""
    reports: list[StepReport] = []
    legs = [(end, then) for end, then in cuts]
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder, "checkpoints"), keep=1)
        state: RunState | None = None
        for end, following in (*legs, (10**6, settings)):
            runs = engine(settings)
            runs.start()
            for report in runs.steps(runs.initial_state() if state is None else state):
                reports.append(report)
                if report.state.step == end:
                    break
            store.save(reports[-1].state)
            state, settings = store.load(reports[-1].state.step), following
    return reports


def same(left: list[StepReport], right: list[StepReport]) -> None:
    """Insist that two plays are the same run, bit for bit, in figures and state."""
    figures = [
        {
            r.state.step: {k: v for k, v in r.values.items() if not k.startswith(("time/", "comm/boundary"))}
            for r in play
        }
        for play in (left, right)
    ]
    assert repr(figures[0]) == repr(figures[1])
    a, b = left[-1].state, right[-1].state
    assert a.step == b.step and a.model is not None and b.model is not None
    same_tree(a.model, b.model, "model")
    ours, theirs = ({name: dict(tree) for name, tree in each.server.items() if tree} for each in (a, b))
    assert ours.keys() == theirs.keys()
    for name, tree in ours.items():
        same_tree(tree, theirs[name], name)


CASES: dict[str, dict[str, Any]] = {
    "history": config(),
    "history-of-the-epoch-before": config(refresh=1, correction=1.0),
    "no-history": config(refresh=0, shuffle=False),
    "hybrid": config(ways=2, clip_norm=0.1),
    "ways-alone": config(stages=1, ways=3, chunks=1),
    "attention-recomputed": config(
        model={"name": "gat", "layers": 4, "hidden": 3, "heads": 2}, recompute=True, ways=2
    ),
    "batch-norm-and-momentum": config(
        model={"target": f"{__name__}:normed"}, optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9}
    ),
    "schedule": config(learning_rate={"name": "cosine", "warmup_steps": 2}, ways=2),
}  # fmt: skip


OTHERS = ([4], [1, 2, 1], [1, 1, 1, 1], [3, 1])


def with_stages(settings: dict[str, Any], cut: list[int]) -> dict[str, Any]:
    return {**settings, "strategy": {**settings["strategy"], "stages": len(cut), "partition": cut}}


@pytest.mark.parametrize("case", ["hybrid", "batch-norm-and-momentum"])
def test_a_run_that_is_cut_at_every_checkpoint_and_goes_on_with_other_stages_has_the_same_bits(case: str) -> None:
    settings = CASES[case]
    whole = play(settings)
    assert {name for name, tree in whole[-1].state.server.items() if tree} >= {"best", "selection"}
    same(whole, play(settings, [(at, with_stages(settings, OTHERS[at % 4])) for at in range(1, EPOCHS)]))


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_a_run_that_is_cut_anywhere_and_goes_on_with_other_stages_has_the_same_bits(case: str) -> None:
    settings = CASES[case]
    whole = play(settings)
    for at in range(1, EPOCHS):
        for cut in OTHERS:
            same(whole, play(settings, [(at, with_stages(settings, cut))]))


def test_the_best_weights_are_those_after_the_best_evaluation_also_across_a_cut() -> None:
    settings = config(evaluate={"every": 1}, optimizer={"name": "adam", "lr": 0.05})
    reports = play(settings, [(3, settings)])
    accuracies = {report.state.step: report.values["val/accuracy"] for report in reports}
    best = max(accuracies, key=lambda step: (accuracies[step], -step))
    assert 0 < best < EPOCHS, accuracies
    last = reports[-1]
    assert last.values["best/epoch"] == best and last.values["best/val_accuracy"] == accuracies[best]
    assert last.values["best/test_accuracy"] == next(r.values["test/accuracy"] for r in reports if r.state.step == best)
    same_tree(
        dict(last.state.server["best"]), dict(next(r.state.model for r in reports if r.state.step == best)), "best"
    )


def test_patience_ends_a_run_at_the_same_epoch_whether_cut_or_not() -> None:
    settings = config(patience=2, epochs=60, evaluate={"every": 1}, optimizer={"name": "sgd", "lr": 1e-9})
    whole = play(settings)
    assert whole[-1].state.step == 2 and whole[-1].values["best/epoch"] == 0
    same(whole, play(settings, [(1, settings)]))
    assert [report.state.step for report in play(settings, [(2, settings)])] == [0, 1, 2]


def test_a_run_ended_by_patience_keeps_its_last_state(tmp_path: Path) -> None:
    settings = config(
        tmp_path, patience=2, epochs=60, evaluate={"every": 1}, checkpoint={"every": 50},
        optimizer={"name": "sgd", "lr": 1e-9},
    )  # fmt: skip
    result = orchestrator.run(settings, quiet=True)
    assert (result.status, result.step) == ("FINISHED", 2)
    assert (result.run_dir / "checkpoints" / "step-000002").is_dir()
    again = resume_run(result.run_dir, quiet=True)
    assert (again.status, again.step) == ("FINISHED", 2)


def test_a_finished_run_is_taken_further_with_other_stages_and_keeps_its_chunks(tmp_path: Path) -> None:
    settings = config(tmp_path, epochs=3, chunks=None, checkpoint={"every": 2})
    short = orchestrator.run(settings, quiet=True)
    changes = ["strategy.epochs=5", "strategy.stages=3", "strategy.partition=time"]
    longer = resume_run(short.run_dir, overrides=changes, quiet=True)
    whole = play(config(epochs=5, chunks=None))
    assert longer.step == 5
    same_tree(longer.weights(), dict(whole[-1].state.model or {}), "model")


@pytest.mark.parametrize(
    "change", ["strategy.ways=2", "strategy.chunks=4", "strategy.refresh=3", "strategy.chunking=random", "seed=5"]
)
def test_a_resume_may_not_change_what_was_computed(tmp_path_factory: pytest.TempPathFactory, change: str) -> None:
    with pytest.raises(ResumeError, match="would change what was already computed") as caught:
        resume_run(_short(str(tmp_path_factory.getbasetemp())), overrides=[change], quiet=True)
    assert change in str(caught.value) and "strategy.stages" in str(caught.value)


@lru_cache(maxsize=1)
def _short(root: str) -> Path:
    return orchestrator.run(config(Path(root, "short"), epochs=1), quiet=True).run_dir


def test_more_epochs_are_refused_where_the_learning_rate_depends_on_them(tmp_path: Path) -> None:
    short = orchestrator.run(config(tmp_path, epochs=1, learning_rate={"name": "cosine"}), quiet=True)
    with pytest.raises(ResumeError, match=r"strategy\.epochs.*cosine"):
        resume_run(short.run_dir, overrides=["strategy.epochs=4"], quiet=True)


# ------------------------------------------------------------------------------------------------- what goes wrong


def normed(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(Gcn(input_shape[0], 6), nn.BatchNorm1d(6), nn.Dropout(0.2), Gcn(6, num_classes))


class Breaks(GraphLayer):
    """Raises once it has been called some times."""

    def __init__(self, width: int, calls: int) -> None:
        super().__init__()
        self.weight, self.left = nn.Parameter(torch.ones(width)), calls

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of patience")
        return graph.propagate(x, "mean") * self.weight


def breaking(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 5), Breaks(5, 10), nn.Linear(5, num_classes))


def wrong_width(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(Gcn(input_shape[0], 6), Gcn(7, num_classes))


class Explodes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x.detach() - x)


def exploding(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(Gcn(input_shape[0], num_classes), Explodes())


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        engine(config(**changes))
    return str(caught.value)


@pytest.mark.parametrize("ways", [1, 2])
def test_a_layer_that_raises_is_named_with_what_it_was_given(ways: int) -> None:
    settings = config(model={"target": f"{__name__}:breaking"}, partition=[1, 2], ways=ways)
    with pytest.raises(WorkerError, match=r"layer 1 \(1, Breaks\) was given \[\d+, 5\] float32 and raised .*patience"):
        play(settings)


def test_a_loss_that_is_not_finite_ends_the_run_and_says_what_to_do() -> None:
    with pytest.raises(WorkerError, match="diverged at epoch 1: loss nan") as caught:
        play(config(model={"target": f"{__name__}:exploding"}, partition=[1, 1]))
    assert "strategy.optimizer.lr" in str(caught.value)


def test_layers_that_do_not_fit_one_another_are_found_before_the_run() -> None:
    told = refused(model={"target": f"{__name__}:wrong_width"}, partition=[1, 1])
    assert "Gcn" in told and "[" in told and "6" in told


def test_more_stages_than_layers_and_more_chunks_than_vertices_are_refused() -> None:
    told = refused(stages=5)
    assert "strategy.stages" in told and "4 layers" in told
    told = refused(partition=[2, 3])
    assert "strategy.partition" in told and "4" in told
    told = refused(chunks=31, ways=2)
    assert "strategy.chunks" in told and "62" in told and "60 vertices" in told


def test_rows_and_models_of_rows_are_refused() -> None:
    assert "no edges" in refused(data={"name": "digits"})
    told = refused(model={"name": "cnn"})
    assert "model" in told and "cnn" in told
