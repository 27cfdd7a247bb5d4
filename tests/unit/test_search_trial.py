"""One trial in this process: its reports, its ends, and how it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import load_experiment
from orchestrator.rundir import RunDirectory
from orchestrator.trial_run import INTERRUPTED, STOPPED, Report, Setting, Task, TrialRun, history, trial_path

LR = "strategy.client.optimizer.lr"


@pytest.fixture
def setting(tmp_path: Path) -> Callable[..., Setting]:
    for name in ("trials", "logs"):
        (tmp_path / name).mkdir()

    def make(decides: bool = True, rounds: int = 4, **changes: Any) -> Setting:
        raw = {
            "name": "trial",
            "data": {"name": "synthetic", "partition": {"kind": "iid", "clients": 4}},
            "model": {"name": "logistic"},
            "strategy": {"algorithm": {"name": "fedavg", "rounds": rounds}},
            "cluster": {"workers": 0},
            "tracking": {"enabled": False},
            "checkpoint": {"every": 2},
            **changes,
        }
        plain = load_experiment(raw).experiment.model_dump()
        return Setting(tmp_path, plain, "test/accuracy", "max", None, decides, Path.cwd(), {})

    return make


def reports(trial: TrialRun, limit: int = 100) -> list[Report]:
    found: list[Report] = []
    while len(found) < limit and not (found and found[-1].done):
        found.append(trial.next())
    return found


def directory(setting: Setting, number: int = 0) -> RunDirectory:
    return RunDirectory.open(trial_path(setting.sweep_dir, number))


def test_a_trial_reports_every_round_and_ends_when_its_run_has(setting: Callable[..., Setting]) -> None:
    told = reports(TrialRun(setting(), Task(0, {LR: 0.05})))
    assert [(report.step, report.done) for report in told] == [(1, False), (2, False), (3, False), (4, True)]
    assert [(report.step, report.value) for report in told] == history(directory(setting()), "test/accuracy")[1:]
    manifest = directory(setting()).manifest
    assert (manifest["status"], manifest["trial"]) == ("FINISHED", {"number": 0, "params": {LR: 0.05}})
    assert "run directory" in (setting().sweep_dir / "logs" / "trial-000.log").read_text()


def test_where_nobody_decides_a_trial_does_not_wait(setting: Callable[..., Setting]) -> None:
    trial = TrialRun(setting(decides=False), Task(0, {}))
    first = trial.next()
    assert trial._thread is not None
    trial._thread.join(60)
    assert directory(setting()).manifest["step"] == 4
    assert first.done or trial.next() == Report(4, directory(setting()).manifest["metrics"]["test/accuracy"], True)


def test_a_trial_that_the_search_stops_saves_its_round_and_is_finished(setting: Callable[..., Setting]) -> None:
    trial = TrialRun(setting(), Task(0, {}))
    assert reports(trial, 1)[0].step == 1
    assert trial.stop(STOPPED, 60)
    manifest = directory(setting()).manifest
    assert (manifest["status"], manifest["step"]) == ("FINISHED", 1)
    assert (trial_path(setting().sweep_dir, 0) / "checkpoints" / "step-000001").is_dir()


def test_a_trial_of_an_interrupted_sweep_is_killed_and_goes_on_with_the_same_values(
    setting: Callable[..., Setting],
) -> None:
    whole = reports(TrialRun(setting(), Task(1, {LR: 0.05})))
    trial = TrialRun(setting(), Task(0, {LR: 0.05}))
    reports(trial, 3)
    assert trial.stop(INTERRUPTED, 60)
    manifest = directory(setting()).manifest
    assert (manifest["status"], manifest["step"]) == ("KILLED", 3)

    again = reports(TrialRun(setting(), Task(0, {LR: 0.05})))
    assert again == whole, "it tells again what it had reached, then goes on"
    assert history(directory(setting()), "test/accuracy") == history(directory(setting(), 1), "test/accuracy")


def test_a_trial_can_be_stopped_at_what_it_tells_again(setting: Callable[..., Setting]) -> None:
    trial = TrialRun(setting(), Task(0, {}))
    reports(trial, 3)
    trial.stop(INTERRUPTED, 60)
    again = TrialRun(setting(), Task(0, {}))
    assert reports(again, 1)[0].step == 1
    assert again.stop(STOPPED, 60)
    manifest = directory(setting()).manifest
    assert (manifest["status"], manifest["step"]) == ("FINISHED", 1)


def test_a_trial_of_a_population_ends_with_its_interval_and_goes_on_with_the_next(
    setting: Callable[..., Setting],
) -> None:
    quiet = setting(decides=False)
    assert reports(TrialRun(quiet, Task(0, {}, until=2)))[-1].step == 2
    assert directory(quiet).manifest["step"] == 2
    assert reports(TrialRun(quiet, Task(0, {}, until=4)))[-1].step == 4
    assert [step for step, _ in history(directory(quiet), "test/accuracy")] == [0, 1, 2, 3, 4]

    begin = trial_path(quiet.sweep_dir, 0) / "checkpoints" / "step-000002"
    assert reports(TrialRun(quiet, Task(1, {LR: 0.01}, str(begin), 4)))[-1].step == 4
    assert [step for step, _ in history(directory(quiet, 1), "test/accuracy")] == [3, 4]
    assert directory(quiet, 1).manifest["trial"]["start_from"] == str(begin)


def test_what_goes_wrong_in_a_trial_is_a_report_with_the_reason(setting: Callable[..., Setting]) -> None:
    (report,) = reports(TrialRun(setting(), Task(0, {LR: 1e38})))
    assert report.done and report.value is None
    assert "NotFinite" in report.error and "round 1" in report.error
    assert directory(setting()).manifest["status"] == "FAILED"
    (refused,) = reports(TrialRun(setting(), Task(1, {LR: "fast"})))
    assert LR in refused.error and "fast" in refused.error
    assert not trial_path(setting().sweep_dir, 1).exists()


def test_history_takes_the_last_value_of_a_round(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "x", "", {})
    for value in (0.1, 0.2):
        run.log(1, 0.0, 0.0, {"test/accuracy": value, "test/loss": 9.0})
    run.log(2, 0.0, 0.0, {"test/accuracy": math.nan})
    assert history(run, "test/accuracy", 1) == [(1, 0.2)]
    assert [step for step, _ in history(run, "test/accuracy")] == [1, 2]
