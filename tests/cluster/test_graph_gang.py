"""Graph pipelines on a gang: the bits of one process, also when a rank dies in the middle of an exchange."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator
from orchestrator.life import Trial
from orchestrator.run import resume_run
from orchestrator.rundir import RunDirectory
from tests.cluster.drivers import start_driver, wait_for_step
from trainers.graph.attention import Gat
from trainers.graph.layers import Gcn, GraphLayer, Sage


def config(root: Path, *, workers: int = 0, address: str = "local", **changes: Any) -> dict[str, Any]:
    model = changes.pop("model", {"name": "gcnii", "layers": 2, "hidden": 8, "dropout": 0.3})
    return {
        "name": "graph-gang",
        "seed": 6,
        "data": {"name": "sbm", "vertices": 120, "classes": 3, "features": 12, "degree": 6},
        "model": model,
        "strategy": {
            "kind": "graph-pipeline", "stages": 2, "chunks": 3, "epochs": 6, "refresh": 2, "clip_norm": 0.5,
            **changes,
        },
        "evaluate": {"every": 3},
        "checkpoint": {"every": 4},
        "cluster": {"workers": workers, "address": address, "resources_per_worker": {"CPU": 0.5}},
        "tracking": {"enabled": False},
        "storage": {"root": str(root)},
    }  # fmt: skip


def same(a: Any, b: Any) -> None:
    """Insist that two runs left the same weights and figures, bit for bit."""
    left, right = a.weights(), b.weights()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    figures = [
        [
            (r["step"], f"{r['scope']}/{r['name']}", r["value"])
            for r in run.history().to_pylist()
            if r["scope"] != "time"
        ]
        for run in (a, b)
    ]
    assert figures[0] == figures[1]
    assert {name for _, name, _ in figures[0]} >= {"train/loss", "val/accuracy", "comm/exchange_bytes"}


def mixed_net(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Attention, batch normalisation, dropout, a mean and a normalised sum."""
    width = input_shape[0]
    return nn.Sequential(Gat(width, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), Sage(6, 6), nn.ELU(), Gcn(6, num_classes))


MIXED = {"target": f"{__name__}:mixed_net"}


