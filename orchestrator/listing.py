"""The runs in a folder, one line each, for `orchestrator list`: what became of them and where they are.

Only manifests are read, so a folder of thousands of runs lists at once; metrics stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator import files
from orchestrator.errors import ResumeError
from orchestrator.report.reading import UNITS, busy_s, status
from orchestrator.report.scales import duration, percent, plain
from orchestrator.rundir import RunDirectory, find_runs

if TYPE_CHECKING:
    from rich.text import Text

_PREFERRED = ("best/test_accuracy", "test/accuracy", "test/loss", "clients/accuracy", "train/loss")
_MANY = ("sweep", "grid")
_STYLES = {"FINISHED": "green", "FAILED": "red", "DAMAGED": "red", "RUNNING": "cyan"}


class Row(NamedTuple):
    """One run, sweep or grid.

    Args:
        status: as in the manifest, or `INTERRUPTED?` when it says RUNNING and no process holds it, or `DAMAGED`.
        progress: rounds, such as `12/50`, or others by name: `12/50 epochs`, `2/3 trials`, `7/36 points`.
        metric: the last value of the metric that matters most, such as `test/accuracy 87.1 %`.
        age_s: since it was created; NaN when unknown. duration_s: what it has taken so far, pauses left out.
    """

    id: str
    kind: str
    status: str
    progress: str
    metric: str
    age_s: float
    duration_s: float
    path: Path


def rows(root: Path | str, now: datetime | None = None) -> list[Row]:
    """Return the runs and sweeps directly inside a folder, oldest first, damaged ones last."""
    now = now or datetime.now(UTC)
    runs = find_runs(root)
    found = [_row(run, now) for run in runs]
    readable = {run.path for run in runs}
    folder = Path(root).absolute()
    manifests = sorted(folder.glob("[!.]*/manifest.json")) if folder.is_dir() else []
    damaged = [path.parent for path in manifests if path.parent not in readable]
    return found + [Row(path.name, "", "DAMAGED", "", "", math.nan, math.nan, path) for path in damaged]


def table(root: Path | str, now: datetime | None = None) -> Text:
    """Return the list as text in columns, with what to type about runs that died."""
    from rich.text import Text

    listed = rows(root, now)
    if not listed:
        return Text(f"no runs in {root}; start one: orchestrator run EXPERIMENT.yaml")
    progress = "PROGRESS" if any(" " in row.progress for row in listed) else "ROUNDS"
    head = ("STATUS", progress, "METRIC", "AGE", "DURATION", "RUN")
    lines = [_cells(row) for row in listed]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    text = Text(_line(head, widths), style="")
    for row, line in zip(listed, lines, strict=True):
        start = len(text) + 1
        text.append("\n" + _line(line, widths))
        text.stylize(_STYLES.get(row.status, "yellow"), start, start + len(row.status))
    for row in listed:
        if row.status == "INTERRUPTED?":
            text.append("\n\nNo process is writing the runs marked INTERRUPTED?. To continue one, type for instance:")
            text.append(f"\n  orchestrator resume {shown(row.path)}")
            break
    for row in listed:
        if row.status == "DAMAGED":
            text.append(f"\n\n{_damage(row.path)}")
            break
    return text


def to_json(root: Path | str) -> str:
    """Return the list as a JSON array of objects with the fields of `Row` and the manifest's metrics."""
    found = []
    for row in rows(root):
        fields = {**row._asdict(), "path": str(row.path)}
        if row.status != "DAMAGED":
            fields["metrics"] = RunDirectory.open(row.path).manifest.get("metrics") or {}
        found.append({name: None if value != value else value for name, value in fields.items()})
    return files.to_json(found)


def shown(path: Path) -> str:
    """Return a path as it can be typed here: relative when it is below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _row(run: RunDirectory, now: datetime) -> Row:
    manifest = run.manifest
    created, updated = _time(manifest.get("created")), _time(manifest.get("updated"))
    taken = (updated - created).total_seconds() if created and updated else math.nan
    if manifest.get("resumed"):
        taken = busy_s((float(event["time"]), str(event["kind"])) for event in run.events())
    kind = str(manifest.get("kind")) if manifest.get("kind") in _MANY else "run"
    return Row(
        id=str(manifest.get("id", run.path.name)),
        kind=kind,
        status=status(run, manifest),
        progress=_steps(manifest) if kind == "run" else _trials(run, manifest, kind),
        metric=_metric(manifest),
        age_s=(now - created).total_seconds() if created else math.nan,
        duration_s=taken,
        path=run.path,
    )


def _steps(manifest: Mapping[str, Any]) -> str:
    step, of = manifest.get("step"), manifest.get("num_steps")
    unit = manifest.get("unit")
    done = f"{step or 0}/{of}" if of else str(step or 0)
    return f"{done} {unit}s" if unit in UNITS else done


def _trials(run: RunDirectory, manifest: Mapping[str, Any], kind: str) -> str:
    """Return how many have ended: of the trials there are, since a search may draw more, but of all points."""
    trials = [trial.manifest.get("status") for trial in find_runs(run.path / "trials")]
    ended = sum(state != "RUNNING" for state in trials)
    return f"{ended}/{manifest.get('num_trials')} points" if kind == "grid" else f"{ended}/{len(trials)} trials"


def _metric(manifest: Mapping[str, Any]) -> str:
    metrics = manifest.get("metrics") or {}
    if {"grid/lowest", "grid/highest"} <= metrics.keys():
        name = str((manifest.get("grid") or {}).get("metric", ""))
        show = percent if name.endswith("accuracy") else plain
        return f"{name} {show(metrics['grid/lowest'])} to {show(metrics['grid/highest'])}"
    search = manifest.get("search") or {}
    for name in (search.get("metric"), *_PREFERRED, *sorted(metrics)):
        if name in metrics:
            show = percent if name.endswith("accuracy") else plain
            return f"{name} {show(metrics[name])}"
    return ""


def _cells(row: Row) -> tuple[str, ...]:
    age = duration(round(row.age_s)).split(" ")[:2] if math.isfinite(row.age_s) else []
    taken = duration(row.duration_s) if math.isfinite(row.duration_s) else ""
    return (row.status, row.progress, row.metric, " ".join([*age, "ago"]) if age else "", taken, shown(row.path))


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _time(stamp: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _damage(path: Path) -> str:
    try:
        RunDirectory.open(path)
    except ResumeError as error:
        return str(error)
    return f"{path} could not be read a moment ago; list again"
