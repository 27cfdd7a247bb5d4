"""The search space as values: which trials a search draws, and how a field of a good trial is varied.

Trial n's value of a field is a function of (experiment seed, field, n). So the same file gives the same trials, more
trials extend the list, and another field in the space leaves the draws of the others as they were. No Ray here; what
Optuna draws is up to Optuna.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.config.search import Domain, Pbt, Search
from strategies.seeds import generator

Params = dict[str, Any]

RESAMPLE = 0.25
"""Chance that exploring draws a field anew instead of nudging it."""
FACTORS = (0.8, 1.2)
_ATTEMPTS = 50


def kind_of(domain: Domain) -> tuple[str, list[Any]]:
    """Return a domain as `("uniform", [low, high])`, `("choice", values)` and the like."""
    kind, values = next(iter(domain.model_dump().items()))
    return str(kind), list(values)


def draw(search: Search, seed: int) -> list[Params]:
    """Return the parameters of every trial of a search that draws independently, by trial number.

    All combinations of the grids are tried for each sample of the other fields. Parameters that were drawn before
    are drawn again, since a trial repeated gives the same bits; a space with fewer combinations than trials asked
    for gives fewer trials. The first population of a population-based search may hold equals.
    """
    grids = {field: kind_of(domain)[1] for field, domain in search.space.items() if kind_of(domain)[0] == "grid"}
    drawn = {field: domain for field, domain in search.space.items() if field not in grids}
    samples: list[Params] = []
    distinct = not isinstance(search.algorithm, Pbt)
    for attempt in range(_ATTEMPTS * search.trials):
        sample = {
            field: sample_of(domain, generator(seed, f"search {field}", attempt)) for field, domain in drawn.items()
        }
        if sample not in samples or not distinct:
            samples.append(sample)
        if len(samples) == search.trials or not drawn:
            break
    combinations = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
    trials = [{**sample, **combination} for sample in samples for combination in combinations]
    return [{field: trial[field] for field in search.space} for trial in trials]


def sample_of(domain: Domain, rng: np.random.Generator) -> Any:
    """Return one value of a domain; numbers are rounded to six digits, so that they can be typed."""
    kind, values = kind_of(domain)
    if kind in ("choice", "grid"):
        return values[int(rng.integers(len(values)))]
    low, high = values
    if kind == "randint":
        return int(rng.integers(low, high))
    if kind == "loguniform":
        return _typed(math.exp(rng.uniform(math.log(low), math.log(high))), low, high)
    return _typed(rng.uniform(low, high), low, high)


def explore(params: Mapping[str, Any], space: Mapping[str, Domain], rng: np.random.Generator) -> Params:
    """Return a variation of parameters: each field is nudged, or drawn anew with the chance `RESAMPLE`.

    Numbers are multiplied by 0.8 or 1.2, whole numbers move by at least 1, and choices move to a neighbour in the
    list. Unlike in the paper, nothing leaves its domain.

    Source: Jaderberg et al., Population Based Training of Neural Networks (2017), section 4.1.1, "Perturb" and
        "Resample", which are alternatives there and are mixed here as in Ray Tune.
    """
    varied: Params = {}
    for field, domain in space.items():
        fresh, up = rng.random() < RESAMPLE, bool(rng.integers(2))
        varied[field] = sample_of(domain, rng) if fresh else _nudged(params[field], domain, up)
    return varied


def _nudged(value: Any, domain: Domain, up: bool) -> Any:
    kind, values = kind_of(domain)
    if kind in ("choice", "grid"):
        return values[_neighbour(values, value, up)]
    low, high = values
    moved = value * FACTORS[up] if value >= 0 else value * FACTORS[not up]
    if kind != "randint":
        return _typed(moved, low, high)
    return min(max(max(round(moved), value + 1) if up else min(round(moved), value - 1), low), high - 1)


def _neighbour(values: Sequence[Any], value: Any, up: bool) -> int:
    return min(max(values.index(value) + (1 if up else -1), 0), len(values) - 1)


def _typed(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.6g}"), low), high)
