"""The page of a grid: its heat maps, the worst case of every cell in numbers, and every point with its own report."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

from markupsafe import Markup

from orchestrator import grid_directory
from orchestrator.config.grid import RunGrid
from orchestrator.config.grid_points import short_names
from orchestrator.grid_directory import PointResult, relative
from orchestrator.grid_table import Cell, Table, tabulate
from orchestrator.report import reading, scales
from orchestrator.report.heatmap_files import write_files
from orchestrator.report.page import (
    Figure,
    Page,
    Section,
    Tile,
    environment_rows,
    event_rows,
    failure,
    highlight,
    minutes,
    resume_command,
    tone,
)
from orchestrator.rundir import RunDirectory

_ROUTINE = ("trial_ended",)
_BESIDE = "The picture is beside this page, too, as heatmap.svg and heatmap.png."


def page(run: RunDirectory) -> Page:
    """Draw a grid's heat maps into its directory, and return its page.

    Raises:
        ResumeError: when a file of the grid or of a point is damaged.
    """
    grid = grid_directory.grid_of(run)
    results = grid_directory.results(run, grid)
    table = tabulate(grid, results)
    picture = write_files(run, grid, results, table)
    manifest, names = run.manifest, short_names(list(grid.over))
    status = reading.status(run, manifest)
    events = list(run.events())
    config = (run.path / "config.resolved.yaml").read_text(errors="replace")
    show = scales.percent if grid.metric.endswith("accuracy") else scales.plain
    sections = [
        Section("heatmaps", "Heat maps", figures=[_figure(picture)], note=_BESIDE),
        _cells(table, names, grid, show),
        _refused(results, names),
        _points(run, results, names, grid, show),
        Section("events", "Events", rows=event_rows([e for e in events if e["kind"] not in _ROUTINE])),
        Section("config", "Resolved configuration of the grid", code=highlight(config), folded=True),
        Section("environment", "Environment", pairs=environment_rows(manifest)),
    ]
    return Page(
        title=str(manifest.get("name", run.path.name)),
        kind="grid",
        status=status,
        facts=[
            ("grid", str(manifest.get("id", run.path.name))),
            ("started", minutes(manifest.get("created"))),
            ("duration", scales.duration(reading.busy_s((float(e["time"]), str(e["kind"])) for e in events))),
            ("value of a point", f"{grid.at} {grid.metric}"),
        ],
        tiles=_tiles(results, table, names, grid, show),
        error=failure(manifest),
        resume=resume_command(run.path, status),
        sections=[section for section in sections if section is not None],
    )


def _figure(picture: str) -> Figure:
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()}"
    image = Markup('<img class="heatmap" alt="heat maps" src="{}">').format(source)
    return Figure("", image, wide=True)


def _tiles(
    results: Sequence[PointResult], table: Table, names: dict[str, str], grid: RunGrid, show: scales.Format
) -> list[Tile]:
    states = [result.status for result in results]
    told = ", ".join(f"{states.count(state)} {state.lower()}" for state in dict.fromkeys(states))
    tiles = [Tile("points", str(len(results)), told)]
    placed = [
        (cell.value, place) for place, cell in _places(table) if cell.value is not None and math.isfinite(cell.value)
    ]
    if placed:
        best, worst = (max, min) if grid.mode == "max" else (min, max)
        for label, pick in (("best cell", best), ("worst cell", worst)):
            value, place = pick(placed, key=lambda entry: entry[0])
            told = zip((*table.roles.panel, table.roles.y, table.roles.x), place, strict=True)
            tiles.append(Tile(label, show(value), ", ".join(f"{names[name]} {text}" for name, text in told if name)))
    return tiles


def _places(table: Table) -> list[tuple[list[str], Cell]]:
    """Return every cell with its labels on panels, rows and columns."""
    return [
        ([*panel.labels, row, column], cell)
        for panel in table.panels
        for row, cells in zip(table.rows, panel.cells, strict=True)
        for column, cell in zip(table.columns, cells, strict=True)
    ]


def _cells(table: Table, names: dict[str, str], grid: RunGrid, show: scales.Format) -> Section:
    parts = table.roles
    rows: list[list[str | Markup]] = []
    for place, cell in _places(table):
        value = show(cell.value) if cell.value is not None else cell.state
        spread = "" if cell.spread is None else show(cell.spread)
        ended = f"{cell.num_ended}/{cell.num_points}" + (f", {cell.num_refused} refused" if cell.num_refused else "")
        rows.append([*place, value, spread, *(cell.worst or [""] * len(parts.worst)), ended])
    head = [names[name] for name in parts.panel]
    head += [names[parts.y] if parts.y else "", names[parts.x] if parts.x else ""]
    head += [grid.metric, "spread", *(f"worst {names[name]}" for name in parts.worst), "points"]
    drawn = [column for column, name in enumerate(head) if name]
    over = " and ".join(names[name] for name in parts.mean)
    note = f"Spread: standard deviation over {over}, of the worst. " if over else ""
    return Section(
        "worst",
        "Cells",
        head=[head[column] for column in drawn],
        rows=[[row[column] for column in drawn] for row in rows],
        note=f"{note}The same as worst_case.csv.",
    )


def _refused(results: Sequence[PointResult], names: dict[str, str]) -> Section | None:
    left_out: dict[str, list[PointResult]] = {}
    for result in results:
        if result.status == "REFUSED":
            left_out.setdefault(result.reason, []).append(result)
    if not left_out:
        return None
    rows: list[list[str | Markup]] = [
        [str(len(points)), ", ".join(f"{names[name]} {label}" for name, label in points[0].labels.items()), reason]
        for reason, points in left_out.items()
    ]
    note = "Combinations that cannot be run, as grid.refused: skip leaves out."
    return Section("refused", "Refused", head=["points", "such as", "reason"], rows=rows, note=note)


def _points(
    run: RunDirectory, results: Sequence[PointResult], names: dict[str, str], grid: RunGrid, show: scales.Format
) -> Section:
    rows: list[list[str | Markup]] = []
    for result in results:
        label: str | Markup = f"{result.number:03d}"
        if result.run_dir is not None and (result.run_dir / "report.html").exists():
            label = Markup('<a href="{}/report.html">{}</a>').format(relative(result.run_dir, run), label)
        value = "" if result.value is None else show(result.value)
        status = Markup('<span class="status {}">{}</span>').format(tone(result.status), result.status)
        rows.append([label, *(result.labels[name] for name in names), value, str(result.step or ""), status])
    head = ["point", *names.values(), grid.metric, "steps", "status"]
    return Section("points", "Points", head=head, rows=rows, note="The same as results.csv.")
