"""Searches whose trials are real runs in Ray Tune: what they leave, what kills and failures do to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import orchestrator
from orchestrator.config import format_override, load_experiment
from orchestrator.rundir import RunDirectory, find_runs
from orchestrator.search_space import draw
from orchestrator.sweep import trials as trials_of
from orchestrator.trial_run import history

ROOT = Path(__file__).parents[2]
LR, EPOCHS = "strategy.client.optimizer.lr", "strategy.client.epochs"
pytestmark = pytest.mark.ray


def config(root: Path, algorithm: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    search = {
        "space": {LR: {"loguniform": [0.003, 1.0]}, EPOCHS: {"choice": [1, 2]}},
        "algorithm": algorithm or {"name": "random"},
        "trials": 2,
        "concurrent": 2,
        **changes.pop("search", {}),
    }
    return {
        "name": "search",
        "seed": 7,
        "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 10, "alpha": 0.5}},
        "model": {"name": "mlp", "hidden": [16]},
        "strategy": {
            "algorithm": {"name": "fedavg", "rounds": changes.pop("rounds", 3), "cohort": 4},
            "client": {"epochs": 1, "batch_size": 20, "optimizer": {"name": "sgd", "lr": 0.1}},
        },
        "cluster": {"workers": 0, "resources_per_worker": {"CPU": 1}, **changes.pop("cluster", {})},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 1},
        "storage": {"root": str(root)},
        "search": search,
        **changes,
    }


def alone(root: Path, settings: dict[str, Any], params: dict[str, Any]) -> orchestrator.RunResult:
    """The run that a trial should have been, in this process."""
    settings = {**settings, "search": None, "storage": {"root": str(root)}}
    settings["cluster"] = {**settings["cluster"], "workers": 0}
    return orchestrator.run(settings, overrides=[format_override(*item) for item in params.items()], quiet=True)


def curve(run_dir: Path) -> list[tuple[int, float]]:
    return history(RunDirectory.open(run_dir), "test/accuracy")


def kinds(run_dir: Path) -> list[str]:
    return [event["kind"] for event in RunDirectory.open(run_dir).events()]


@pytest.fixture(autouse=True)
def no_place_and_no_process_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does: on the shared cluster no placement group and no actor stays, in the environment nothing."""
    environment = ray_tunes_environment()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert ray_tunes_environment() == environment
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    if "local_ray" not in request.fixturenames:
        return
    from ray.util import placement_group_table

    assert [group for group in placement_group_table().values() if group["state"] != "REMOVED"] == []
    deadline = time.monotonic() + 20
    while busy := trial_processes():
        assert time.monotonic() < deadline, f"trials left: {busy}"
        time.sleep(0.1)


