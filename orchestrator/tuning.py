"""A search over fields of an experiment: Ray Tune places and runs the trials, each of them an ordinary run.

    what a trial's values are     drawn ahead (`search_space`), varied from good trials (`population`), or by Optuna
    which trials stop early       Ray Tune's ASHA scheduler, when the search asks for it
    where trials run              one placement group a trial: its process on this node, and a bundle for each worker
    what they came to             their run directories (`sweep`), written as they go

A sweep is resumed from its trials' run directories and not from Ray Tune's own state, which is saved every few
seconds only and leaves the schedulers' out (ray#58179). Trials that ended are not run again; the scheduler is told of
them. The others go on from their last checkpoint. This is the only file outside `cluster/` that imports Ray.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune as ray_tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster import trials
from cluster.connect import connect
from orchestrator import search_space, sweep
from orchestrator.config import format_override, load_experiment
from orchestrator.config.schema import Asha, Experiment, GangSection, Optuna, Search
from orchestrator.errors import ConfigError, PlacementError, Problem, ResumeError
from orchestrator.executors import code_to_send, placement_errors
from orchestrator.interrupts import Interrupts
from orchestrator.rundir import RunDirectory
from orchestrator.searching import Searching, Watch, most_rounds, open_tracker, setting_of
from orchestrator.sweep import SweepInterrupted, SweepResult, TrialResult
from orchestrator.sweep_progress import SweepProgress
from orchestrator.trial_run import INTERRUPTED, STOPPED, Report, Setting, Task, TrialRun, history
from strategies.seeds import integer

__all__ = ["Launcher", "SweepInterrupted", "SweepResult", "places", "tune"]

_LOST_PROCESSES = 2
"""How often a trial whose process was lost is started again; it goes on from its last checkpoint."""
_STOP_TIMEOUT_S = 600.0


def tune(
    config: str | Path | Mapping[str, Any] | Experiment | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    root: str | Path | None = None,
    quiet: bool = False,
) -> SweepResult:
    """Search over an experiment as its `search` section says, or go on with a sweep that stopped.

    Args:
        config: an experiment file with a `search` section, the same as a mapping, or an `Experiment`.
        overrides: `dotted.field=value`; a resume takes those of `sweep.RESUMABLE`.
        resume: a sweep directory to go on with; then `config` is left out.
        root: the folder for run directories; wins over `storage.root`.
        quiet: show only the first failure and what a person must know.

    Raises:
        ConfigError, PlacementError, ResumeError: nothing was started. WorkerError: every trial failed.
        SweepInterrupted: after Ctrl-C or SIGTERM, when running trials have saved their state.
    """
    from orchestrator.run import storage_root

    if resume is not None:
        if config is not None:
            raise ResumeError("tune() takes a config or a sweep directory to resume, not both", "leave one of them out")
        directory, experiment = sweep.reopen(resume, tuple(overrides))
        with directory.lock():
            return _search(experiment, directory, directory.path.parent, tuple(overrides), quiet)
    if root is not None:
        overrides = (*overrides, format_override("storage.root", str(root)))
    loaded = load_experiment(config, overrides)
    if loaded.experiment.search is None:
        hint = "such as: search: {space: {strategy.client.optimizer.lr: {loguniform: [0.001, 1]}}, trials: 8}"
        raise ConfigError([Problem(loaded.where("search"), "search", "is missing: there is nothing to vary", hint)])
    from orchestrator.preparing import prepare

    prepare(loaded)
    return _search(loaded.experiment, None, storage_root(loaded.experiment), (), quiet)


def _search(
    experiment: Experiment, directory: RunDirectory | None, root: Path, overrides: tuple[str, ...], quiet: bool
) -> SweepResult:
    """Connect, count, make the directory of a new sweep, and search."""
    search = experiment.search
    assert search is not None
    drawn = () if isinstance(search.algorithm, Optuna) else search_space.draw(search, experiment.seed)
    num_trials = len(drawn) or search.trials
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        at_once = stack.enter_context(places(experiment, search.concurrent or num_trials))
        if directory is None:
            directory = sweep.create(experiment, root, num_trials)
            stack.enter_context(directory.lock())
        else:
            sweep.begin_again(directory, experiment)
        told = {"quiet": quiet, "unit": experiment.strategy.unit}
        progress = stack.enter_context(SweepProgress(search.metric, search.mode, num_trials, **told))
        progress.message(f"sweep directory  {directory.path}", important=True)
        progress.message(f"{num_trials} trials, {at_once} at once, {search.mode} {search.metric}")
        tracker, parent = open_tracker(experiment, directory, progress)
        setting = setting_of(experiment, directory, parent, overrides)
        launcher = Launcher(experiment, directory, setting, at_once)
        return Searching(experiment, directory, progress, interrupts, tracker, launcher).run()


@contextmanager
def places(experiment: Experiment, wanted: int) -> Iterator[int]:
    """Connect as the experiment says, and yield how many of the wanted trials fit at once.

    Raises:
        PlacementError: when the cluster cannot be reached, or does not hold even one.
    """
    section = experiment.cluster
    with ExitStack() as stack:
        with placement_errors(section):
            joining = connect(section.address, log_to_driver=False, runtime_env=code_to_send(experiment))
            connection = stack.enter_context(joining)
            if connection.address.startswith("ray://"):
                message = "a search writes its trials into a folder on a node, and ray:// leaves this process on none"
                raise PlacementError(message, "send it there: orchestrator submit EXP --address http://HEAD:8265")
            at_once = trials.fitting(section.resources_per_worker, experiment.num_workers, section.placement, wanted)
        yield at_once


# ------------------------------------------------------------------------------------------------ running trials


class SweepTrial(ray_tune.Trainable):
    """One trial in a process of its own: each step of Ray Tune is one report of the run."""

    def setup(self, config: dict[str, Any], setting: Setting | None = None) -> None:
        assert setting is not None
        self._setting = setting
        self._trial = TrialRun(setting, Task(**config))
        self._worst = -math.inf if setting.mode == "max" else math.inf  # NaN would compare as neither

    def step(self) -> dict[str, Any]:
        report = self._trial.next()
        value = self._worst if report.value is not None and math.isnan(report.value) else report.value
        result = {"step": report.step, "error": report.error, "ended": report.done, "done": report.done}
        return result if value is None else {**result, "value": value}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial in this process, which spares the start of one."""
        self.cleanup()
        self._trial = TrialRun(self._setting, Task(**new_config))
        return True

    def cleanup(self) -> None:
        killed = RunDirectory(self._setting.sweep_dir).manifest["status"] == "KILLED"
        self._trial.stop(INTERRUPTED if killed else STOPPED, _STOP_TIMEOUT_S)


