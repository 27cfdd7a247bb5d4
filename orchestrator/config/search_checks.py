"""Whether a search can be carried out: its fields exist, every candidate is a valid value, the algorithm suits.

Candidates are laid over the experiment one at a time; combinations of them are not tried. An interval is tried at
its ends and at one point inside.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.config import overrides as laying
from orchestrator.config.checks import Finding
from orchestrator.config.document import Path
from orchestrator.config.explain import did_you_mean, dotted, problems_of
from orchestrator.config.graph_pipeline import GraphPipeline
from orchestrator.config.overrides import Override, nearest_field
from orchestrator.config.schema import Asha, Experiment, Optuna, Pbt
from orchestrator.config.search import GRAPH_METRICS, METRICS
from orchestrator.errors import Problem

Check = Callable[[Experiment], list[Finding]]

_FIXED = ("name", "search", "storage", "tracking", "cluster", "checkpoint")
_INSIDE = 0.3819660113
_MOST_CANDIDATES = 200


def check_search(
    experiment: Experiment, raw: Mapping[str, Any], check: Check, present: list[Finding]
) -> Iterator[Finding]:
    """Yield what is wrong with the `search` section.

    Args:
        check: the checks of an experiment without its search. present: what they say of the experiment itself.
    """
    search = experiment.search
    assert search is not None
    base = {key: value for key, value in raw.items() if key != "search"}
    known = {(finding.path, finding.message) for finding in present}
    for field, domain in search.space.items():
        yield from _field(field, domain.model_dump(), base, check, known)
    yield from _algorithm(experiment)
    metrics = (*METRICS, *GRAPH_METRICS) if isinstance(experiment.strategy, GraphPipeline) else METRICS
    if search.metric not in metrics:
        message = f"got {search.metric!r}, expected a metric that a run records"
        yield Finding(("search", "metric"), message, did_you_mean(search.metric, metrics))


def _field(
    field: str, domain: Mapping[str, Any], base: Mapping[str, Any], check: Check, known: set[Any]
) -> Iterator[Finding]:
    here: Path = ("search", "space", field)
    top = field.split(".")[0]
    if not all(field.split(".")):
        yield Finding(here, f"got {field!r}, expected a dotted field", "such as: strategy.client.optimizer.lr")
        return
    if top in _FIXED:
        yield Finding(here, f"{top} is the same for all trials", "search data, model, strategy or seed")
        return
    kind, values = next(iter(domain.items()))
    of_base = _validate(base)[1]
    for place, value in _candidates(kind, values):
        merged, touched, wrong = laying.apply(dict(base), [Override(tuple(field.split(".")), value)])
        if wrong:
            yield Finding(here, wrong[0].message, wrong[0].hint)
            return
        trial, faults = _validate(merged)
        faults = {path: problem for path, problem in faults.items() if path not in of_base}
        if faults:
            path, problem = next(iter(faults.items()))
            if problem.message.startswith("unknown key") and len(path) <= len(touched[0]):
                near = nearest_field(field, base)
                yield Finding(here, "no such field", f"did you mean {near}?" if near else problem.hint)
                return
            whole = "expected a whole number" in problem.message and "uniform" in kind
            hint = f"for whole numbers use randint: [{values[0]:g}, {values[-1]:g}]" if whole else problem.hint
            inner = f"{problem.path}: " if problem.path != dotted(touched[0]) else ""
            yield Finding((*here, kind, *place), f"{inner}{problem.message}", hint)
            if kind not in ("choice", "grid"):
                return
        if trial is None:
            continue  # the experiment itself is at fault, and says so
        for finding in check(trial):
            if (finding.path, finding.message) not in known:
                yield Finding(
                    (*here, kind, *place), f"{dotted(finding.path)}: {finding.message}", finding.hint, finding.reads
                )


def _candidates(kind: str, values: list[Any]) -> Iterator[tuple[Path, Any]]:
    """Yield where in the domain a candidate stands, and the candidate."""
    if kind in ("choice", "grid"):
        yield from (((index,), value) for index, value in enumerate(values[:_MOST_CANDIDATES]))
        return
    low, high = values
    yield (0,), low
    if kind == "randint":
        yield (1,), high - 1
        return
    yield (), low + (high - low) * _INSIDE
    yield (1,), high


def _validate(raw: Mapping[str, Any]) -> tuple[Experiment | None, dict[Path, Problem]]:
    """Return the experiment, or what is wrong with it by path."""
    try:
        return Experiment.model_validate({"name": "unnamed", **raw}), {}
    except ValidationError as error:
        return None, {path: problem for path, problem in problems_of(error, raw, lambda path: "") if problem}


def _algorithm(experiment: Experiment) -> Iterator[Finding]:
    search = experiment.search
    assert search is not None
    algorithm, rounds = search.algorithm, experiment.strategy.num_steps
    here: Path = ("search", "algorithm")
    grids = [field for field, domain in search.space.items() if "grid" in domain.model_dump()]
    reads: tuple[Path, ...] = (tuple(experiment.strategy.steps_field.split(".")),)
    if isinstance(algorithm, Optuna) and importlib.util.find_spec("optuna") is None:
        yield Finding((*here, "name"), "got 'optuna', which is not installed", "pip install 'orchestrator[optuna]'")
    if isinstance(algorithm, Optuna | Pbt) and grids:
        message = f"{algorithm.name} draws its own values and takes no grid"
        yield Finding(("search", "space", grids[0], "grid"), message, "choice: [...] in place of grid", (here,))
    every = experiment.evaluate_every
    for kind, name in ((Asha, "grace_rounds"), (Pbt, "interval_rounds")):
        if not isinstance(algorithm, kind):
            continue
        between = getattr(algorithm, name)
        if between >= rounds:
            hint = f"search.algorithm.{name}={max(1, rounds // 4)}"
            message = f"got {between}, expected less than the {rounds} rounds of a trial"
            yield Finding((*here, name), message, hint, reads)
        elif search.metric.startswith("test/") and every > between:
            message = f"got {every}, but {algorithm.name} compares {search.metric} every {between} rounds"
            yield Finding(("evaluate", "every"), message, f"evaluate.every={between}", (here,))
    if isinstance(algorithm, Pbt):
        if search.trials < 2:
            yield Finding(
                ("search", "trials"), "got 1, but pbt compares trials with each other", "search.trials=4", (here,)
            )
        for field in search.space:
            if not field.startswith("strategy.") or field == experiment.strategy.steps_field:
                message = "cannot change while a trial trains, as pbt does"
                yield Finding(("search", "space", field), message, "search it with random or asha", (here,))
