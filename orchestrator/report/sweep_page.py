"""The page of a sweep: which trial won, how each parameter mattered, and the winner's configuration."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from markupsafe import Markup

from orchestrator.report import charts, scales
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
    resume_command,
    tone,
)
from orchestrator.report.reading import Facts, read
from orchestrator.rundir import RunDirectory, find_runs


class Trial(NamedTuple):
    """One trial: its number, parameters, the last value of the metric and everything else."""

    number: int
    params: dict[str, Any]
    value: float | None
    at: int | None
    facts: Facts


def page(run: RunDirectory) -> Page:
    """Return the page of a sweep."""
    facts = read(run)
    manifest = facts.manifest
    search = manifest.get("search") or {}
    metric, mode = str(search.get("metric", "test/accuracy")), str(search.get("mode", "max"))
    show = scales.percent if metric.endswith("accuracy") else scales.plain
    trials = ranked([_trial(trial, metric) for trial in find_runs(run.path / "trials")], mode)
    best = trials[0] if trials and trials[0].value is not None else None
    unit = trials[0].facts.unit if trials else "round"
    names = list(dict.fromkeys([*(search.get("space") or {}), *(name for trial in trials for name in trial.params)]))
    sections = [
        _table(trials, names, metric, show, best, unit),
        _curves(trials, metric, show, unit),
        _parameters(trials, names, search.get("space") or {}, Axis(metric, show), best),
    ]
    if best:
        title = f"Best configuration: trial {best.number}"
        sections.append(Section("best", title, code=highlight(best.facts.config), folded=True, open=True))
    sections += [
        Section("events", "Events", rows=event_rows(facts.events)),
        Section("config", "Resolved configuration of the sweep", code=highlight(facts.config), folded=True),
        Section("environment", "Environment", pairs=environment_rows(manifest)),
    ]
    return Page(
        title=str(manifest.get("name", run.path.name)),
        kind="sweep",
        status=facts.status,
        facts=[
            ("sweep", str(manifest.get("id", run.path.name))),
            ("started", minutes(manifest.get("created"))),
            ("seed", str(manifest.get("seed", "not recorded"))),
            ("duration", scales.duration(facts.busy_s)),
            ("searches for", f"{'largest' if mode == 'max' else 'least'} {metric}"),
        ],
        tiles=_tiles(trials, best, metric, show),
        error=failure(manifest),
        resume=resume_command(run.path, facts.status),
        sections=[section for section in sections if section is not None],
    )


def ranked(trials: list[Trial], mode: str) -> list[Trial]:
    """Return the trials best first; those without a finite value last, by number."""
    sign = -1.0 if mode == "max" else 1.0
    return sorted(trials, key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number))


def _trial(run: RunDirectory, metric: str) -> Trial:
    facts = read(run)
    told = facts.manifest.get("trial") or {}
    number = int(told.get("number", 0))
    if facts.status == "FINISHED" and int(facts.manifest.get("step") or 0) < int(facts.manifest.get("num_steps") or 0):
        facts = facts._replace(status="STOPPED")  # by the search
    series = facts.series.get(metric)
    finite = [(v, s) for v, s in zip(series.value, series.step, strict=True) if math.isfinite(v)] if series else []
    value, at = finite[-1] if finite and facts.status != "FAILED" else (None, None)
    return Trial(number, dict(told.get("params") or {}), value, at, facts)


def _tiles(trials: list[Trial], best: Trial | None, metric: str, show: scales.Format) -> list[Tile]:
    tiles = []
    if best and best.value is not None:
        tiles.append(Tile(f"best {metric}", show(best.value), f"trial {best.number}, {best.facts.unit} {best.at}"))
    states = [trial.facts.status for trial in trials]
    told = ", ".join(f"{states.count(state)} {state.lower()}" for state in dict.fromkeys(states))
    tiles.append(Tile("trials", str(len(trials)), told))
    if best:
        tiles += [Tile(_short(name), value_text(value), name) for name, value in best.params.items()][:4]
    return tiles


def _table(
    trials: list[Trial], names: list[str], metric: str, show: scales.Format, best: Trial | None, unit: str
) -> Section:
    rows: list[list[str | Markup]] = []
    for trial in trials:
        label: str | Markup = str(trial.number)
        if (trial.facts.path / "report.html").exists():
            label = Markup('<a href="trials/{}/report.html">{}</a>').format(trial.facts.path.name, trial.number)
        value: str | Markup = "none" if trial.value is None else show(trial.value)
        if trial is best:
            value = Markup("<strong>{}</strong>").format(value)
        status = Markup('<span class="status {}">{}</span>').format(tone(trial.facts.status), trial.facts.status)
        steps = str(trial.facts.manifest.get("step", 0))
        params = [value_text(trial.params[name]) if name in trial.params else "" for name in names]
        rows.append([label, value, *params, steps, scales.duration(trial.facts.busy_s), status])
    head = ["trial", metric, *names, f"{unit}s", "duration", "status"]
    note = f"Best first; of each trial its last {unit} counts, as in best.yaml." if trials else "No trial has started."
    return Section("trials", "Trials", head=head, rows=rows, note=note)


def _curves(trials: list[Trial], metric: str, show: scales.Format, unit: str) -> Section | None:
    shown = [trial for trial in trials if metric in trial.facts.series]
    if not shown:
        return None
    curves = []
    for rank, trial in list(enumerate(shown))[::-1]:
        series = trial.facts.series[metric]
        curves.append((rank, Line(f"trial {trial.number}", series.step, series.value, strong=rank < 5)))
    colours = [rank if rank < 5 else 7 for rank, _ in curves]
    axis = charts.steps(unit)
    picture = charts.lines([c for _, c in curves], axis, Axis(metric, show), colours=colours, keyed=False)
    key = charts.legend([f"trial {trial.number}" for trial in shown[:5]], "others grey" if len(shown) > 5 else "")
    return Section("curves", "Learning curves", figures=[Figure(f"{metric} over {unit}s", picture + key, wide=True)])


def _parameters(
    trials: list[Trial], names: list[str], space: dict[str, Any], metric: Axis, best: Trial | None
) -> Section | None:
    figures = []
    for name in names:
        having = [trial for trial in trials if trial.value is not None and name in trial.params]
        if having:
            figures.append(Figure(name, _parameter(name, having, space.get(name) or {}, metric, best)))
    if not figures:
        return None
    return Section("parameters", f"{metric.label} by parameter", figures=figures, note="The best trial is ringed.")


def _parameter(name: str, trials: list[Trial], domain: dict[str, Any], metric: Axis, best: Trial | None) -> Markup:
    values = [trial.params[name] for trial in trials]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        places = [float(value) for value in values]
        log = min(places) > 0 and ("loguniform" in domain or max(places) > 100 * min(places))
        whole = all(isinstance(value, int) for value in values)
        axis = Axis(name, whole=whole and not log, pad=0 if log else 0.05 * (max(places) - min(places)))
    else:
        kinds = sorted({value_text(value) for value in values})
        places = [float(kinds.index(value_text(value))) for value in values]
        log = False
        axis = Axis(name, lambda at: kinds[int(at)][:16] if 0 <= at < len(kinds) else "", whole=True, pad=0.5)
    points = []
    for place, trial in zip(places, trials, strict=True):
        value = trial.value or 0.0
        hint = f"trial {trial.number}\n{name}: {value_text(trial.params[name])}\n{metric.label}: {metric.show(value)}"
        points.append((place, value, hint))
    winner = next((index for index, trial in enumerate(trials) if trial is best), None)
    return charts.scatter(points, axis, metric, winner, log)


def _short(name: str) -> str:
    """Return the telling part of a dotted field: `model` for `model.name`."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in ("name", "kind") else parts[-1]


def value_text(value: Any) -> str:
    """Return a parameter's value as short text."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
