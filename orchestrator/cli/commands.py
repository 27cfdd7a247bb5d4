"""The commands that work from this machine: run, tune, resume, plan, validate, report, list.

Standard output carries results (a folder, a plan, a table), standard error everything else, so that
`folder=$(orchestrator run exp.yaml)` works.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.errors import ConfigError, Problem

if TYPE_CHECKING:
    from orchestrator.config.grid import RunGrid
    from orchestrator.config.schema import Experiment
    from orchestrator.grid_run import GridResult
    from orchestrator.life import RunResult

EXPERIMENT = click.argument("experiment", metavar="EXP")
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
ROOT = click.option("--root", metavar="FOLDER", help="Folder for run directories; wins over storage.root.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Show only what you must know.")
SPACED = {"ignore_unknown_options": False, "allow_interspersed_args": True}


def _command(name: str, short_help: str) -> Callable[[Callable[..., Any]], click.Command]:
    return click.command(name, short_help=short_help, context_settings=SPACED)


@_command("run", "Run an experiment.")
@EXPERIMENT
@OVERRIDES
@ROOT
@click.option("--dry-run", is_flag=True, help="Print the plan and start nothing.")
@QUIET
def run(experiment: str, overrides: tuple[str, ...], root: str | None, dry_run: bool, quiet: bool) -> int:
    """Run an experiment to its end and print its run directory.

    With a grid: section, every combination of its values is a run, and heat maps say what they came to.

    \b
    orchestrator run exp.yaml
    orchestrator run exp.yaml strategy.client.epochs=2 seed=9
    orchestrator run exp.yaml cluster.workers=0        in this process, without Ray
    """
    if dry_run:
        return _plan(experiment, _with_root(overrides, root))
    if _check(experiment, overrides).grid is not None:
        from orchestrator.grid_run import grid

        return _told_grid(grid(experiment, overrides=overrides, root=root, quiet=quiet))
    from orchestrator.run import run as run_experiment

    return _told(run_experiment(experiment, overrides=overrides, root=root, quiet=quiet), quiet)


@_command("tune", "Search over its fields with Ray Tune.")
@EXPERIMENT
@OVERRIDES
@ROOT
@QUIET
def tune(experiment: str, overrides: tuple[str, ...], root: str | None, quiet: bool) -> None:
    """Search over fields of an experiment with Ray Tune, as its search: section says, and print its directory.

    The best trial's experiment is in best.yaml there, ready to run.

    \b
    orchestrator tune exp.yaml search.trials=16
    orchestrator resume runs/NAME                      go on with a search that stopped
    """
    _check(experiment, overrides)
    from orchestrator.tuning import tune as tune_experiment

    click.echo(str(tune_experiment(experiment, overrides=overrides, root=root, quiet=quiet).sweep_dir))


@_command("resume", "Go on with a run, search or grid that stopped.")
@click.argument("run_dir", metavar="RUN_DIR")
@OVERRIDES
@QUIET
def resume(run_dir: str, overrides: tuple[str, ...], quiet: bool) -> int:
    """Go on with a run, a search or a grid that stopped, from its last checkpoint, with the same bits.

    \b
    orchestrator resume runs/fashion-fedavg-20260101-120000-a1b2
    orchestrator resume runs/NAME cluster.workers=4    where it runs may change, what it computes may not
    """
    from orchestrator.rundir import RunDirectory

    directory = RunDirectory.open(run_dir)
    if directory.manifest.get("kind") == "sweep":
        from orchestrator.tuning import tune as tune_experiment

        click.echo(str(tune_experiment(overrides=overrides, resume=directory.path, quiet=quiet).sweep_dir))
        return 0
    if directory.manifest.get("kind") == "grid":
        from orchestrator.grid_run import grid

        return _told_grid(grid(overrides=overrides, resume=directory.path, quiet=quiet))
    from orchestrator.run import resume_run

    return _told(resume_run(directory.path, overrides=overrides, quiet=quiet), quiet)


@_command("plan", "Show what would run where; start nothing.")
@EXPERIMENT
@OVERRIDES
def plan(experiment: str, overrides: tuple[str, ...]) -> int:
    """Print what would run where, with its needs in memory and traffic. Starts nothing.

    Exits with 3 when the cluster cannot hold it.

    \b
    orchestrator plan exp.yaml cluster.workers=8
    """
    return _plan(experiment, overrides)


@_command("validate", "Check an experiment; start nothing.")
@EXPERIMENT
@OVERRIDES
def validate(experiment: str, overrides: tuple[str, ...]) -> None:
    """Check an experiment, its data, partition and model. Starts nothing.

    Every problem is printed at once, with file, line and field; exits with 2 when there are any.

    \b
    orchestrator validate exp.yaml
    """
    from orchestrator.config import load_experiment

    loaded = load_experiment(experiment, overrides)
    from orchestrator.preparing import prepare

    prepared = prepare(loaded)
    settings = loaded.experiment
    if settings.grid is not None:
        from orchestrator.grid_refusals import refused

        left_out = refused(loaded)
    from orchestrator.summary import summary

    click.echo(f"ok  {summary(prepared, loaded.where)}")
    if settings.grid is not None:
        click.echo(f"    {_grid_size(settings.grid)}, {len(left_out)} of them refused")


@_command("report", "Write the report of a run anew.")
@click.argument("run_dir", metavar="RUN_DIR")
def report(run_dir: str) -> None:
    """Write report.html anew from what is on disk, and print its path.

    \b
    orchestrator report runs/fashion-fedavg-20260101-120000-a1b2
    """
    from orchestrator.report import write_report
    from orchestrator.rundir import RunDirectory

    click.echo(str(write_report(RunDirectory.open(run_dir).path)))


@_command("export", "Write a run's model as a plain state_dict.")
@click.argument("run_dir", metavar="RUN_DIR")
@click.argument("file", metavar="FILE")
@click.option("--step", type=int, metavar="N", help="Of the checkpoint of this step; default the newest.")
def export(run_dir: str, file: str, step: int | None) -> None:
    """Write the model of a run's newest checkpoint as a plain state_dict, and print the file's path.

    FILE ends in .pt or .pth, for torch.load, or in .safetensors. A new run begins with it by model.weights=FILE.

    \b
    orchestrator export runs/shakespeare-20260101-120000-a1b2 weights.pt
    """
    from orchestrator.weights import export as export_weights

    found = export_weights(run_dir, file, step)
    click.echo(f"step {found}", err=True)
    click.echo(str(Path(file)))


@_command("list", "List the runs in a folder.")
@click.argument("root", metavar="[FOLDER]", default="runs")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, for scripts.")
def list_(root: str, as_json: bool) -> None:
    """List the runs, searches and grids in a folder, by default runs.

    \b
    orchestrator list
    orchestrator list --json | jq '.[] | select(.status == "FAILED") | .path'
    """
    folder = Path(root)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(
            [Problem(root, "", f"{what}, expected a folder of run directories", "orchestrator list FOLDER")]
        )
    if as_json:
        from orchestrator.listing import to_json

        click.echo(to_json(folder))
        return
    from rich.console import Console

    from orchestrator.listing import table

    Console(soft_wrap=True, highlight=False).print(table(folder))


def _check(experiment: str, overrides: tuple[str, ...]) -> Experiment:
    """Tell mistakes of the file before anything slow is imported, and return the experiment."""
    from orchestrator.config import load_experiment

    return load_experiment(experiment, overrides).experiment


def _plan(experiment: str, overrides: tuple[str, ...]) -> int:
    from rich.console import Console

    from orchestrator.config import load_experiment
    from orchestrator.planning import plan as plan_experiment

    loaded = load_experiment(experiment, overrides)
    drawn = plan_experiment(loaded)
    drawn.render(Console(soft_wrap=True, highlight=False))
    if loaded.experiment.grid is not None:
        click.echo(f"\nThis is one point of {_grid_size(loaded.experiment.grid)}.")
    return drawn.exit_code


def _grid_size(grid: RunGrid) -> str:
    from orchestrator.config.grid_points import num_points

    return f"a grid of {' x '.join(str(len(given)) for given in grid.over.values())} = {num_points(grid):,} points"


def _with_root(overrides: tuple[str, ...], root: str | None) -> tuple[str, ...]:
    if root is None:
        return overrides
    from orchestrator.config import format_override

    return (*overrides, format_override("storage.root", root))


def _told(result: RunResult, quiet: bool) -> int:
    """Say how a run ended; the folder goes to standard output."""
    if not quiet:
        names: tuple[str, ...] = ("test/accuracy", "test/loss", "clients/accuracy")
        shown = []
        if "best/epoch" in result.metrics:
            shown.append(f"best {result.unit} {result.metrics['best/epoch']:.0f}")
            names = ("best/val_accuracy", "best/test_accuracy")
        shown += [f"{name} {result.metrics[name]:.4f}" for name in names if name in result.metrics]
        click.echo("  ".join([f"{result.status} after {result.unit} {result.step}", *shown]), err=True)
    click.echo(str(result.run_dir))
    return 0


def _told_grid(result: GridResult) -> int:
    """Print where a grid is; points that failed are an error, but what the others came to is there."""
    click.echo(str(result.grid_dir))
    if result.failure is not None:
        raise result.failure
    return 0