class Launcher:
    """Runs trials through Ray Tune; see `searching.Launch`."""

    def __init__(self, experiment: Experiment, directory: RunDirectory, setting: Setting, at_once: int) -> None:
        self._experiment = experiment
        self._directory = directory
        self._setting = setting
        self._at_once = at_once

    def __call__(self, tasks: Iterator[Task | None], more: range, watch: Watch) -> None:
        search, section = self._experiment.search, self._experiment.cluster
        assert search is not None
        gang = isinstance(self._experiment.strategy, GangSection) and section.workers > 0
        held = ({}, 0) if gang else (section.resources_per_worker, section.workers)  # a gang has places of its own
        group = trials.group(*held, section.placement)
        trainable = ray_tune.with_resources(ray_tune.with_parameters(SweepTrial, setting=self._setting), group)
        ended = [
            trial
            for trial in sweep.trials(self._directory.path, search.metric)
            if trial.status in ("FINISHED", "STOPPED")
        ]
        number = len(list((self._directory.path / "ray").iterdir()))
        suggestions = _Suggestions(tasks, more, self._optuna(ended, more.start) if more else None)
        observer = _Observer(watch, section.start_timeout_s)
        with trials.quiet_tune():
            ray_tune.Tuner(
                trainable,
                tune_config=ray_tune.TuneConfig(
                    num_samples=-1, max_concurrent_trials=self._at_once, search_alg=suggestions,
                    scheduler=self._scheduler(ended), reuse_actors=True,
                    trial_name_creator=_name, trial_dirname_creator=_name,
                ),
                run_config=ray_tune.RunConfig(
                    name=f"part-{number}", storage_path=str(self._directory.path / "ray"), verbose=0,
                    callbacks=[observer], stop=_Stop(observer),
                    failure_config=ray_tune.FailureConfig(max_failures=_LOST_PROCESSES),
                    checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()  # fmt: skip
        if observer.failure is not None:
            raise observer.failure

    def _scheduler(self, ended: Sequence[TrialResult]) -> TrialScheduler:
        """Return the scheduler, told of the trials that ended before."""
        search = self._experiment.search
        assert search is not None
        if not isinstance(search.algorithm, Asha):
            return FIFOScheduler()
        scheduler = AsyncHyperBandScheduler(
            time_attr="step", metric="value", mode=search.mode, max_t=most_rounds(self._experiment),
            grace_period=search.algorithm.grace_rounds, reduction_factor=search.algorithm.reduction_factor,
        )  # fmt: skip
        for trial in ended:
            stand_in = SimpleNamespace(trial_id=f"ended-{trial.number}")
            scheduler.on_trial_add(None, stand_in)
            for step, value in history(RunDirectory(trial.run_dir), search.metric):
                if step:
                    scheduler.on_trial_result(None, stand_in, {"step": step, "value": value})
            scheduler.on_trial_remove(None, stand_in)
        return scheduler

    def _optuna(self, ended: Sequence[TrialResult], first: int) -> _Optuna:
        assert self._experiment.search is not None
        inner = _Optuna(self._experiment.search, integer(self._experiment.seed, "search optuna", first))
        for trial in ended:
            if trial.value is not None:
                inner.learn(trial.params, trial.value)
        return inner


class _Optuna:
    """Optuna's sampler over the search space; choices are handed to it by their place in the list."""

    def __init__(self, search: Search, seed: int) -> None:
        from ray.tune.search.optuna import OptunaSearch

        self._domains = {field: search_space.kind_of(domain) for field, domain in search.space.items()}
        space = {field: _distribution(*domain) for field, domain in self._domains.items()}
        level = (log := logging.getLogger("optuna")).level
        log.setLevel(logging.WARNING)  # it says that it made a study
        try:
            given = OptunaSearch.convert_search_space(space)
            self.searcher = OptunaSearch(given, metric="value", mode=search.mode, seed=seed % 2**32)
        finally:
            log.setLevel(level)

    def learn(self, params: Mapping[str, Any], value: float) -> None:
        """Tell it of a trial that it did not suggest in this process."""
        places = {
            field: values.index(params[field]) if kind == "choice" else params[field]
            for field, (kind, values) in self._domains.items()
        }
        self.searcher.add_evaluated_point(places, value)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        places = self.searcher.suggest(trial_id)
        if not isinstance(places, dict):
            return None
        return {
            field: values[places[field]] if kind == "choice" else places[field]
            for field, (kind, values) in self._domains.items()
        }


def _distribution(kind: str, values: list[Any]) -> Any:
    if kind == "choice":
        return ray_tune.choice(list(range(len(values))))
    return getattr(ray_tune, kind)(*values)


class _Suggestions(Searcher):
    """Hands the tasks to Ray Tune in their order, then those that Optuna suggests."""

    def __init__(self, tasks: Iterator[Task | None], more: range, optuna: _Optuna | None) -> None:
        super().__init__()
        self._tasks = tasks
        self._numbers = list(more)
        self._optuna = optuna
        self._asked: dict[str, Task] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune saves its searcher, and nobody restores this one

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        for task in self._tasks:
            return None if task is None else asdict(task)
        if self._optuna is None or not self._numbers:
            return str(Searcher.FINISHED)
        params = self._optuna.suggest(trial_id)
        if params is None:
            return None
        task = self._asked[trial_id] = Task(self._numbers.pop(0), params)
        return asdict(task)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self._optuna is not None and trial_id in self._asked and "value" in result:
            self._optuna.searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if self._optuna is not None and trial_id in self._asked:
            failed = error or not result or "value" not in result
            self._optuna.searcher.on_trial_complete(trial_id, None if failed else result, failed)

    def save(self, checkpoint_path: str) -> None:
        """Keep for Ray Tune what is left; a resume reads run directories and not this."""
        Path(checkpoint_path).write_text(json.dumps({"left": self._numbers}))


class _Observer(ray_tune.Callback):
    """Passes what Ray Tune sees on to the sweep, and looks whether trials get their places in time."""

    def __init__(self, watch: Watch, start_timeout_s: float) -> None:
        self._watch = watch
        self._start_timeout_s = start_timeout_s
        self._none_ran_since: float | None = None
        self.failure: PlacementError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune saves its callbacks, and nobody restores this one

    def must_stop(self) -> bool:
        return self.failure is not None or self._watch.interrupted()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watch.started(_task(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result["ended"]:
            self._watch.reported(_task(trial), _report(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watch.ended(_task(trial), _report(trial.last_result), stopped=not trial.last_result["ended"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        told = re.sub(r"\x1b\[[0-9;]*m", "", str(trial.get_error() or ""))
        lost = f"its process was lost {1 + _LOST_PROCESSES} times\n{told}".rstrip()
        self._watch.ended(_task(trial), Report(trial.last_result.get("step", 0), None, True, lost), stopped=False)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Give up when trials wait for places that other work holds, and none of ours runs."""
        waiting = [trial for trial in trials if trial.status == "PENDING"]
        if not waiting or any(trial.status == "RUNNING" for trial in trials):
            self._none_ran_since = None
            return
        now = time.monotonic()
        self._none_ran_since = self._none_ran_since or now
        if now - self._none_ran_since > self._start_timeout_s and self.failure is None:
            need = [dict(bundle) for bundle in waiting[0].placement_group_factory.bundles]
            self.failure = PlacementError(
                f"trial {waiting[0].config['number']} got no place within {self._start_timeout_s:g} s: "
                f"it needs {need}, and other work holds what the cluster has",
                "wait for that work to end and resume the sweep, or allow more time: cluster.start_timeout_s=600",
            )


class _Stop(ray_tune.Stopper):
    """Ends Ray Tune's loop when the sweep is to end."""

    def __init__(self, observer: _Observer) -> None:
        self._observer = observer

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._observer.must_stop()


def _task(trial: Any) -> Task:
    return Task(**{name: trial.config[name] for name in ("number", "params", "start_from", "until")})


def _report(result: Mapping[str, Any]) -> Report:
    return Report(result["step"], result.get("value"), bool(result["ended"]), result["error"])


def _name(trial: Any) -> str:
    return f"{trial.config['number']:03d}"
