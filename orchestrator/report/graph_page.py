"""What the page of a graph pipeline's run has that others have not: both cuts, an epoch as measured, and its bytes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from orchestrator.report import charts, gantt, scales, trace
from orchestrator.report.charts import Axis, Line
from orchestrator.report.page import Figure, Section, Tile
from orchestrator.report.pipeline_page import timelines
from orchestrator.report.reading import Facts, finite, part
from orchestrator.report.timeline import Timeline

_HEAD = ("stage", "layers", "first \N{HORIZONTAL ELLIPSIS} last", "parameters", "forward", "backward")
_SENT = (("between stages", "comm/boundary_bytes", "boundary"), ("between ways", "comm/exchange_bytes", "exchange"))
_MOST_BARS = 96  # chunks; more are drawn as a curve


def tiles(facts: Facts) -> list[Tile]:
    """Return what the model came to, chosen by validation."""
    found = []
    best = {name: _last(facts, f"best/{name}") for name in ("epoch", "val_accuracy", "test_accuracy")}
    if best["val_accuracy"] is not None and best["epoch"] is not None:
        at = f"epoch {best['epoch']:.0f}"
        found.append(Tile("best validation accuracy", scales.percent(best["val_accuracy"]), at))
        if best["test_accuracy"] is not None:
            found.append(Tile("test accuracy there", scales.percent(best["test_accuracy"]), at))
    loss = facts.series.get("train/loss")
    if loss:
        found.append(Tile("final train loss", scales.plain(loss.value[-1]), f"epoch {loss.step[-1]}"))
    return found


def costs(facts: Facts) -> list[Tile]:
    """Return what an epoch took and sent."""
    found = []
    times = finite(facts, "time/step_s")
    if times:
        spread = f"{scales.duration(min(times))} to {scales.duration(max(times))}"
        found.append(Tile("median epoch time", scales.duration(statistics.median(times)), spread))
    for what, metric, _ in _SENT:
        sent = finite(facts, metric)
        if sum(sent):
            found.append(Tile(f"sent {what}", scales.size(sum(sent)), f"{scales.size(sum(sent) / len(sent))} an epoch"))
    return found


def section(facts: Facts) -> Section | None:
    """Return the section on stages, chunks and the timeline, or None when this is no graph pipeline's run."""
    if facts.unit != "epoch":
        return None
    partition = facts.partition or {}
    found = timelines(facts)
    figures = []
    if found.done:
        length, bubble = scales.duration(found.done.length_s), scales.percent(found.done.bubble)
        picture = gantt.draw([(f"Measured: {length}, bubble {bubble}", found.done)])
        title = f"Epoch {found.done.step} as measured"
        figures.append(Figure(title, picture, caption=_caption(facts, found.done), wide=True))
    for what in ("vertices", "edges"):
        sizes = _numbers(partition.get(f"chunk_{what}"))
        if len(sizes) > 1:
            figures.append(_sizes(what, sizes, partition.get("ways")))
    rows = [_row(stage, told) for stage, told in enumerate(_stages(partition))]
    if not rows and not figures and not found.problems:
        return None
    note = " ".join([*_note(partition), *found.problems])
    return Section("pipeline", "Graph pipeline", figures=figures, note=note, head=_HEAD if rows else (), rows=rows)


def traffic(facts: Facts) -> Section | None:
    """Return the section on bytes, counted beside expected, or None when this is no graph pipeline's run."""
    if facts.unit != "epoch":
        return None
    expected = part(facts.partition, "bytes")
    rows, layers, steps = [], [], []
    for what, metric, formula in _SENT:
        counted, told = finite(facts, metric), expected.get(formula)
        if counted and (any(counted) or told):
            rows.append([what, _exact(told), _range(counted), _verdict(told, counted)])
            layers.append((what, facts.series[metric].value))
            steps = facts.series[metric].step
    if expected.get("weights"):
        rows.append(
            [
                "weights\N{RIGHT SINGLE QUOTATION MARK} gradients",
                _exact(expected["weights"]),
                "",
                "of a ring; not counted",
            ]
        )
    if not rows:
        return None
    figures = []
    if layers:
        picture = charts.stacked(steps, layers, charts.steps(facts.unit), Axis("bytes", scales.size))
        figures.append(Figure("Sent by epoch", picture))
    note = "Expected is what the cuts of model and graph come to; counted is what all ranks have sent while training."
    replicas = expected.get("replicas")
    if isinstance(replicas, int | float) and replicas:
        note += f" A vertex\N{RIGHT SINGLE QUOTATION MARK}s row is needed on {replicas:.3g} other ways in the mean."
    head = ("an epoch", "expected", "counted", "")
    return Section("bytes", "Bytes by epoch", figures=figures, note=note, head=head, rows=rows)


