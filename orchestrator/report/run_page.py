"""The page of one run: which sections it has and what each shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from markupsafe import Markup

from orchestrator.report import (
    charts,
    clients_page,
    defence_page,
    graph_page,
    learning_page,
    links_page,
    local_page,
    peers_page,
    pictures,
    pipeline_page,
    scales,
    sharded_page,
    traffic_page,
    zero_page,
)
from orchestrator.report.adversaries import adversaries, num_own, summed_up
from orchestrator.report.charts import Axis
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
)
from orchestrator.report.reading import Facts

_TIMES = (
    ("compute", "time/compute_s"),
    ("wire", "time/wire_s"),
    ("waiting", "time/wait_s"),
    ("training", "time/step_s"),
)
_TABLE = (
    ("train accuracy", "train/accuracy", scales.percent),
    ("validation accuracy", "val/accuracy", scales.percent),
    ("test accuracy", "test/accuracy", scales.percent),
    ("at clients", "clients/accuracy", scales.percent),
    ("lowest tenth", "clients/accuracy_lowest_tenth", scales.percent),
    ("lowest peer", "test/accuracy_lowest", scales.percent),
    ("spread", "test/accuracy_spread", scales.percent),
    ("attack success", "attack/success", scales.percent),
    ("validation loss", "val/loss", scales.plain),
    ("test loss", "test/loss", scales.plain),
    ("loss at clients", "clients/loss", scales.plain),
    ("train loss", "train/loss", scales.plain),
    ("gradient norm", "train/gradient_norm", scales.plain),
    ("clients", "train/num_clients", scales.plain),
    ("staleness", "train/staleness", scales.plain),
    ("lost", "train/num_lost", scales.plain),
    ("attackers", "robust/num_attackers", scales.plain),
    ("distance", "robust/deviation", scales.plain),
    ("refused", "robust/num_rejected", scales.plain),
    ("heard", "robust/num_heard", scales.plain),
    ("used", "robust/num_used", scales.plain),
    ("messages", "comm/num_messages", scales.count),
    ("lost", "comm/num_lost", scales.count),
    ("up", "comm/uplink_bytes", scales.size),
    ("down", "comm/downlink_bytes", scales.size),
    ("sent", "comm/boundary_bytes", scales.size),
    ("between ways", "comm/exchange_bytes", scales.size),
    ("round time", "time/round_s", scales.duration),
    ("step time", "time/step_s", scales.duration),
)
_IF_ANY = {"train/staleness", "train/num_lost", "robust/num_rejected", "comm/num_lost", "comm/exchange_bytes"}
"""Columns that are left out when they hold zeros alone."""
_MOST_ROWS = 200


def page(facts: Facts) -> Page:
    """Return the page of a run."""
    manifest = facts.manifest
    saved = traffic_page.compression(facts)
    sections = [learning_page.section(facts), peers_page.section(facts), defence_page.section(facts)]
    sections += [clients_page.participation(facts), _gang(facts), graph_page.section(facts)]
    sections += [clients_page.staleness(facts), clients_page.lost(facts)]
    sections += [graph_page.traffic(facts) or traffic_page.section(facts, saved), links_page.section(facts)]
    sections += [_time(facts), clients_page.partition(facts), _numbers(facts)]
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
        tiles=_tiles(facts, saved),
        error=failure(manifest),
        resume=resume_command(facts.path, facts.status),
        sections=[section for section in sections if section is not None],
    )


def _tiles(facts: Facts, saved: traffic_page.Compression | None) -> list[Tile]:
    manifest, on_graph = facts.manifest, facts.unit == "epoch"
    tiles = graph_page.tiles(facts) if on_graph else learning_page.tiles(facts)
    if "step" in manifest or "num_steps" in manifest:
        of = manifest.get("num_steps")
        tiles.append(Tile(f"{facts.unit}s", str(manifest.get("step", 0)), f"of {of}" if of else ""))
    tiles += defence_page.tiles(facts)
    tiles += traffic_page.tiles(facts, saved)
    if facts.serverless:
        tiles.append(peers_page.tile(facts))
    elif facts.num_clients:
        own, found = num_own(facts), adversaries(facts)
        seen = len({client for clients in facts.rounds.values() for client in clients if client < own})
        note = f"{seen:,} took part, {summed_up(found)}" if found.every else f"{seen:,} took part"
        tiles.append(Tile("clients", f"{own:,}", note))
    tiles += _rule(facts)
    if local_page.is_local(facts):
        return tiles + local_page.tiles(facts)
    if zero_page.is_zero(facts):
        return tiles + zero_page.tiles(facts)
    if sharded_page.is_sharded(facts):
        return tiles + sharded_page.tiles(facts)
    return tiles + (graph_page.costs(facts) if on_graph else pipeline_page.tiles(facts))


def _gang(facts: Facts) -> Section | None:
    """Return the section on the workers of a gang whose steps are batches."""
    if zero_page.is_zero(facts):
        return zero_page.section(facts)
    if sharded_page.is_sharded(facts):
        return sharded_page.section(facts)
    return local_page.section(facts) if local_page.is_local(facts) else pipeline_page.section(facts)


def _rule(facts: Facts) -> Iterator[Tile]:
    """Yield what autograd keeps of a client's batch, where clients train by a rule of local learning."""
    told = (facts.partition or {}).get("rule")
    if not isinstance(told, Mapping):
        return
    kept, whole = told.get("kept_bytes"), told.get("backpropagation_bytes")
    if isinstance(kept, int) and isinstance(whole, int) and whole > 0:
        note = f"{scales.percent(kept / whole)} of backpropagation's, by {told.get('name')}"
        yield Tile("kept for backward", scales.memory(kept), note)


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
    columns = [(title, facts.series[name], show) for title, name, show in _TABLE if _shown(facts, name)]
    steps = sorted({step for _, series, _ in columns for step in series.step})
    if not steps:
        return None
    stride = math.ceil(len(steps) / _MOST_ROWS)
    kept = sorted({*steps[::stride], steps[-1]})
    by_step = [(dict(zip(series.step, series.value, strict=True)), show) for _, series, show in columns]
    rows = [[str(step), *(_cell(values.get(step), show) for values, show in by_step)] for step in kept]
    note = f"Every {stride}th {facts.unit}; all are in metrics.parquet." if stride > 1 else ""
    head = [facts.unit, *(title for title, _, _ in columns)]
    if facts.serverless:
        head = [{"up": "sent", "round time": "time"}.get(title, title) for title in head]
    if facts.unit == "epoch":
        head = [{"sent": "between stages", "step time": "time"}.get(title, title) for title in head]
    return Section("numbers", "Numbers", head=head, rows=rows, note=note, folded=True)


def _shown(facts: Facts, name: str) -> bool:
    return name in facts.series and (name not in _IF_ANY or any(facts.series[name].value))


def _event_note(facts: Facts) -> str:
    if facts.num_timelines:
        left_out = f"Timelines ({facts.num_timelines:,}) and checkpoints ({facts.num_checkpoints:,})"
        return f"{left_out} are in events.jsonl, not here."
    if facts.serverless and facts.num_checkpoints:
        return f"Checkpoints ({facts.num_checkpoints:,}) are in events.jsonl, not here."
    if not facts.rounds:
        return "" if facts.events else "Nothing has been recorded yet."
    return f"Rounds ({len(facts.rounds):,}) and checkpoints ({facts.num_checkpoints:,}) are in events.jsonl, not here."


def _cell(value: float | None, show: Callable[[float], str]) -> str | Markup:
    return "" if value is None else show(value)
