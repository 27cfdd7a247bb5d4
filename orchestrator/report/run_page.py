"""The page of one run: which sections it has and what each shows."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

from orchestrator.report import charts, clients_page, pictures, pipeline_page, scales
from orchestrator.report.charts import Axis, Line
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
)
from orchestrator.report.reading import Facts, Series

_TIMES = (
    ("compute", "time/compute_s"),
    ("wire", "time/wire_s"),
    ("waiting", "time/wait_s"),
    ("training", "time/step_s"),
)
_TRAFFIC = (
    ("Up, from clients", "comm/uplink_bytes"),
    ("Down, to clients", "comm/downlink_bytes"),
    ("Between stages", "comm/boundary_bytes"),
)
_TABLE = (
    ("test accuracy", "test/accuracy", scales.percent),
    ("test loss", "test/loss", scales.plain),
    ("train loss", "train/loss", scales.plain),
    ("gradient norm", "train/gradient_norm", scales.plain),
    ("clients", "train/num_clients", scales.plain),
    ("up", "comm/uplink_bytes", scales.size),
    ("down", "comm/downlink_bytes", scales.size),
    ("sent", "comm/boundary_bytes", scales.size),
    ("round time", "time/round_s", scales.duration),
    ("step time", "time/step_s", scales.duration),
)
_MOST_ROWS = 200


def page(facts: Facts) -> Page:
    """Return the page of a run."""
    manifest = facts.manifest
    sections = [_learning(facts), clients_page.participation(facts), pipeline_page.section(facts)]
    sections += [_bytes(facts), _time(facts), clients_page.partition(facts), _numbers(facts)]
    sections += [
        Section("events", "Events", rows=event_rows(facts.events), note=_event_note(facts)),
        Section("config", "Resolved configuration", code=highlight(facts.config), folded=True, open=True),
        Section("environment", "Environment", pairs=environment_rows(manifest)),
    ]
    return Page(
        title=str(manifest.get("name", facts.path.name)),
        kind="run",
        status=facts.status,
        facts=[
            ("run", str(manifest.get("id", facts.path.name))),
            ("started", minutes(manifest.get("created"))),
            ("seed", str(manifest.get("seed", "not recorded"))),
            ("duration", scales.duration(facts.busy_s)),
        ],
        tiles=_tiles(facts),
        error=failure(manifest),
        resume=f"orchestrator resume {facts.path}" if facts.status in ("INTERRUPTED?", "KILLED", "FAILED") else "",
        sections=[section for section in sections if section is not None],
    )


def _tiles(facts: Facts) -> list[Tile]:
    manifest, tiles = facts.manifest, []
    accuracy = facts.series.get("test/accuracy")
    finite = (
        [(v, s) for v, s in zip(accuracy.value, accuracy.step, strict=True) if math.isfinite(v)] if accuracy else []
    )
    if finite:
        best, at = max(finite, key=lambda pair: (pair[0], -pair[1]))
        tiles.append(Tile("best test accuracy", scales.percent(best), f"{facts.unit} {at}"))
    if accuracy:
        at = accuracy.step[-1]
        tiles.append(Tile("final test accuracy", scales.percent(accuracy.value[-1]), f"{facts.unit} {at}"))
    loss = facts.series.get("test/loss") or facts.series.get("train/loss")
    if loss:
        which = "test loss" if "test/loss" in facts.series else "train loss"
        tiles.append(Tile(f"final {which}", scales.plain(loss.value[-1]), f"{facts.unit} {loss.step[-1]}"))
    if "step" in manifest or "num_steps" in manifest:
        of = manifest.get("num_steps")
        tiles.append(Tile(f"{facts.unit}s", str(manifest.get("step", 0)), f"of {of}" if of else ""))
    up, down = (_total(facts.series.get(f"comm/{way}_bytes")) for way in ("uplink", "downlink"))
    if up or down:
        tiles.append(Tile("sent in all", scales.size(up + down), f"{scales.size(up)} up, {scales.size(down)} down"))
    if facts.num_clients:
        seen = len({client for clients in facts.rounds.values() for client in clients})
        tiles.append(Tile("clients", f"{facts.num_clients:,}", f"{seen:,} took part"))
    return tiles + pipeline_page.tiles(facts)


def _learning(facts: Facts) -> Section:
    figures, over = [], charts.steps(facts.unit)
    accuracy = facts.series.get("test/accuracy")
    rate = Axis("test accuracy", scales.percent)
    if accuracy:
        curve = Line("test accuracy", accuracy.step, accuracy.value)
        figures.append(Figure("Test accuracy", charts.lines([curve], over, rate)))
    losses = [(name, facts.series[name]) for name in ("test/loss", "train/loss") if name in facts.series]
    if losses:
        curves = [Line(name.replace("/", " "), series.step, series.value) for name, series in losses]
        title = " and ".join(c.label for c in curves).capitalize()
        figures.append(Figure(title, charts.lines(curves, over, Axis(""))))
    norm = facts.series.get("train/gradient_norm")
    if norm:
        curve = Line("gradient norm", norm.step, norm.value)
        figures.append(Figure("Gradient norm before clipping", charts.lines([curve], over, Axis(""))))
    if accuracy and _bends(accuracy):
        curve = Line("test accuracy", accuracy.virtual_s, accuracy.value)
        picture = charts.lines([curve], Axis("virtual time (simulated)", scales.duration, zero=True), rate)
        figures.append(Figure("Test accuracy over virtual time", picture))
    if accuracy:
        sent = _sent_until(facts)
        if sent[-1:] > [0.0]:
            curve = Line("test accuracy", [sent[min(step, len(sent) - 1)] for step in accuracy.step], accuracy.value)
            picture = charts.lines([curve], Axis("sent, up and down", scales.size, zero=True), rate)
            figures.append(Figure("Test accuracy over bytes", picture))
    note = "" if figures else "No metric has been recorded."
    return Section("curves", "Learning curves", figures=figures, note=note)


def _bytes(facts: Facts) -> Section | None:
    figures = []
    for title, name in _TRAFFIC:
        series = facts.series.get(name)
        if series and (name != "comm/boundary_bytes" or _total(series)):  # stages of one process send nothing
            layer = (title.split(",")[0].lower(), series.value)
            picture = charts.stacked(series.step, [layer], charts.steps(facts.unit), Axis("bytes", scales.size))
            figures.append(Figure(title, picture, caption=f"{scales.size(_total(series))} in all"))
    return Section("bytes", f"Bytes by {facts.unit}", figures=figures) if figures else None


def _time(facts: Facts) -> Section | None:
    known = [(label, facts.series[name]) for label, name in _TIMES if name in facts.series]
    if not known:
        return None
    steps = sorted({step for _, series in known for step in series.step})
    layers = []
    for label, series in known:
        by_step = dict(zip(series.step, series.value, strict=True))
        layers.append((label, [by_step.get(step, 0.0) for step in steps]))
    if "time/evaluate_s" in facts.series:
        by_step = dict(zip(*(facts.series["time/evaluate_s"][i] for i in (0, 3)), strict=True))
        layers.append(("evaluating", [by_step.get(step, 0.0) for step in steps]))
    totals = [(label, sum(filter(math.isfinite, values))) for label, values in layers]
    parts = pictures.shares([(label, total, scales.duration(total)) for label, total in totals])
    picture = charts.stacked(steps, layers, charts.steps(facts.unit), Axis("seconds", scales.duration))
    figures = [Figure(f"Time by {facts.unit}", picture), Figure("In all", parts)]
    return Section("time", "Where the time went", figures=figures)


def _numbers(facts: Facts) -> Section | None:
    columns = [(title, facts.series[name], show) for title, name, show in _TABLE if name in facts.series]
    steps = sorted({step for _, series, _ in columns for step in series.step})
    if not steps:
        return None
    stride = math.ceil(len(steps) / _MOST_ROWS)
    kept = sorted({*steps[::stride], steps[-1]})
    by_step = [(dict(zip(series.step, series.value, strict=True)), show) for _, series, show in columns]
    rows = [[str(step), *(_cell(values.get(step), show) for values, show in by_step)] for step in kept]
    note = f"Every {stride}th {facts.unit}; all are in metrics.parquet." if stride > 1 else ""
    head = [facts.unit, *(title for title, _, _ in columns)]
    return Section("numbers", "Numbers", head=head, rows=rows, note=note, folded=True)


def _event_note(facts: Facts) -> str:
    if facts.num_timelines:
        left_out = f"Timelines ({facts.num_timelines:,}) and checkpoints ({facts.num_checkpoints:,})"
        return f"{left_out} are in events.jsonl, not here."
    if not facts.rounds:
        return "" if facts.events else "Nothing has been recorded yet."
    return f"Rounds ({len(facts.rounds):,}) and checkpoints ({facts.num_checkpoints:,}) are in events.jsonl, not here."


def _cell(value: float | None, show: Callable[[float], str]) -> str | Markup:
    return "" if value is None else show(value)


def _bends(series: Series) -> bool:
    """Return whether virtual time is known and not proportional to the rounds."""
    first, last = (series.step[0], series.virtual_s[0]), (series.step[-1], series.virtual_s[-1])
    if not all(map(math.isfinite, series.virtual_s)) or last[1] <= first[1] or last[0] == first[0]:
        return False
    slope = (last[1] - first[1]) / (last[0] - first[0])
    gaps = [abs(v - first[1] - slope * (s - first[0])) for s, v in zip(series.step, series.virtual_s, strict=True)]
    return max(gaps) > 0.005 * (last[1] - first[1])


def _sent_until(facts: Facts) -> list[float]:
    """Return the bytes sent in both directions up to each round, from round 0."""
    each: dict[int, float] = {}
    for name in ("comm/uplink_bytes", "comm/downlink_bytes"):
        if name in facts.series:
            for step, value in zip(facts.series[name].step, facts.series[name].value, strict=True):
                each[step] = each.get(step, 0.0) + (value if math.isfinite(value) else 0.0)
    total, sums = 0.0, []
    for step in range(max(each, default=-1) + 1):
        total += each.get(step, 0.0)
        sums.append(total)
    return sums


def _total(series: Series | None) -> float:
    return sum(filter(math.isfinite, series.value)) if series else 0.0