def ray_tunes_environment() -> dict[str, str]:
    prefixes = ("TUNE_", "RAY_AIR_", "RAY_CHDIR", "RAY_TRAIN_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def trial_processes() -> list[str]:
    """Ray's names for this process's workers that are actors of a trial."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and "IDLE" not in title and "Agent" not in title:
            found.append(title.strip())
    return found


def test_a_trial_is_the_run_that_its_values_make_and_the_best_can_be_repeated(tmp_path: Path, local_ray: str) -> None:
    settings = config(tmp_path / "sweeps", cluster={"workers": 1})
    result = orchestrator.tune(settings, quiet=True)
    expected = draw(load_experiment(settings).experiment.search, 7)
    assert [dict(trial.params) for trial in result.trials] == expected
    assert [trial.status for trial in result.trials] == ["FINISHED"] * 2
    for trial in result.trials:
        assert curve(trial.run_dir) == curve(alone(tmp_path / "alone", settings, dict(trial.params)).run_dir)
        assert trial.run_dir == result.sweep_dir / "trials" / f"{trial.number:03d}"
    assert result.best is not None
    assert result.best.value == max(trial.value or 0 for trial in result.trials)

    best = load_experiment(result.best_config, [format_override("storage.root", str(tmp_path / "best"))]).experiment
    assert best.search is None and best.name == "search-best"
    repeated = orchestrator.run(best, quiet=True)
    assert repeated.metrics["test/accuracy"] == result.best.value
    header = result.best_config.read_text().splitlines()[0]
    assert f"Trial {result.best.number} of" in header and repr(result.best.value) in header

    sweep = RunDirectory.open(result.sweep_dir).manifest
    assert (sweep["kind"], sweep["status"]) == ("sweep", "FINISHED")
    assert sweep["metrics"] == {"test/accuracy": result.best.value}
    assert {"config.resolved.yaml", "manifest.json", "events.jsonl", "report.html", "best.yaml", "trials", "ray"} <= {
        path.name for path in result.sweep_dir.iterdir()
    }
    assert "trial 1" in (result.sweep_dir / "report.html").read_text()


def test_asha_stops_poor_trials_and_their_directories_say_so(tmp_path: Path, local_ray: str) -> None:
    settings = config(
        tmp_path,
        {"name": "asha", "grace_rounds": 1, "reduction_factor": 2},
        rounds=5,
        search={"space": {LR: {"grid": [0.3, 0.0001, 0.0002]}}, "concurrent": 1},
    )
    result = orchestrator.tune(settings, quiet=True)
    assert (result.trials[0].status, result.trials[0].step) == ("FINISHED", 5)
    assert {(trial.status, trial.step) for trial in result.trials[1:]} == {("STOPPED", 1)}
    for trial in result.trials:
        manifest = RunDirectory.open(trial.run_dir).manifest
        assert manifest["status"] == "FINISHED" and manifest["step"] == trial.step
        assert (trial.run_dir / "report.html").is_file()
        assert (trial.run_dir / "checkpoints" / f"step-{trial.step:06d}").is_dir()
    assert result.best is not None and result.best.number == 0


@pytest.mark.slow
def test_a_population_copies_its_best_and_every_copy_is_a_trial_of_its_own(tmp_path: Path, local_ray: str) -> None:
    settings = config(
        tmp_path,
        {"name": "pbt", "interval_rounds": 2, "quantile": 0.5},
        rounds=4,
        search={"space": {LR: {"loguniform": [0.0001, 0.5]}}},
    )
    result = orchestrator.tune(settings, quiet=True)
    first, second, copy = result.trials
    good, poor = (first, second) if curve(first.run_dir)[2][1] > curve(second.run_dir)[2][1] else (second, first)
    assert (good.status, good.step) == ("FINISHED", 4)
    assert (poor.status, poor.step) == ("STOPPED", 2)
    assert (copy.status, copy.step) == ("FINISHED", 4)
    assert copy.params != good.params
    assert [step for step, _ in curve(copy.run_dir)] == [3, 4]
    begin = RunDirectory.open(copy.run_dir).manifest["trial"]["start_from"]
    assert begin == str(good.run_dir / "checkpoints" / "step-000002")
    replaced = [event for event in RunDirectory.open(result.sweep_dir).events() if event["kind"] == "trial_replaced"]
    assert [(event["trial"], event["by"], event["donor"]) for event in replaced] == [(poor.number, 2, good.number)]

    from orchestrator.life import Trial

    again = Trial(tmp_path / "again", 2, copy.params, start_from=begin)
    plain = {**settings, "search": None}
    overrides = [format_override(*item) for item in copy.params.items()]
    assert curve(orchestrator.run(plain, overrides=overrides, quiet=True, trial=again).run_dir) == curve(copy.run_dir)


def test_a_trial_that_fails_is_told_once_and_the_sweep_goes_on(
    tmp_path: Path, local_ray: str, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path, rounds=2, search={"space": {LR: {"grid": [1e30, 2e30, 0.1]}}, "concurrent": 1})
    result = orchestrator.tune(settings, quiet=True)
    assert [trial.status for trial in result.trials] == ["FAILED", "FAILED", "FINISHED"]
    assert [trial.number for trial in result.failed] == [0, 1]
    assert result.best is not None and result.best.number == 2
    told = capfd.readouterr().err
    assert told.count("failed:") == 1 and "NotFinite" in told and "round 1" in told
    assert RunDirectory.open(result.trials[0].run_dir).manifest["error"]["type"] == "WorkerError"


def test_a_search_of_which_every_trial_fails_is_an_error(tmp_path: Path, local_ray: str) -> None:
    settings = config(tmp_path, rounds=2, search={"space": {LR: {"grid": [1e30]}}})
    with pytest.raises(
        orchestrator.WorkerError, match=r"all 1 trials failed(.|\n)*NotFinite(.|\n)*orchestrator resume"
    ):
        orchestrator.tune(settings, quiet=True)
    assert find_runs(tmp_path)[0].manifest["status"] == "FAILED"


def test_a_trial_too_large_for_the_cluster_is_refused_before_anything_is_made(tmp_path: Path, local_ray: str) -> None:
    settings = config(tmp_path / "runs", cluster={"workers": 3, "resources_per_worker": {"CPU": 2}})
    with pytest.raises(orchestrator.PlacementError, match=r"not even one trial fits(.|\n)*short of 2 CPU"):
        orchestrator.tune(settings, quiet=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_a_sweep_that_ended_can_be_given_more_trials(tmp_path: Path, local_ray: str, algorithm: str) -> None:
    if algorithm == "optuna":
        pytest.importorskip("optuna")
    settings = config(tmp_path, {"name": algorithm}, rounds=1)
    first = orchestrator.tune(settings, quiet=True)
    more = orchestrator.tune(resume=first.sweep_dir, overrides=["search.trials=4"], quiet=True)
    assert [dict(trial.params) for trial in more.trials[:2]] == [dict(trial.params) for trial in first.trials]
    assert len({json.dumps(dict(trial.params)) for trial in more.trials}) == 4
    assert all(kinds(trial.run_dir).count("run_started") == 1 for trial in more.trials)
    assert all(0.003 <= trial.params[LR] <= 1 and trial.params[EPOCHS] in (1, 2) for trial in more.trials)
    events = [event["trial"] for event in RunDirectory.open(first.sweep_dir).events() if event["kind"] == "trial_ended"]
    assert sorted(events) == [0, 1, 2, 3]
    with pytest.raises(orchestrator.ResumeError, match=r"seed=9 would change"):
        orchestrator.tune(resume=first.sweep_dir, overrides=["seed=9"])


@pytest.mark.slow
def test_a_population_killed_outright_decides_as_if_it_had_not_been(tmp_path: Path, local_ray: str) -> None:
    algorithm = {"name": "pbt", "interval_rounds": 15, "quantile": 0.5}
    search = {"space": {LR: {"loguniform": [0.0001, 0.5]}}, "trials": 2}
    whole = orchestrator.tune(config(tmp_path / "a", algorithm, rounds=45, search=search), quiet=True)
    process = start(tmp_path, config(tmp_path / "b", algorithm, rounds=45, search=search))
    directory = wait_for_trial(tmp_path / "b", 2, 18, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert directory.manifest["status"] == "RUNNING"

    resumed = orchestrator.tune(resume=directory.path, quiet=True)
    assert len(resumed.trials) == 4
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]
    assert [curve(trial.run_dir) for trial in resumed.trials] == [curve(trial.run_dir) for trial in whole.trials]
    assert [(t.status, t.step) for t in resumed.trials] == [(t.status, t.step) for t in whole.trials]


@pytest.mark.slow
def test_asha_still_knows_trials_that_ended_before_a_resume(tmp_path: Path, local_ray: str) -> None:
    settings = config(tmp_path, {"name": "asha", "grace_rounds": 1, "reduction_factor": 2}, search={"concurrent": 1})
    first = orchestrator.tune(settings, quiet=True)
    assert [(trial.status, trial.step) for trial in first.trials] == [("FINISHED", 3), ("STOPPED", 1)]
    third = orchestrator.tune(resume=first.sweep_dir, overrides=["search.trials=3"], quiet=True).trials[2]
    assert third.params[LR] < 0.01
    assert (third.status, third.step) == ("STOPPED", 1), "the first to report is never stopped; it was not the first"


def test_trials_that_get_no_place_in_time_say_so(tmp_path: Path, local_ray: str) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([{"CPU": 4}])
    assert group.wait(20)
    try:
        settings = config(tmp_path, cluster={"start_timeout_s": 2.0})
        with pytest.raises(orchestrator.PlacementError, match=r"trial 0 got no place within 2 s.*'CPU': 1"):
            orchestrator.tune(settings, quiet=True)
    finally:
        remove_placement_group(group)
    assert find_runs(tmp_path)[0].manifest["status"] == "FAILED"
    assert ray.is_initialized()


def test_an_experiment_without_a_search_is_refused(tmp_path: Path) -> None:
    settings = {**config(tmp_path / "runs"), "search": None}
    with pytest.raises(orchestrator.ConfigError, match="nothing to vary"):
        orchestrator.tune(settings)
    assert not (tmp_path / "runs").exists()


def test_the_sweep_is_an_mlflow_run_and_its_trials_are_its_children(tmp_path: Path, local_ray: str) -> None:
    settings = config(tmp_path, search={"space": {LR: {"grid": [0.1, 0.0001]}}}, tracking={"enabled": True})
    result = orchestrator.tune(settings, quiet=True)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("search")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {result.sweep_dir.name, "000", "001"}
    parent = runs[result.sweep_dir.name]
    assert result.best is not None
    assert parent.data.metrics == {"test/accuracy": pytest.approx(result.best.value)}
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {"best.yaml", "report.html"}
    for trial in result.trials:
        child = runs[f"{trial.number:03d}"]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params[LR] == str(trial.params[LR])
        points = client.get_metric_history(child.info.run_id, "test/accuracy")
        assert [(point.step, point.value) for point in points] == curve(trial.run_dir)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def start(tmp_path: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    path = tmp_path / "exp.json"
    path.write_text(json.dumps(settings))
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "tune", str(path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_trial(root: Path, number: int, step: int, process: subprocess.Popen[str]) -> RunDirectory:
    """Wait until a trial has recorded a round, and return the sweep's directory."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for directory in find_runs(root):
            reached = [t for t in trials_of(directory.path, "test/accuracy") if t.number == number and t.step >= step]
            if reached:
                return directory
        if process.poll() is not None:
            raise AssertionError(f"the sweep ended early:\n{process.communicate()[0]}")
        time.sleep(0.05)
    raise AssertionError(f"trial {number} did not reach round {step}")


def test_a_sweep_killed_outright_is_resumed_from_its_trials_with_the_same_bits(tmp_path: Path, local_ray: str) -> None:
    settings = config(tmp_path / "runs", rounds=250, search={"space": {LR: {"grid": [0.1, 0.05]}}, "concurrent": 1})
    process = start(tmp_path, settings)
    directory = wait_for_trial(tmp_path / "runs", 1, 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    # Ray's two agents try for a minute to tell the dead cluster that it is dead, and end then.
    children = [child for child in children if not child.name().endswith("Agent")]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert len(children) > 3
    assert psutil.wait_procs(children, timeout=30)[1] == [], "Ray outlived its driver"
    assert directory.manifest["status"] == "RUNNING"
    before = trials_of(directory.path, "test/accuracy")
    assert [trial.status for trial in before] == ["FINISHED", "RUNNING"]
    assert before[1].step < 250

    result = orchestrator.tune(resume=directory.path, quiet=True)
    assert [(trial.status, trial.step) for trial in result.trials] == [("FINISHED", 250)] * 2
    for trial in result.trials:
        assert curve(trial.run_dir) == curve(alone(tmp_path / "alone", settings, dict(trial.params)).run_dir)
    assert "resumed" not in kinds(result.trials[0].run_dir), "a finished trial is not run again"
    resumed = [event for event in RunDirectory.open(result.trials[1].run_dir).events() if event["kind"] == "resumed"]
    assert len(resumed) == 1
    assert resumed[0]["from_step"] >= 2
    assert RunDirectory.open(directory.path).manifest["status"] == "FINISHED"


@pytest.mark.slow
def test_ctrl_c_saves_the_trials_and_resume_ends_as_if_nothing_happened(tmp_path: Path, local_ray: str) -> None:
    search = {"space": {LR: {"grid": [0.1, 0.05]}}, "concurrent": 1}
    settings = config(tmp_path / "runs", rounds=40, checkpoint={"every": 100}, search=search)
    process = start(tmp_path, settings)
    directory = wait_for_trial(tmp_path / "runs", 0, 2, process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert f"0 of 2 trials ended; go on with: orchestrator resume {directory.path}" in output
    assert directory.manifest["status"] == "KILLED"
    (stopped,) = trials_of(directory.path, "test/accuracy")
    assert stopped.status == "KILLED"
    assert 2 <= stopped.step < 40

    result = orchestrator.tune(resume=directory.path, quiet=True)
    assert [(trial.status, trial.step) for trial in result.trials] == [("FINISHED", 40)] * 2
    trial = result.trials[0]
    assert curve(trial.run_dir) == curve(alone(tmp_path / "alone", settings, dict(trial.params)).run_dir)
    events = [event for event in RunDirectory.open(trial.run_dir).events() if event["kind"] == "resumed"]
    assert [event["from_step"] for event in events] == [stopped.step]


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on_with_the_same_bits(tmp_path: Path, local_ray: str) -> None:
    import threading

    settings = config(tmp_path / "runs", rounds=30, search={"space": {LR: {"grid": [0.1]}}})
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 100
        while not killed and time.monotonic() < deadline:
            for directory in find_runs(tmp_path / "runs"):
                for trial in find_runs(directory.path / "trials"):
                    if trial.manifest["step"] >= 2 and (pid := trial.holder()):
                        killed.append(pid)
                        os.kill(pid, signal.SIGKILL)
                        return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    result = orchestrator.tune(settings, quiet=True)
    thread.join()
    trial = result.trials[0]
    assert killed and (trial.status, trial.step) == ("FINISHED", 30)
    assert kinds(trial.run_dir).count("resumed") == 1
    assert curve(trial.run_dir) == curve(alone(tmp_path / "alone", settings, dict(trial.params)).run_dir)
