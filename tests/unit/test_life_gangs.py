"""When the state of a gang in this process is copied, and what is saved of a run that is stopped between."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.life import RunInterrupted, Trial
from orchestrator.run import resume_run
from orchestrator.rundir import RunDirectory
from trainers.graph.inline import InlineGraphPipeline


def config(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "here",
        "data": {"name": "sbm", "vertices": 60, "classes": 3, "features": 6, "degree": 5},
        "model": {"name": "gcn", "layers": 2, "hidden": 4, "dropout": 0.3},
        "strategy": {"kind": "graph-pipeline", "chunks": 2, "epochs": 8, "refresh": 2, "partition": [1, 1]},
        "evaluate": {"every": 2},
        "checkpoint": {"every": 3},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        "storage": {"root": str(root)},
        **changes,
    }


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At which epochs the whole state has been copied."""
    reached, found = [0], []
    step, export = InlineGraphPipeline.step, InlineGraphPipeline.export

    def stepping(ranks: InlineGraphPipeline, number: int) -> Any:
        reached.append(number)
        return step(ranks, number)

    def exporting(ranks: InlineGraphPipeline) -> Any:
        found.append(reached[-1])
        return export(ranks)

    monkeypatch.setattr(InlineGraphPipeline, "step", stepping)
    monkeypatch.setattr(InlineGraphPipeline, "export", exporting)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return orchestrator.run(config(tmp_path_factory.mktemp("whole")), quiet=True)


def same(left: Any, right: Any) -> None:
    """Insist that two runs left the same weights and figures, bit for bit."""
    weights = [run.weights() for run in (left, right)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    rows = [[r for r in run.history().to_pylist() if r["scope"] != "time"] for run in (left, right)]
    told = [[(r["step"], r["scope"], r["name"], r["value"]) for r in each] for each in rows]
    assert told[0] == told[1] and {step for step, *_ in told[0]} == set(range(9))


def test_a_state_is_copied_for_checkpoints_and_the_end_alone(tmp_path: Path, copied: list[int]) -> None:
    assert orchestrator.run(config(tmp_path), quiet=True).step == 8
    assert copied == [3, 6, 8]


def test_a_search_that_stops_a_run_keeps_the_epoch_that_it_saw_last(
    tmp_path: Path, copied: list[int], whole: Any
) -> None:
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 4)
    stopped = orchestrator.run(config(tmp_path), quiet=True, trial=trial)
    assert (stopped.status, stopped.step, copied) == ("STOPPED", 4, [3, 4])
    assert len(stopped.weights()) == len(whole.weights())
    same(resume_run(stopped.run_dir, quiet=True), whole)


@pytest.mark.parametrize("times", [1, 2])
def test_an_interruption_within_an_epoch_waits_for_its_end_and_a_second_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any, times: int
) -> None:
    step = InlineGraphPipeline.step

    def interrupted(ranks: InlineGraphPipeline, number: int) -> Any:
        for _ in range(times if number == 5 else 0):
            signal.raise_signal(signal.SIGINT)
        return step(ranks, number)

    monkeypatch.setattr(InlineGraphPipeline, "step", interrupted)
    with pytest.raises(RunInterrupted) as stopped:
        orchestrator.run(config(tmp_path), quiet=True)
    monkeypatch.setattr(InlineGraphPipeline, "step", step)
    assert stopped.value.step == (5 if times == 1 else 3), "in the middle of an epoch there is no state to be saved"
    assert RunDirectory.open(stopped.value.run_dir).manifest["status"] == "KILLED"
    same(resume_run(stopped.value.run_dir, quiet=True), whole)


def test_an_interruption_while_an_epoch_is_recorded_saves_it(tmp_path: Path, whole: Any) -> None:
    def interrupts(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return False

    with pytest.raises(RunInterrupted) as stopped:
        orchestrator.run(config(tmp_path), quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=interrupts))
    assert stopped.value.step == 5
    same(resume_run(stopped.value.run_dir, quiet=True), whole)
