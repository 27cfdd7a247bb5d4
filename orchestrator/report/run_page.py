"""The page of one run: which sections it has and what each shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from markupsafe import Markup

from orchestrator.report import charts, pictures, scales
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

_ROUND = Axis("round", scales.count, whole=True)
_TIMES = (("compute", "time/compute_s"), ("wire", "time/wire_s"), ("waiting", "time/wait_s"))
_TABLE = (
    ("test accuracy", "test/accuracy", scales.percent),
    ("test loss", "test/loss", scales.plain),
    ("train loss", "train/loss", scales.plain),
    ("clients", "train/num_clients", scales.plain),
    ("up", "comm/uplink_bytes", scales.size),
    ("down", "comm/downlink_bytes", scales.size),
    ("round time", "time/round_s", scales.duration),
)
_MOST_ROWS = 200
_MOST_RASTER_CLIENTS = 400


def page(facts: Facts) -> Page:
    """Return the page of a run."""
    manifest = facts.manifest
    sections = [_learning(facts), _clients(facts), _bytes(facts), _time(facts), _partition(facts), _numbers(facts)]
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
        tiles.append(Tile("best test accuracy", scales.percent(best), f"round {at}"))
    if accuracy:
        tiles.append(Tile("final test accuracy", scales.percent(accuracy.value[-1]), f"round {accuracy.step[-1]}"))
    loss = facts.series.get("test/loss") or facts.series.get("train/loss")
    if loss:
        which = "test loss" if "test/loss" in facts.series else "train loss"
        tiles.append(Tile(f"final {which}", scales.plain(loss.value[-1]), f"round {loss.step[-1]}"))
    if "step" in manifest or "num_steps" in manifest:
        of = manifest.get("num_steps")
        tiles.append(Tile("rounds", str(manifest.get("step", 0)), f"of {of}" if of else ""))
    up, down = (_total(facts.series.get(f"comm/{way}_bytes")) for way in ("uplink", "downlink"))
    if up or down:
        tiles.append(Tile("sent in all", scales.size(up + down), f"{scales.size(up)} up, {scales.size(down)} down"))
    if facts.num_clients:
        seen = len({client for clients in facts.rounds.values() for client in clients})
        tiles.append(Tile("clients", f"{facts.num_clients:,}", f"{seen:,} took part"))
    return tiles


def _learning(facts: Facts) -> Section:
    figures = []
    accuracy = facts.series.get("test/accuracy")
    rate = Axis("test accuracy", scales.percent)
    if accuracy:
        curve = Line("test accuracy", accuracy.step, accuracy.value)
        figures.append(Figure("Test accuracy", charts.lines([curve], _ROUND, rate)))
    losses = [(name, facts.series[name]) for name in ("test/loss", "train/loss") if name in facts.series]
    if losses:
        curves = [Line(name.replace("/", " "), series.step, series.value) for name, series in losses]
        figures.append(
            Figure(" and ".join(c.label for c in curves).capitalize(), charts.lines(curves, _ROUND, Axis("")))
        )
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


def _clients(facts: Facts) -> Section | None:
    if not facts.rounds or not facts.num_clients:
        return None
    taken = Counter(client for clients in facts.rounds.values() for client in clients)
    often = [taken.get(client, 0) for client in range(facts.num_clients)]
    least, most = min(often), max(often)
    width = max(1, math.ceil((most - least + 1) / 24))
    groups = Counter((value - least) // width for value in often)
    indices = range((most - least) // width + 1)
    starts = [least + index * width for index in indices]
    labels = [str(start) if width == 1 else f"{start}\N{EN DASH}{start + width - 1}" for start in starts]
    histogram = charts.bars(
        labels,
        [groups[index] for index in indices],
        Axis("rounds a client took part in"),
        Axis("clients", scales.count, whole=True),
    )
    figures = [Figure("Clients by number of rounds taken part in", histogram)]
    if "train/num_examples" in facts.series:
        examples = facts.series["train/num_examples"]
        curve = Line("examples", examples.step, examples.value)
        figures.append(
            Figure("Examples trained on", charts.lines([curve], _ROUND, Axis("examples", scales.count, zero=True)))
        )
    note = ""
    if facts.num_clients <= _MOST_RASTER_CLIENTS:
        picture = pictures.participation(facts.rounds, facts.num_clients)
        figures.append(Figure("Who took part when", picture, wide=True))
    else:
        note = f"With {facts.num_clients:,} clients, the picture of who took part when is left out."
    return Section("clients", "Client participation", figures=figures, note=note)


def _bytes(facts: Facts) -> Section | None:
    figures = []
    for title, name in (("Up, from clients", "comm/uplink_bytes"), ("Down, to clients", "comm/downlink_bytes")):
        series = facts.series.get(name)
        if series:
            layer = (title.split(",")[0].lower(), series.value)
            picture = charts.stacked(series.step, [layer], _ROUND, Axis("bytes", scales.size))
            figures.append(Figure(title, picture, caption=f"{scales.size(_total(series))} in all"))
    return Section("bytes", "Bytes by round", figures=figures) if figures else None


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
    picture = charts.stacked(steps, layers, _ROUND, Axis("seconds", scales.duration))
    figures = [Figure("Time by round", picture), Figure("In all", parts)]
    return Section("time", "Where the time went", figures=figures)


def _partition(facts: Facts) -> Section | None:
    partition = facts.partition
    if not partition or not partition.get("clients"):
        return None
    clients = partition["clients"]
    counts = [list(client["counts"]) for client in clients]
    names = [f"client {name}" if name.isdecimal() else name for name in (str(client["name"]) for client in clients)]
    totals = [sum(column) for column in counts]
    num_classes = max(map(len, counts))
    class_names = [str(name) for name in partition.get("class_names") or range(num_classes)]
    sizes = partition.get("sizes", {})
    shown = f", the first {len(clients)} shown" if len(clients) < facts.num_clients else ""
    spread = ", ".join(f"{key} {scales.count(sizes[key])}" for key in ("min", "median", "max") if key in sizes)
    figures = [Figure("Examples a client", pictures.sizes(totals, names), wide=True)]
    if num_classes > 1:
        heat = pictures.classes(counts, class_names, names)
        figures.append(
            Figure("Classes a client holds", heat, wide=True, caption="Stronger is more; square-root scale.")
        )
    note = f"{partition.get('kind', 'unknown')} over {facts.num_clients:,} clients{shown}. Examples a client: {spread}."
    return Section("partition", "Partition of the data", figures=figures, note=note)


def _numbers(facts: Facts) -> Section | None:
    columns = [(title, facts.series[name], show) for title, name, show in _TABLE if name in facts.series]
    steps = sorted({step for _, series, _ in columns for step in series.step})
    if not steps:
        return None
    stride = math.ceil(len(steps) / _MOST_ROWS)
    kept = sorted({*steps[::stride], steps[-1]})
    by_step = [(dict(zip(series.step, series.value, strict=True)), show) for _, series, show in columns]
    rows = [[str(step), *(_cell(values.get(step), show) for values, show in by_step)] for step in kept]
    note = f"Every {stride}th round; all are in metrics.parquet." if stride > 1 else ""
    head = ["round", *(title for title, _, _ in columns)]
    return Section("numbers", "Numbers", head=head, rows=rows, note=note, folded=True)


def _event_note(facts: Facts) -> str:
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
