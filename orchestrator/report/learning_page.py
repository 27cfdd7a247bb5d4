"""Learning curves: each measure over rounds and, where they tell something else, over virtual time and over bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from orchestrator.report import charts, scales
from orchestrator.report.charts import Axis, Line, Mark
from orchestrator.report.page import Figure, Section, Tile
from orchestrator.report.reading import Facts, Series

_TRAFFIC = ("comm/uplink_bytes", "comm/downlink_bytes")


class _Over(NamedTuple):
    """What curves are drawn over."""

    suffix: str
    axis: Axis
    place: Callable[[Series], Sequence[float]]


class _Measure(NamedTuple):
    """Curves that share a picture: `(label, metric)` of each, where it was recorded.

    Args:
        short: the title where it goes on with what the curves are drawn over.
    """

    title: str
    short: str
    axis: Axis
    curves: Sequence[tuple[str, str]]


def section(facts: Facts) -> Section:
    """Return the section of learning curves; it says so when there is none."""
    found = [measure for measure in _measures(facts) if measure.curves]
    best = facts.series.get("best/epoch")
    mark = Mark(best.value[-1], "best on validation") if best else None
    overs = _overs(facts)
    figures = []
    for measure in found:
        for over in overs:
            curves = [
                Line(label, over.place(facts.series[name]), facts.series[name].value) for label, name in measure.curves
            ]
            title = measure.short + over.suffix if over.suffix else measure.title
            figures.append(Figure(title, charts.lines(curves, over.axis, measure.axis, mark=mark)))
    norm = facts.series.get("train/gradient_norm")
    if norm:
        curve = Line("gradient norm", norm.step, norm.value)
        picture = charts.lines([curve], charts.steps(facts.unit), Axis(""))
        figures.append(Figure("Gradient norm before clipping", picture))
    note = "" if figures else "No metric has been recorded."
    return Section("curves", "Learning curves", figures=figures, note=note, columns=len(overs))


def tiles(facts: Facts) -> list[Tile]:
    """Return the accuracies and the loss of the header."""
    found = []
    accuracy = facts.series.get("test/accuracy")
    finite = _finite(accuracy)
    if finite:
        best, at = max(finite, key=lambda pair: (pair[0], -pair[1]))
        found.append(Tile("best test accuracy", scales.percent(best), f"{facts.unit} {at}"))
    if accuracy:
        at = accuracy.step[-1]
        found.append(Tile("final test accuracy", scales.percent(accuracy.value[-1]), f"{facts.unit} {at}"))
    least = facts.series.get("test/accuracy_lowest")
    if least:
        note = f"{facts.unit} {least.step[-1]}"
        found.append(Tile("lowest peer", scales.percent(least.value[-1]), note))
    own, lowest = facts.series.get("clients/accuracy"), facts.series.get("clients/accuracy_lowest_tenth")
    if own:
        note = f"{facts.unit} {own.step[-1]}"
        if lowest:
            note = f"lowest tenth: {scales.percent(lowest.value[-1])}; {note}"
        found.append(Tile("accuracy at clients", scales.percent(own.value[-1]), note))
    for name in ("test/loss", "clients/loss", "train/loss") if not least else ():
        loss = facts.series.get(name)
        if loss:
            label = "final loss at clients" if name == "clients/loss" else f"final {name.replace('/', ' ')}"
            found.append(Tile(label, scales.plain(loss.value[-1]), f"{facts.unit} {loss.step[-1]}"))
            break
    return found


def bends(series: Series, tolerance: float = 0.005) -> bool:
    """Return whether virtual time is known and not proportional to the rounds, but for a share of the whole time."""
    first, last = (series.step[0], series.virtual_s[0]), (series.step[-1], series.virtual_s[-1])
    if not all(map(math.isfinite, series.virtual_s)) or last[1] <= first[1] or last[0] == first[0]:
        return False
    slope = (last[1] - first[1]) / (last[0] - first[0])
    gaps = [abs(v - first[1] - slope * (s - first[0])) for s, v in zip(series.step, series.virtual_s, strict=True)]
    return max(gaps) > tolerance * (last[1] - first[1])


def _measures(facts: Facts) -> list[_Measure]:
    def recorded(*curves: tuple[str, str]) -> list[tuple[str, str]]:
        return [(label, name) for label, name in curves if name in facts.series]

    if facts.unit == "epoch":
        parts = {"train": "train", "validation": "val", "test": "test"}
        accuracies = recorded(*((label, f"{part}/accuracy") for label, part in parts.items()))
        of_parts = recorded(*((label, f"{part}/loss") for label, part in parts.items()))
        return [
            _Measure("Accuracy", "Accuracy", Axis("accuracy", scales.percent), accuracies),
            _Measure("Loss", "Loss", Axis(""), of_parts),
        ]
    title = "Test accuracy, mean of peers" if facts.serverless else "Test accuracy"
    accuracy = recorded(("test accuracy", "test/accuracy"))
    own = recorded(("mean of clients", "clients/accuracy"), ("lowest tenth", "clients/accuracy_lowest_tenth"))
    losses = recorded(("test loss", "test/loss"), ("loss at clients", "clients/loss"), ("train loss", "train/loss"))
    both = " and ".join(label for label, _ in losses).capitalize()
    return [
        _Measure(title, "Test accuracy", Axis("test accuracy", scales.percent), accuracy),
        _Measure("Accuracy at clients", "Accuracy at clients", Axis("accuracy at clients", scales.percent), own),
        _Measure(both, "Loss", Axis(""), losses),
    ]


def _overs(facts: Facts) -> list[_Over]:
    """Return the rounds, virtual time where it is not proportional to them, and bytes where any were sent."""
    overs = [_Over("", charts.steps(facts.unit), lambda series: series.step)]
    measured = [facts.series[name] for name in ("test/accuracy", "clients/accuracy") if name in facts.series]
    if any(_tells_time(facts, series) for series in measured):
        axis = Axis("virtual time (simulated)", scales.duration, zero=True)
        overs.append(_Over(" over virtual time", axis, lambda series: series.virtual_s))
    sent = _sent_until(facts)
    if measured and sent[-1:] > [0.0]:
        axis = Axis("sent between peers" if facts.serverless else "sent, up and down", scales.size, zero=True)
        last = len(sent) - 1
        overs.append(_Over(" over bytes", axis, lambda series: [sent[min(step, last)] for step in series.step]))
    return overs


def _tells_time(facts: Facts, series: Series) -> bool:
    """Return whether virtual time tells more than rounds do; that of peers who go on on their own always does."""
    if not facts.serverless:
        return bends(series)
    pacing = facts.strategy.get("pacing")
    alone = isinstance(pacing, Mapping) and pacing.get("kind") == "asynchronous"
    return bends(series, 0.0 if alone else 0.03)


def _sent_until(facts: Facts) -> list[float]:
    """Return the bytes sent in both directions up to each round, from round 0."""
    each: dict[int, float] = {}
    for name in _TRAFFIC:
        if name in facts.series:
            for step, value in zip(facts.series[name].step, facts.series[name].value, strict=True):
                each[step] = each.get(step, 0.0) + (value if math.isfinite(value) else 0.0)
    total, sums = 0.0, []
    for step in range(max(each, default=-1) + 1):
        total += each.get(step, 0.0)
        sums.append(total)
    return sums


def _finite(series: Series | None) -> list[tuple[float, int]]:
    if series is None:
        return []
    return [(value, step) for value, step in zip(series.value, series.step, strict=True) if math.isfinite(value)]
