"""A grid of runs: every combination of an experiment's `grid:` section, as one sweep that ends in heat maps.

There is one machinery for many runs, that of searches: a grid is a search whose trials are all known at the start.

    where points run         Ray Tune's trials (`tuning.Launcher`), or one after another here (`grid_inline`)
    what a point is          an ordinary run directory, `trials/000` (`trial_run`)
    interruption, resume     as of a search: nothing done is done again (`searching`)
    what they came to        `grid_directory`, `grid_table`; drawn by `report.heatmap`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import grid_directory, kept_data, sweep
from orchestrator.config import format_override, load_experiment
from orchestrator.config.grid_points import points
from orchestrator.config.schema import Experiment, Grid, Search
from orchestrator.errors import ConfigError, Problem, ResumeError, WorkerError
from orchestrator.grid_course import GridCourse, failure
from orchestrator.grid_directory import PointResult
from orchestrator.grid_inline import InlineLauncher
from orchestrator.grid_refusals import refused as find_refused
from orchestrator.grid_table import Table, tabulate
from orchestrator.interrupts import Interrupts
from orchestrator.rundir import RunDirectory
from orchestrator.searching import Launch, open_tracker, setting_of
from orchestrator.sweep_progress import SweepProgress

__all__ = ["GridResult", "grid"]


@dataclass(frozen=True)
class GridResult:
    """What a grid came to.

    Args:
        points: every combination, those refused and those that failed included. table: the heat maps' cells.
    """

    grid_dir: Path
    metric: str
    points: tuple[PointResult, ...]
    table: Table

    @property
    def failed(self) -> tuple[PointResult, ...]:
        return tuple(point for point in self.points if point.status == "FAILED")

    @property
    def failure(self) -> WorkerError | None:
        """The error that names the points that failed, if any did."""
        return failure(self.points, self.grid_dir)

    @property
    def heatmap(self) -> Path:
        """The picture; `heatmap.svg` and `worst_case.csv` lie beside it."""
        return self.grid_dir / "heatmap.png"


def grid(
    config: str | Path | Mapping[str, Any] | Experiment | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    root: str | Path | None = None,
    quiet: bool = False,
) -> GridResult:
    """Run every combination of an experiment's `grid` section, or go on with a grid that stopped.

    Args:
        config: an experiment file with a `grid` section, the same as a mapping, or an `Experiment`.
        overrides: `dotted.field=value`; a resume takes those of `grid_directory.RESUMABLE`.
        resume: a grid directory to go on with; then `config` is left out.
        root: the folder for run directories; wins over `storage.root`.
        quiet: show only the first failure and what a person must know.

    Returns:
        The result also when some points failed; see `failed`.

    Raises:
        ConfigError, PlacementError, ResumeError: nothing was started. WorkerError: every point failed.
        SweepInterrupted: after Ctrl-C or SIGTERM, when running points have saved their state.
    """
    from orchestrator.run import make_importable, storage_root

    make_importable()
    if resume is not None:
        if config is not None:
            raise ResumeError("grid() takes a config or a grid directory to resume, not both", "leave one of them out")
        with RunDirectory.open(resume).lock():
            directory, experiment, refused = grid_directory.reopen(resume, tuple(overrides))
            return _run(experiment, directory, directory.path.parent, refused, tuple(overrides), quiet)
    if root is not None:
        overrides = (*overrides, format_override("storage.root", str(root)))
    loaded = load_experiment(config, overrides)
    if loaded.experiment.grid is None:
        hint = "such as: grid: {over: {data.partition.alpha: [0.1, 1], seed: [0, 1, 2]}}"
        raise ConfigError([Problem(loaded.where("grid"), "grid", "is missing: there is nothing to vary", hint)])
    try:
        refused = find_refused(loaded)
        return _run(loaded.experiment, None, storage_root(loaded.experiment), refused, (), quiet)
    finally:
        kept_data.forget()


def _run(
    experiment: Experiment,
    directory: RunDirectory | None,
    root: Path,
    refused: Mapping[int, str],
    overrides: tuple[str, ...],
    quiet: bool,
) -> GridResult:
    """Find places, make the directory of a new grid, and run what is left of it."""
    experiment = _without_workers(experiment)
    section = experiment.grid
    assert section is not None
    chosen = {point.number: point for point in points(section) if point.number not in refused}
    searched = experiment.model_copy(update={"search": _as_search(experiment), "grid": None})
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        inline = section.parallel == 1 and not experiment.num_workers and experiment.cluster.address == "local"
        at_once = 1 if inline else _places(stack, searched, section.parallel or len(chosen))
        if directory is None:
            directory = grid_directory.create(experiment, root, refused)
            stack.enter_context(directory.lock())
        else:
            sweep.begin_again(directory, experiment)
            directory.update_manifest(grid=grid_directory.about(section, len(refused)))
        unit = experiment.strategy.unit
        progress = SweepProgress(section.metric, None, len(chosen), quiet=quiet, noun="point", unit=unit)
        stack.enter_context(progress)
        progress.message(f"grid directory  {directory.path}", important=True)
        progress.message(_sizes(experiment, len(refused), at_once))
        tracker, parent = open_tracker(experiment, directory, progress)
        setting = setting_of(searched, directory, parent, overrides)
        launch: Launch
        if inline:
            launch = InlineLauncher(setting)
        else:
            from orchestrator.tuning import Launcher

            launch = Launcher(searched, directory, setting, at_once)
        GridCourse(searched, directory, progress, interrupts, tracker, launch, grid=section, points=chosen).run()
    results = grid_directory.results(directory, section)
    return GridResult(directory.path, section.metric, results, tabulate(section, results))


def _places(stack: ExitStack, experiment: Experiment, wanted: int) -> int:
    from orchestrator.tuning import places

    return stack.enter_context(places(experiment, wanted))


def _without_workers(experiment: Experiment) -> Experiment:
    """Return the experiment with points that train in their own process, unless it says how many workers they have."""
    if "workers" in experiment.cluster.model_fields_set:
        return experiment
    cluster = experiment.cluster.model_copy(update={"workers": 0})
    return experiment.model_copy(update={"cluster": cluster})


def _as_search(experiment: Experiment) -> Search:
    """Return the grid as the search that it is, which trials know their metric from."""
    section = experiment.grid
    assert section is not None
    space = {field: Grid(grid=[None]) for field in section.over}
    return Search(space=space, metric=section.metric, mode=section.mode, trials=1, concurrent=section.parallel)


def _sizes(experiment: Experiment, num_refused: int, at_once: int) -> str:
    section = experiment.grid
    assert section is not None
    sizes = " x ".join(str(len(given)) for given in section.over.values())
    left_out = f", {num_refused} of them refused" if num_refused else ""
    return f"{sizes} points{left_out}, {at_once} at once, {section.metric}"
