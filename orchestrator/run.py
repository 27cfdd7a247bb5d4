"""The life of one run: prepare, place, train, record, and leave a directory that says all of it.

Order matters here. Everything that can be refused is refused before a directory exists; the directory exists
before a worker starts; after that, whatever happens ends in a status: FINISHED, FAILED or KILLED. A process that
is killed outright leaves RUNNING behind, and `resume` goes on from its last checkpoint with the same bits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.checkpoints import CheckpointStore
from orchestrator.config import Loaded, format_override, load_experiment, to_yaml
from orchestrator.config.schema import Experiment, GangSection, LocalLearning, Zero
from orchestrator.engines.base import Engine, RunState
from orchestrator.engines.opening import open_engine
from orchestrator.environment import environment
from orchestrator.errors import ConfigError, Problem, ResumeError
from orchestrator.files import to_json, write_whole
from orchestrator.interrupts import Interrupts
from orchestrator.life import Life, RunInterrupted, Trial
from orchestrator.preparing import Prepared, prepare
from orchestrator.pretraining import begin
from orchestrator.progress import Progress
from orchestrator.results import RunResult, checkpoint_store
from orchestrator.rundir import RunDirectory
from orchestrator.storage import storage_root
from orchestrator.vectorising import settle

__all__ = ["RunInterrupted", "RunResult", "Trial", "resume_run", "run", "storage_root"]

RESUMABLE = (
    "cluster.", "tracking.", "checkpoint.", "evaluate.", "strategy.algorithm.rounds", "strategy.steps",
    "strategy.epochs", "strategy.stages", "strategy.partition", "strategy.recompute", "strategy.stage_memory",
    "strategy.restarts", "strategy.graph_folder", "strategy.patience",
    "strategy.modules", "strategy.queue", "strategy.shard_optimizer",
    "strategy.ranks", "strategy.stage", "strategy.offload", "strategy.nvme_folder", "strategy.rank_memory",
    "strategy.mesh", "strategy.placements", "strategy.batch_axes",
)  # fmt: skip
"""Fields that may differ when a run is resumed: they do not change the bits of the steps already done."""


def run(
    config: str | Path | Mapping[str, Any] | Experiment | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    root: str | Path | None = None,
    quiet: bool = False,
    trial: Trial | None = None,
) -> RunResult:
    """Run an experiment to its end, or go on with one that stopped.

    Args:
        config: an experiment file, the same as a mapping, or an `Experiment`.
        overrides: `dotted.field=value`, applied over the file.
        resume: a run directory to go on with; then `config` is left out.
        root: the folder for run directories; wins over `storage.root`.
        quiet: show nothing but what a person must know.

    Raises:
        ConfigError, PlacementError, WorkerError, ResumeError: see `orchestrator.errors`.
        RunInterrupted: after Ctrl-C or SIGTERM, when the state is saved.
    """
    if resume is not None:
        if config is not None:
            raise ResumeError("run() takes a config or a run directory to resume, not both", "leave one of them out")
        return resume_run(resume, overrides=overrides, quiet=quiet)
    make_importable()
    if root is not None:
        overrides = (*overrides, format_override("storage.root", str(root)))
    loaded = load_experiment(config, overrides)
    experiment = loaded.experiment
    if experiment.grid is not None:
        message = "makes this many runs, and run() makes one"
        raise ConfigError([Problem(loaded.where("grid"), "grid", message, "orchestrator.grid(...), or grid: null")])
    prepared, how = settle(prepare(loaded), loaded.where)
    experiment = prepared.experiment
    with Interrupts() as interrupts, Progress.of(experiment, quiet=quiet) as progress:
        for line in loaded.changed:
            progress.message(f"changed  {line}")
        if how:
            progress.message(how)
        prepared = begin(prepared, storage_root(experiment), progress)
        life = Life(experiment, progress, interrupts, trial)
        with open_engine(prepared, interrupts, life.notify, _user_paths(), loaded.where) as engine:
            if experiment.checkpoint.storage:
                CheckpointStore(experiment.checkpoint.storage, experiment.checkpoint.keep).probe()
            life.directory = _create_directory(prepared, engine, trial)
            return life.go(engine, None)


def resume_run(
    run_dir: str | Path, *, overrides: Sequence[str] = (), quiet: bool = False, trial: Trial | None = None
) -> RunResult:
    """Go on with a run from its newest whole checkpoint; the rest equals never having stopped, bit for bit.

    A run that is finished has nothing to train: what its tracking server has not received yet is delivered.

    Args:
        overrides: changes to fields that leave the bits alone, such as `cluster.workers=4` or more rounds.

    Raises:
        ResumeError: when the directory is no run, is in use, has only damaged checkpoints, or an override
            would change what was already computed.
    """
    make_importable()
    directory = RunDirectory.open(run_dir)
    refused = [change for change in overrides if not change.split("=")[0].startswith(RESUMABLE)]
    if refused:
        raise ResumeError(
            f"{refused[0]} would change what was already computed",
            f"a resume may change {', '.join(name.rstrip('.') for name in RESUMABLE)}; else start a new run",
        )
    loaded = load_experiment(directory.path / "config.resolved.yaml", overrides)
    experiment = loaded.experiment
    schedule, unit = getattr(experiment.strategy, "learning_rate", None), experiment.strategy.unit
    longer = f"{experiment.strategy.steps_field}="
    if schedule is not None and schedule.name != "constant" and any(change.startswith(longer) for change in overrides):
        raise ResumeError(
            f"{longer[:-1]} would change the learning rate of {unit}s already done, {schedule.name} over all {unit}s",
            "start a new run, or use a constant learning rate",
        )
    _refuse_other_modules(loaded, directory)
    num_steps = experiment.strategy.num_steps
    with directory.lock(), Interrupts() as interrupts, Progress.of(experiment, quiet=quiet) as progress:
        state = checkpoint_store(experiment, directory).newest(lambda text: progress.message(text, important=True))
        if state is not None and state.step >= num_steps and directory.manifest["status"] == "FINISHED":
            return _deliver_only(directory, experiment, progress)
        before = directory.manifest.get("pretrained")
        prepared = begin(_again(loaded, directory, state), storage_root(experiment), progress, before)
        life = Life(experiment, progress, interrupts, trial)
        with open_engine(prepared, interrupts, life.notify, _user_paths(), loaded.where) as engine:
            life.directory = directory
            write_whole(directory.path / "partition.json", to_json(engine.summary()))
            return life.go(engine, state, resumed=True)


def _again(loaded: Loaded, directory: RunDirectory, state: RunState | None) -> Prepared:
    """Return what a run goes on with; an override may have asked ZeRO for another stage.

    Raises:
        ResumeError: when the weights that it began with are needed again, and have changed.
    """
    strategy, before = loaded.experiment.strategy, directory.manifest.get("weights")
    needed = state is None or not isinstance(strategy, GangSection)
    prepared = prepare(loaded, weights=needed)
    if needed and before and prepared.begun is not None and prepared.begun.facts["sha256"] != before["sha256"]:
        message = f"{before['path']} holds other weights than the run began with"
        raise ResumeError(message, "put the file back as it was, or start a new run")
    if isinstance(strategy, Zero):
        return settle(prepared, loaded.where)[0]
    return prepared


def _refuse_other_modules(loaded: Loaded, directory: RunDirectory) -> None:
    """Refuse another number of workers where the rule makes a module, and so an auxiliary network, for each."""
    strategy = loaded.experiment.strategy
    if not isinstance(strategy, LocalLearning) or getattr(strategy.rule, "modules", 0) is not None:
        return
    before = load_experiment(directory.path / "config.resolved.yaml").experiment.strategy
    assert isinstance(before, LocalLearning)
    if strategy.modules != before.modules:
        raise ResumeError(
            f"strategy.modules={strategy.modules} would change the auxiliary networks: with {strategy.rule.name} there "
            f"is one for each of the {before.modules} modules",
            "start a new run; in one whose rule says its own number, such as rule.modules=each, workers may change",
        )


def _create_directory(prepared: Prepared, engine: Engine, trial: Trial | None) -> RunDirectory:
    experiment = prepared.experiment
    text, facts = to_yaml(experiment), environment()
    summary = to_json(engine.summary())
    manifest: dict[str, Any] = {
        "kind": "run",
        "status": "RUNNING",
        "seed": experiment.seed,
        "step": 0,
        "num_steps": experiment.strategy.num_steps,
        "unit": experiment.strategy.unit,
        "command": " ".join(sys.argv),
        **facts,
    }
    begun = "pretrained" if experiment.model.weights is None else "weights"
    if prepared.begun is not None:
        manifest[begun] = dict(prepared.begun.facts)
    if trial is None:
        directory = RunDirectory.create(storage_root(experiment), experiment.name, text, manifest)
    else:
        manifest["trial"] = {"number": trial.number, "params": dict(trial.params)}
        if trial.start_from is not None:
            manifest["trial"]["start_from"] = str(trial.start_from)
        directory = RunDirectory.create_at(trial.path, experiment.name, text, manifest)
    write_whole(directory.path / "partition.json", summary)
    directory.event("run_started", command=manifest["command"], pid=os.getpid())
    if prepared.begun is not None:
        directory.event(begun, **prepared.begun.facts)
    return directory


def _deliver_only(directory: RunDirectory, experiment: Experiment, progress: Progress) -> RunResult:
    pending = 0
    if experiment.tracking.enabled:
        from orchestrator.tracking import deliver

        pending = deliver(directory, experiment.tracking, experiment.tracking.flush_timeout_s)
    progress.message(
        "the run is finished; nothing to train"
        + (f", {pending} records still wait for the tracking server" if pending else ", tracking is complete"),
        important=True,
    )
    manifest = directory.manifest
    unit = experiment.strategy.unit
    return RunResult(directory.path, "FINISHED", manifest["step"], manifest.get("metrics", {}), unit)


def make_importable() -> None:
    """Let `package.module:function` name a user's own code in the current folder, as `python -m` would."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


def _user_paths() -> tuple[str, ...]:
    return (os.getcwd(),)
