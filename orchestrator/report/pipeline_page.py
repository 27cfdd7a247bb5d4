"""What the page of a pipeline's run has that others have not: its stages, and a step as measured and as predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from orchestrator.report import gantt, scales, trace
from orchestrator.report.page import Figure, Section, Tile
from orchestrator.report.reading import Facts, finite
from orchestrator.report.step_time import step_time
from orchestrator.report.timeline import Timeline, deviation, measured, name, num_batches, predicted
from strategies.pipeline import placement

_HEAD = (
    "stage", "layers", "first \N{HORIZONTAL ELLIPSIS} last", "parameters", "forward", "backward", "state",
    "activations", "recomputes", "most alive",
)  # fmt: skip


class Timelines(NamedTuple):
    """The last step that was measured and what was predicted for it, with what is wrong where one is missing."""

    done: Timeline | None
    paper: Timeline | None
    problems: list[str]


def timelines(facts: Facts) -> Timelines:
    """Return the timelines of a run that can be read."""
    done = paper = None
    problems = []
    if facts.timeline is not None:
        try:
            done = measured(facts.timeline, _ways(facts))
            if facts.strategy.get("kind") == "zero":
                done = done._replace(names=tuple(f"rank {n}" for n in range(len(done.stages))), item="batch")
        except ValueError as error:
            problems.append(f"The last timeline in events.jsonl is damaged: {error}.")
    if facts.partition is not None and "predicted" in facts.partition:
        try:
            paper = predicted(facts.partition, num_batches(done) if done else 1)
        except ValueError as error:
            problems.append(f"The prediction in partition.json is damaged: {error}.")
    return Timelines(done, paper, problems)


def tiles(facts: Facts) -> list[Tile]:
    """Return the numbers that only a pipeline has."""
    found = step_time(facts)
    if "comm/boundary_bytes" in facts.series:
        sent = finite(facts, "comm/boundary_bytes")
        each = f"{scales.size(sum(sent) / len(sent))} a step" if sum(sent) else "all in one process"
        found.append(Tile("sent between stages", scales.size(sum(sent)), each))
    return found


def section(facts: Facts) -> Section | None:
    """Return the section on the stages and their timeline, or None when this is no pipeline's run."""
    if facts.unit != "step":
        return None
    found = timelines(facts)
    partition = facts.partition or {}
    rows = [_row(partition, stage, told) for stage, told in enumerate(_stages(partition))]
    drawn, said = [], []
    if found.done:
        drawn.append((_title("Measured", found.done), found.done))
        said.append(f"step {found.done.step} as measured")
    if found.paper:
        batches = num_batches(found.paper)
        end_to_end = f", {batches} batches end to end" if batches > 1 else ""
        drawn.append((_title(f"Predicted{end_to_end}", found.paper), found.paper))
        said.append("as predicted" if found.done else "a step as predicted")
    figures = []
    if drawn:
        title = " and ".join(said)
        figures.append(Figure(title[0].upper() + title[1:], gantt.draw(drawn), caption=_caption(found), wide=True))
    if not rows and not figures and not found.problems:
        return None
    return Section("pipeline", "Pipeline", figures=figures, note=_note(partition, found), head=_HEAD, rows=rows)


def _title(what: str, timeline: Timeline) -> str:
    return f"{what}: {scales.duration(timeline.length_s)}, bubble {scales.percent(timeline.bubble)}"


def _note(partition: Mapping[str, Any], found: Timelines) -> str:
    said = []
    if partition.get("schedule"):
        said.append(f"Schedule {partition['schedule']}, {partition.get('num_microbatches', '?')} micro-batches.")
    if found.done is None and not found.problems:
        said.append("No step has been measured yet.")
    said += found.problems
    if _stages(partition):
        said.append(
            "In the table, forward and backward are of one micro-batch, measured before the run; the bytes of state "
            "(weights, gradients, optimizer) and activations and the most micro-batches alive are expected."
        )
    return " ".join(said)


def _caption(found: Timelines) -> str:
    said = ["The bubble is the share of the stages' time in which they do not compute."]
    done, paper = found.done, found.paper
    if done and paper:
        most = deviation(done, paper)
        if most:
            chunked = done.num_chunks > 1
            late = "later" if most.late_s >= 0 else "earlier"
            action = f"{name(most.span, chunked)} of stage {most.stage}"
            said.append(f"Largest deviation: {action} ends {scales.duration(abs(most.late_s))} {late} than predicted.")
    if done:
        if done.in_turns and not (paper and paper.in_turns):
            said.append(
                "No two stages computed at the same time, as in one process (cluster.workers=0), where they take turns."
            )
        said.append(f"{trace.FILE} opens in ui.perfetto.dev.")
    return " ".join(said)


def _row(partition: Mapping[str, Any], stage: int, told: Mapping[str, Any]) -> list[str | Markup]:
    def show(field: str, how: scales.Format) -> str:
        value = told.get(field)
        return how(float(value)) if isinstance(value, int | float) else ""

    names = told.get("layers")
    names = names if isinstance(names, list) else []
    return [
        str(stage),
        str(len(names)),
        Markup("<br>").join(_layers(partition, stage, names)),
        show("num_parameters", scales.count),
        show("forward_s", scales.duration),
        show("backward_s", scales.duration),
        show("fixed_bytes", scales.memory),
        show("activation_bytes", scales.memory),
        str(told.get("recompute", "")),
        show("peak_live", scales.plain),
    ]


def _layers(partition: Mapping[str, Any], stage: int, names: Sequence[Any]) -> Iterator[str]:
    """Yield the first and last layer of each chunk of a stage."""
    lengths = partition.get("layers")
    if isinstance(lengths, list):
        num_stages = len(_stages(partition))
        placed = placement(str(partition.get("schedule")), num_stages, len(lengths) // num_stages)
        lengths = [lengths[position] for position in placed.positions(stage)]
    else:
        lengths = []
    if not all(isinstance(length, int) and length > 0 for length in lengths) or sum(lengths) != len(names):
        lengths = [len(names)] if names else []
    start = 0
    for length in lengths:
        first, last = str(names[start]), str(names[start + length - 1])
        yield first if length == 1 else f"{first} \N{HORIZONTAL ELLIPSIS} {last}"
        start += length


def _ways(facts: Facts) -> int | None:
    """Return the ways of a graph pipeline; None for what is none."""
    ways = (facts.partition or {}).get("ways")
    return ways if facts.unit == "epoch" and isinstance(ways, int) and ways > 0 else None


def _stages(partition: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    stages = partition.get("stages")
    return [told for told in stages if isinstance(told, Mapping)] if isinstance(stages, list) else []