class Dies(GraphLayer):
    """Ends one rank's process outright in its eleventh forward, once, when neighbours wait for its rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.ones(width)), 0

    def forward(self, x: torch.Tensor, graph: Any) -> torch.Tensor:
        self.calls += self.training and isinstance(getattr(graph, "_slot", None), int)
        folder = os.environ.get(FOLDER)
        if folder and self.calls == 11 and graph.reach.way == 1 and not Path(folder, "dead").exists():
            Path(folder, "dead").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return graph.propagate(x * self.scale, "mean")


FOLDER = "GRAPH_GANG_TEST_FOLDER"


def dying_net(input_shape: tuple[int, ...], num_classes: int, folder: str = "") -> nn.Module:
    if folder:
        os.environ[FOLDER] = folder
    return nn.Sequential(nn.Linear(input_shape[0], 6), Dies(6), nn.Tanh(), Sage(6, num_classes))


# --------------------------------------------------------------------------------------------------- to the bit


@pytest.mark.ray
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"stages": 2, "correction": 2.0, "recompute": True, "model": MIXED}, id="stages"),
        pytest.param({"stages": 1, "ways": 2, "chunks": 1}, id="ways", marks=pytest.mark.slow),
        pytest.param(
            {"stages": 2, "ways": 2, "correction": 2.0, "recompute": True, "model": MIXED},
            id="hybrid",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_gang_gives_the_bits_of_one_process(tmp_path: Path, shape: dict[str, Any], local_ray: str) -> None:
    ranks = shape["stages"] * shape.get("ways", 1)
    here = orchestrator.run(config(tmp_path / "a", **shape), quiet=True)
    there = orchestrator.run(config(tmp_path / "b", workers=ranks, address=local_ray, **shape), quiet=True)
    same(here, there)


# --------------------------------------------------------------------------------------------------------- losses


@pytest.mark.ray
def test_a_rank_killed_in_the_middle_of_an_exchange_is_named_and_the_run_ends_with_the_same_bits(
    tmp_path: Path, local_ray: str
) -> None:
    def model(folder: Path | None) -> dict[str, Any]:
        kwargs = {"folder": str(folder)} if folder else {}
        return {"target": f"{__name__}:dying_net", "kwargs": kwargs}

    shape = {"stages": 1, "ways": 2, "chunks": 2, "epochs": 9}
    whole = orchestrator.run(config(tmp_path / "a", **shape, model=model(None)), quiet=True)
    folder = tmp_path / "once"
    folder.mkdir()
    try:
        settings = config(tmp_path / "b", **shape, model=model(folder), workers=2, address=local_ray)
        result = orchestrator.run(settings, quiet=True)
    finally:
        os.environ.pop(FOLDER, None)
    same(whole, result)
    events = list(RunDirectory.open(result.run_dir).events())
    (lost,) = [event for event in events if event["kind"] == "worker_lost"]
    (restart,) = [event for event in events if event["kind"] == "gang_restarted"]
    assert lost["pid"] == int((folder / "dead").read_text())
    assert lost["worker"] == restart["worker"] == "rank 1" and restart["from_step"] == 4
    assert "killed" in restart["reason"] and "Layer" not in restart["reason"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 3])
def test_a_rank_of_a_hybrid_killed_outright_is_started_again_and_ends_with_the_same_bits(
    tmp_path: Path, victim: int, local_ray: str
) -> None:
    def kill_one(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == 6 and not killed:
            pids = {e["worker"]: e["pid"] for e in directory.events() if e["kind"] == "worker_started"}
            killed.append(pids[f"rank {victim}"])
            os.kill(killed[0], signal.SIGKILL)
        return False

    killed: list[int] = []
    shape = {"stages": 2, "ways": 2, "epochs": 60}
    whole = orchestrator.run(config(tmp_path / "a", **shape), quiet=True)
    settings = config(tmp_path / "b", **shape, workers=4, address=local_ray)
    result = orchestrator.run(settings, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=kill_one))
    same(whole, result)
    (restart,) = [e for e in RunDirectory.open(result.run_dir).events() if e["kind"] == "gang_restarted"]
    assert restart["worker"] == f"rank {victim}" and restart["from_step"] % 4 == 0 and restart["from_step"] >= 4


# ------------------------------------------------------------------------------------------------- ending it early


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_stops_a_gang_with_its_state(tmp_path: Path, local_ray: str) -> None:
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 6)
    shape = {"stages": 1, "ways": 2, "chunks": 2}
    settings = config(tmp_path, **shape, epochs=4000, workers=2, address=local_ray)
    result = orchestrator.run(settings, quiet=True, trial=trial)
    assert result.status == "STOPPED" and 6 <= result.step < 4000
    assert (result.run_dir / "checkpoints" / f"step-{result.step:06d}" / "checkpoint.json").is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_a_gang_ends_when_patience_does_as_one_process_does(tmp_path: Path, local_ray: str) -> None:
    shape = {"ways": 1, "epochs": 4000, "patience": 3, "optimizer": {"name": "sgd", "lr": 1e-9}}
    here = orchestrator.run(config(tmp_path / "a", **shape), quiet=True)
    there = orchestrator.run(config(tmp_path / "b", **shape, workers=2, address=local_ray), quiet=True)
    assert here.step == there.step == 9
    same(here, there)


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_that_is_interrupted_resumes_with_another_number_of_stages(tmp_path: Path) -> None:
    settings = config(tmp_path / "runs", epochs=3000, workers=2)
    process = start_driver(tmp_path, settings)
    directory = wait_for_step(tmp_path / "runs", 9, process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert f"orchestrator resume {directory.path}" in output
    manifest = RunDirectory.open(directory.path).manifest
    assert manifest["status"] == "KILLED"
    last = manifest["step"] + 5
    changes = [f"strategy.epochs={last}", "strategy.stages=3", "cluster.workers=0"]
    got = resume_run(directory.path, overrides=changes, quiet=True)
    want = orchestrator.run(config(tmp_path / "whole", epochs=last), quiet=True)
    assert all(torch.equal(got.weights()[name], tensor) for name, tensor in want.weights().items())
