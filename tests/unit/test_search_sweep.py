"""A sweep on disk and on the terminal."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator import sweep
from orchestrator.config import load_experiment
from orchestrator.errors import ResumeError
from orchestrator.rundir import RunDirectory
from orchestrator.sweep import SweepInterrupted, TrialResult, best_of
from orchestrator.sweep_progress import SweepProgress, shown

LR = "strategy.client.optimizer.lr"
CONFIG: dict[str, Any] = {
    "name": "search",
    "data": {"name": "digits"},
    "model": {"name": "logistic"},
    "search": {"space": {LR: {"loguniform": [0.01, 1.0]}}, "trials": 3},
}


def trial(number: int, value: float | None, status: str = "FINISHED", step: int = 5, **params: Any) -> TrialResult:
    return TrialResult(number, params, status, value, step, Path(f"trials/{number:03d}"))


def on_disk(directory: RunDirectory, number: int, value: float, step: int = 5, **manifest: Any) -> RunDirectory:
    facts = {"status": "FINISHED", "step": step, "num_steps": 5, "metrics": {"test/accuracy": value}, **manifest}
    facts["trial"] = {"number": number, "params": {LR: 0.1 * (number + 1)}}
    return RunDirectory.create_at(directory.path / "trials" / f"{number:03d}", "search", "", facts)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return sweep.create(load_experiment(CONFIG).experiment, tmp_path, 3)


def test_the_best_trial_has_the_best_last_value() -> None:
    results = (trial(0, 0.5), trial(1, 0.9, "STOPPED", 2), trial(2, 0.2), trial(3, None, "FAILED"))
    best, least = best_of(results, "max"), best_of(results, "min")
    assert best is not None and best.number == 1
    assert least is not None and least.number == 2


def test_failed_and_untrained_trials_and_those_without_a_value_are_never_best() -> None:
    assert best_of((trial(0, 0.9, "FAILED"), trial(1, 0.8, "RUNNING", 0), trial(2, None)), "max") is None


def test_of_equals_the_first_is_best() -> None:
    best = best_of((trial(0, 0.5), trial(1, 0.5)), "max")
    assert best is not None and best.number == 0


def test_trials_are_read_from_their_run_directories(directory: RunDirectory) -> None:
    on_disk(directory, 1, 0.5, step=2)
    on_disk(directory, 0, 0.8)
    on_disk(directory, 2, math.nan, status="FAILED", error={"type": "WorkerError", "message": "bang"})
    found = sweep.trials(directory.path, "test/accuracy")
    assert [(t.number, t.status, t.value, t.step) for t in found] == [
        (0, "FINISHED", 0.8, 5), (1, "STOPPED", 0.5, 2), (2, "FAILED", None, 5),
    ]  # fmt: skip
    assert found[2].error == "bang"
    assert found[0].params == {LR: 0.1}


def test_trials_whose_process_is_gone_get_a_status(directory: RunDirectory) -> None:
    lost, held = on_disk(directory, 0, 0.1, status="RUNNING"), on_disk(directory, 1, 0.1, status="RUNNING")
    with held.lock():
        sweep.close_abandoned(directory.path, "FAILED", "its process was lost")
    assert lost.manifest["status"] == "FAILED" and lost.manifest["error"]["message"] == "its process was lost"
    assert held.manifest["status"] == "RUNNING"


def test_best_yaml_is_an_experiment_file_of_its_own(directory: RunDirectory) -> None:
    experiment = load_experiment(CONFIG).experiment
    run = on_disk(directory, 2, 0.75)
    best = TrialResult(2, {LR: 0.30000000000000004}, "FINISHED", 0.75, 5, run.path)
    path = sweep.write_best(directory, experiment, best, "test/accuracy")
    loaded = load_experiment(path).experiment
    assert (loaded.name, loaded.search) == ("search-best", None)
    assert loaded.strategy.client.optimizer.lr == 0.30000000000000004
    header = path.read_text().splitlines()
    assert header[0] == f"# Trial 2 of {directory.path.name}: test/accuracy 0.75 after round 5 of 10."
    assert header[1] == f"# {LR} = 0.30000000000000004"


def test_the_name_of_the_best_stays_a_name(directory: RunDirectory) -> None:
    experiment = load_experiment({**CONFIG, "name": "x" * 100}).experiment
    run = on_disk(directory, 0, 0.75)
    path = sweep.write_best(directory, experiment, TrialResult(0, {LR: 0.1}, "FINISHED", 0.75, 5, run.path), "m")
    assert load_experiment(path).experiment.name == "x" * 95 + "-best"


def test_a_run_is_no_sweep_to_resume(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "x", "", {})
    with pytest.raises(ResumeError, match="is a run, not a sweep"):
        sweep.reopen(run.path, ())


def test_a_resume_may_not_change_trials_that_ran(directory: RunDirectory) -> None:
    with pytest.raises(ResumeError, match=r"model\.name=mlp would change"):
        sweep.reopen(directory.path, ("model.name=mlp",))
    assert sweep.reopen(directory.path, ("cluster.workers=1", "search.trials=9"))[1].search.trials == 9  # type: ignore[union-attr]


def test_a_population_keeps_its_size(tmp_path: Path) -> None:
    search = {**CONFIG["search"], "algorithm": {"name": "pbt"}}
    directory = sweep.create(load_experiment({**CONFIG, "search": search}).experiment, tmp_path, 3)
    with pytest.raises(ResumeError, match="size of the population"):
        sweep.reopen(directory.path, ("search.trials=9",))


def test_an_interruption_says_what_to_type() -> None:
    assert str(SweepInterrupted(Path("runs/x"), 3, 8)) == (
        "interrupted, 3 of 8 trials ended; go on with: orchestrator resume runs/x"
    )


# ------------------------------------------------------------------------------------------------ on the terminal


def said(**options: Any) -> tuple[SweepProgress, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, width=200, **options)
    return SweepProgress("test/accuracy", "max", 10, console=console), stream


def test_each_trial_that_ends_is_one_line() -> None:
    progress, stream = said()
    with progress:
        progress.started(3, {LR: 0.03})
        progress.step(3, 2, 0.4)
        progress.ended(trial(3, 0.5, **{LR: 0.03}))
        progress.ended(trial(4, 0.4, "STOPPED", 2, **{LR: 0.5}))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("[ 1/10] trial 3  test/accuracy 0.5000  round 5")
    assert lines[0].endswith("lr=0.03  best so far")
    assert lines[1].startswith("[ 2/10] trial 4  test/accuracy 0.4000  round 2  stopped early")
    assert "best" not in lines[1]


def test_only_the_first_failure_is_shown_whole() -> None:
    progress, stream = said()
    failed = [TrialResult(n, {LR: 1.0}, "FAILED", None, 0, Path(f"t/{n}"), f"Traceback {n}\nbang") for n in (0, 1)]
    with progress:
        for result in failed:
            progress.ended(result)
    text = stream.getvalue()
    assert "Traceback 0\nbang" in text and "Traceback 1" not in text
    assert "[ 2/10] trial 1  round 0  failed" in text


def test_a_terminal_shows_a_table_of_running_trials_and_counts() -> None:
    progress, stream = said(force_terminal=True, legacy_windows=False)
    with progress:
        progress.started(7, {LR: 0.03, "strategy.client.epochs": 2})
        progress.step(7, 4, 0.625)
        progress.ended(trial(1, 0.5))
        console = Console(file=io.StringIO(), width=120)
        console.print(progress._table())
    shown_now = console.file.getvalue()  # type: ignore[attr-defined]
    assert "7" in shown_now and "0.6250" in shown_now and "lr=0.03 epochs=2" in shown_now
    assert "1/10 trials ended  1 running  best 0.5000 (trial 1)" in shown_now
    assert stream.getvalue()


def test_parameters_are_named_by_as_much_as_tells_them_apart() -> None:
    assert shown({"strategy.client.optimizer.lr": 0.03, "strategy.client.epochs": 2}) == "lr=0.03 epochs=2"
    assert shown({"model.name": "mlp", "data.name": "digits"}) == "model.name=mlp data.name=digits"
    assert shown({"model.hidden": list(range(40))}).endswith("…")