# ---------------------------------------------------------------------------------------------------- the parts


def _note(partition: Mapping[str, Any]) -> Iterator[str]:
    stages, ways, chunks = len(_stages(partition)), partition.get("ways"), partition.get("num_microbatches")
    if stages and isinstance(ways, int) and isinstance(chunks, int):
        each = " each" if ways > 1 else ""
        yield f"{_many(stages, 'stage')} x {_many(ways, 'way')}, {_many(chunks, 'chunk')}{each}."
    edges = sum(_numbers(partition.get("chunk_edges")))
    for between in ("chunks", "ways"):
        crossing = partition.get(f"edges_between_{between}")
        if isinstance(crossing, int) and crossing and edges:
            yield f"{scales.percent(crossing / edges)} of the edges are between {between}."
    if stages:
        yield "In the table, forward and backward are of one chunk, measured before the run."
    length, bubble = partition.get("predicted_s"), partition.get("predicted_bubble")
    if isinstance(length, int | float) and isinstance(bubble, int | float):
        yield (
            f"On paper an epoch takes {scales.duration(length)} with a bubble of {scales.percent(bubble)}, "
            "transfers left out."
        )


def _caption(facts: Facts, done: Timeline) -> str:
    several_ways = (facts.partition or {}).get("ways", 1) != 1
    said = ["The bubble is the share of the ranks\N{RIGHT SINGLE QUOTATION MARK} time in which they do not compute."]
    order = [span.microbatch for span in done.stages[0] if span.kind == "F"]
    if 1 < len(order) <= 32:
        said.insert(0, f"Chunks came in the order {', '.join(map(str, order))}.")
    if facts.in_one_process and len(done.stages) > 1:
        said.append("In one process (cluster.workers=0) ranks take turns, and no two compute at the same time.")
    if several_ways:
        said.append("Waiting for rows of other ways, in the middle of an action, is drawn as computing.")
    return " ".join([*said, f"{trace.FILE} opens in ui.perfetto.dev."])


def _sizes(what: str, sizes: Sequence[float], ways: Any) -> Figure:
    """Draw how large chunks are: each of a few, or many in the order of their sizes."""
    title = "Vertices of each chunk" if what == "vertices" else "Edges into each chunk"
    several = isinstance(ways, int) and 1 < ways <= len(sizes)
    slots = len(sizes) // ways if several else len(sizes)  # numbered as in the timeline
    spread = f"{scales.count(min(sizes))} to {scales.count(max(sizes))}"
    axis = Axis(what, scales.count, zero=True)
    if len(sizes) <= _MOST_BARS:
        picture = charts.bars(
            [str(chunk % slots) for chunk in range(len(sizes))],
            sizes,
            Axis("chunk, way by way" if several else "chunk"),
            axis,
        )
    else:
        curve = Line(what, [*range(1, len(sizes) + 1)], sorted(sizes))
        picture = charts.lines([curve], Axis("chunks, by size", whole=True), axis)
    return Figure(title, picture, caption=spread)


def _row(stage: int, told: Mapping[str, Any]) -> list[str | Markup]:
    def show(field: str, how: scales.Format) -> str:
        value = told.get(field)
        return how(float(value)) if isinstance(value, int | float) else ""

    names = told.get("layers")
    ends = [str(names[place]) for place in (0, -1)] if isinstance(names, list) and names else []
    return [
        str(stage),
        str(len(names) if isinstance(names, list) else ""),
        ends[0] if ends and len(names or ()) == 1 else " \N{HORIZONTAL ELLIPSIS} ".join(ends),
        show("num_parameters", scales.count),
        show("forward_s", scales.duration),
        show("backward_s", scales.duration),
    ]


def _verdict(expected: Any, counted: Sequence[float]) -> str:
    if not isinstance(expected, int | float):
        return ""
    wrong = sum(value != expected for value in counted)
    if wrong:
        return f"differs in {wrong:,} of {_many(len(counted), 'epoch')}"
    return f"equal to the byte in {'all ' if len(counted) > 1 else ''}{_many(len(counted), 'epoch')}"


def _range(counted: Sequence[float]) -> str:
    low, high = min(counted), max(counted)
    return _exact(low) if low == high else f"{_exact(low)} to {_exact(high)}"


def _exact(num_bytes: Any) -> str:
    return f"{num_bytes:,.0f} B" if isinstance(num_bytes, int | float) else ""


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("s" if number != 1 else "")


def _numbers(values: Any) -> list[float]:
    known = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
    return [float(value) for value in values] if known else []


def _stages(partition: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    stages = partition.get("stages")
    return [told for told in stages if isinstance(told, Mapping)] if isinstance(stages, list) else []


def _last(facts: Facts, metric: str) -> float | None:
    series = facts.series.get(metric)
    return series.value[-1] if series else None
