"""What the page of a ZeRO run has that others have not: what a rank holds, measured beside the formulas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from markupsafe import Markup

from orchestrator.report import charts, gantt, scales, trace
from orchestrator.report.charts import Axis
from orchestrator.report.page import Figure, Section, Tile
from orchestrator.report.pipeline_page import timelines
from orchestrator.report.reading import Facts, part
from orchestrator.report.step_time import step_time

_HEAD = ("what a rank holds", "stage 0", "stage 1", "stage 2", "stage 3", "measured", "of what was expected")
_STATES = ("parameters", "gradients", "optimizer")
_BESIDE = ("gathered", "activations")
_STAGES = ("0", "1", "2", "3")


def is_zero(facts: Facts) -> bool:
    """Return whether this is a run of ZeRO."""
    return facts.strategy.get("kind") == "zero"


def tiles(facts: Facts) -> list[Tile]:
    """Return the numbers that only ZeRO has."""
    found = step_time(facts)
    stage, measured = _stage(facts), _measured(facts)
    whole = sum(_expected(facts, "0").get(name, 0) for name in _STATES)
    if len(measured) == len(_STATES):
        total = sum(measured.values())
        note = f"at stage {stage}; {scales.percent(total / whole)} of stage 0" if whole else f"at stage {stage}"
        found.append(Tile("states of a rank", scales.memory(total), note))
    elif whole:
        total = sum(_expected(facts, stage).get(name, 0) for name in _STATES)
        found.append(Tile("states of a rank", scales.memory(total), f"expected at stage {stage}"))
    return found


def section(facts: Facts) -> Section | None:
    """Return the section on memory and the time of a step, or None when nothing is known of either."""
    figures = [*_memory(facts)]
    found = timelines(facts)
    if found.done:
        title = f"Measured: {scales.duration(found.done.length_s)}, idle {scales.percent(found.done.bubble)}"
        said = "A rank waits for the others in backward and in the update, where they meet; idle is what is left."
        if found.done.in_turns:
            said = "Ranks take turns in this process (cluster.workers=0)."
        drawn = gantt.draw([(title, found.done)])
        caption = f"{said} {trace.FILE} opens in ui.perfetto.dev."
        figures.append(Figure(f"Step {found.done.step} as measured", drawn, caption=caption, wide=True))
    rows = list(_rows(facts))
    if not rows and not figures and not found.problems:
        return None
    note = " ".join([*_note(facts), *found.problems])
    return Section("zero", "What ranks hold", figures=figures, note=note, head=_HEAD if rows else (), rows=rows)


# ---------------------------------------------------------------------------------------------------- the parts


def _memory(facts: Facts) -> Iterator[Figure]:
    by_stage = [_expected(facts, stage) for stage in _STAGES]
    if not all(by_stage):
        return
    bars, names = by_stage, [f"stage {stage}" for stage in _STAGES]
    measured = _measured(facts)
    if measured:
        bars, names = [*by_stage, measured], [*names, "measured"]
    layers = [(name, [bar.get(name, 0) for bar in bars]) for name in _STATES]
    picture = charts.stacked(range(len(bars)), layers, Axis(""), Axis("bytes of a rank", scales.memory), names)
    caption = f"Weights, gradients and optimizer states by the formulas; this run is at stage {_stage(facts)}."
    yield Figure("States of a rank", picture, caption=caption)


def _rows(facts: Facts) -> Iterator[list[str | Markup]]:
    measured, own = _measured(facts), _expected(facts, _stage(facts))
    for name in (*_STATES, *_BESIDE):
        expected = [_expected(facts, stage).get(name) for stage in _STAGES]
        if all(value is None for value in (*expected, measured.get(name))):
            continue
        ratio = measured[name] / own[name] if name in measured and own.get(name) else None
        yield [
            name,
            *("" if value is None else scales.memory(value) for value in expected),
            scales.memory(measured[name]) if name in measured else "",
            "" if ratio is None else scales.percent(ratio),
        ]


def _note(facts: Facts) -> Iterator[str]:
    strategy = facts.strategy
    ranks, offload = strategy.get("ranks", "?"), strategy.get("offload", "none")
    moved = f", states offloaded to {offload}" if offload != "none" else ""
    yield f"ZeRO at stage {_stage(facts)} on {ranks} ranks{moved}."
    if facts.in_one_process:
        yield "In one process (cluster.workers=0) nothing is shared out, so nothing was measured."
    elif _measured(facts):
        yield (
            "Measured is the most of any rank after the first step, gradients before its update; gathered and "
            "activations are for a while only, and expected."
        )
    if (facts.partition or {}).get("activations_counted") is False:
        yield "Activations could not be counted before the run."
    building = _since(facts, "memory/building_bytes")
    if building:
        yield f"While the model was built, a rank held {scales.memory(building[-1])} of it at most."


def _stage(facts: Facts) -> str:
    return str((facts.partition or {}).get("stage", facts.strategy.get("stage", "?")))


def _expected(facts: Facts, stage: str) -> Mapping[str, float]:
    told = part(part(facts.partition, "expected"), stage)
    return {name: float(value) for name, value in told.items() if isinstance(value, int | float)}


def _measured(facts: Facts) -> dict[str, float]:
    last = {name: _since(facts, f"memory/{name}_bytes") for name in _STATES}
    return {name: values[-1] for name, values in last.items() if values}


def _since(facts: Facts, metric: str) -> list[float]:
    """Return the values since the run was last resumed: before, there may have been other ranks at another stage."""
    begun = [int(event.get("from_step", 0)) for event in facts.events if event.get("kind") == "resumed"]
    series = facts.series.get(metric)
    if series is None:
        return []
    known = zip(series.step, series.value, strict=True)
    return [value for step, value in known if value - value == 0 and step > (begun[-1] if begun else 0)]
