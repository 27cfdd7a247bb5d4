"""What the page of a sharded run has that others have not: how parameters lie, and bytes counted beside planned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from orchestrator.report import gantt, scales, trace
from orchestrator.report.page import Figure, Section, Tile
from orchestrator.report.pipeline_page import timelines
from orchestrator.report.reading import Facts, finite
from orchestrator.report.step_time import step_time

_HEAD = ("collective", "planned a step", "bytes planned", "bytes counted")


def is_sharded(facts: Facts) -> bool:
    """Return whether this is a run of sharded layouts."""
    return facts.strategy.get("kind") == "sharded"


def tiles(facts: Facts) -> list[Tile]:
    """Return the numbers that only sharded runs have."""
    found = step_time(facts)
    sent, planned = finite(facts, "comm/boundary_bytes"), _number(facts, "planned_bytes")
    if sent:
        note = "all in one process" if not sum(sent) else "" if planned is None else f"planned: {scales.size(planned)}"
        found.append(Tile("sent a step, counted", scales.size(sum(sent) / len(sent)), note))
    held = _number(facts, "rank_bytes")
    if held is not None:
        found.append(
            Tile("memory of a rank", scales.memory(held), "expected: weights, gradients, optimizer, activations")
        )
    return found


def section(facts: Facts) -> Section | None:
    """Return the section on layouts, or None when this is no sharded run."""
    if not is_sharded(facts):
        return None
    partition = facts.partition or {}
    told = partition.get("collectives")
    rows: list[list[str | Markup]] = []
    for name, planned in told.items() if isinstance(told, Mapping) else ():
        counted = finite(facts, f"comm/{str(name).replace('-', '_')}_bytes")
        mean = scales.size(sum(counted) / len(counted)) if counted else ""
        count, num_bytes = (
            (planned.get(key) for key in ("count", "bytes")) if isinstance(planned, Mapping) else (None,) * 2
        )
        rows.append([str(name), _show(count, scales.count), _show(num_bytes, scales.size), mean])
    found, figures = timelines(facts), []
    if found.done:
        done = found.done._replace(names=tuple(f"rank {rank}" for rank in range(len(found.done.stages))), item="batch")
        title = f"Measured: {scales.duration(done.length_s)}"
        caption = f"Backward includes what is sent on the way. {trace.FILE} opens in ui.perfetto.dev."
        figures.append(Figure(f"Step {done.step}", gantt.draw([(title, done)]), caption=caption, wide=True))
    note = " ".join([*_note(partition), *found.problems])
    if not rows and not figures and not note:
        return None
    return Section("layouts", "Sharded layouts", figures=figures, note=note, head=_HEAD if rows else (), rows=rows)


def _note(partition: Mapping[str, Any]) -> list[str]:
    said = []
    mesh, axes = partition.get("mesh"), partition.get("batch_axes")
    if isinstance(mesh, list):
        shared = f"examples split over axis {', '.join(map(str, axes))}" if axes else "every example on every rank"
        said.append(f"Mesh {' x '.join(map(str, mesh))}, {shared}.")
    placements = partition.get("placements")
    if isinstance(placements, Mapping):
        split = {
            f"{re.sub(r'(?<=[.])[0-9]+(?=[.]|$)', '*', str(name))} {' '.join(map(str, entries))}"
            for name, entries in placements.items()
            if isinstance(entries, list) and any(str(entry).startswith("S") for entry in entries)
        }
        said.append(f"Split: {'; '.join(sorted(split)) if split else 'no parameter'}; all others are copied.")
    paper = partition.get("formula_bytes")
    if isinstance(paper, int | float):
        said.append(f"By the formulas {scales.size(paper)} a step, single numbers left out.")
    return said


def _number(facts: Facts, name: str) -> float | None:
    value = (facts.partition or {}).get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _show(value: Any, how: scales.Format) -> str:
    return how(float(value)) if isinstance(value, int | float) else ""
