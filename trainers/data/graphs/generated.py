"""Graphs made up from a seed, of any size that memory holds: for tests, for scaling studies, to try things out.

Both kinds plant classes as communities and draw features around one centre a class, so that neighbours say something
about a vertex which its own features, being noisy, do not. Classes, edges, features and split are drawn from streams of
their own: other features leave the edges as they are. What is left out: directed edges, and classes of unequal sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from strategies import seeds
from trainers.data.base import DataError
from trainers.data.graphs.base import GraphData
from trainers.data.graphs.edges import in_neighbours
from trainers.data.graphs.splits import draw

Pairs = Callable[[int], tuple[np.ndarray, np.ndarray]]

_CENTER_RADIUS = 2.5
_CHUNK_VALUES = 1 << 22
_MOST_TRIES = 1000


def sbm(
    *,
    seed: int,
    vertices: int = 1000,
    classes: int = 5,
    degree: float = 10.0,
    within: float = 0.8,
    features: int = 32,
    noise: float = 2.0,
    train_fraction: float = 0.5,
    val_fraction: float = 0.25,
) -> GraphData:
    """Return a graph of the stochastic block model with features that depend on the class.

    All pairs of one class are equally likely neighbours, and so are all pairs of different ones.

    Args:
        degree: mean number of neighbours; the graph has `vertices * degree` directed edges.
        within: share of the edges that join vertices of one class; 1 / classes is no community at all.
        noise: standard deviation of features around their class's centre, which is about 2.5 away from 0.

    Raises:
        DataError: when there are not twice as many pairs as edges, or a split would be empty.

    Source: Holland, Laskey, Leinhardt 1983, "Stochastic blockmodels: first steps", in the planted partition of Condon
    and Karp 2001; with Gaussian features as in Deshpande, Montanari, Mossel, Sen 2018, arXiv:1807.09596. Deviation: the
    numbers of edges within and between classes are fixed, not binomial.
    """
    weights = np.ones(vertices)
    return _planted("sbm", seed, weights, classes, degree, within, features, noise, train_fraction, val_fraction)


def power_law(
    *,
    seed: int,
    vertices: int = 1000,
    classes: int = 5,
    degree: float = 10.0,
    exponent: float = 2.5,
    within: float = 0.8,
    features: int = 32,
    noise: float = 2.0,
    train_fraction: float = 0.5,
    val_fraction: float = 0.25,
) -> GraphData:
    """Return a graph whose degrees follow a power law, with planted classes and features that depend on them.

    Each vertex has a weight drawn from a Pareto law, and neighbours are drawn in proportion to the product of weights,
    within a class or between classes: the configuration model in its form with expected degrees.

    Args:
        exponent: the share of vertices with degree k falls as `k ** -exponent`; above 2, so that degrees have a mean.
        Others: as for `sbm`.

    Raises:
        DataError: as `sbm` does.

    Source: Chung and Lu 2002, "Connected components in random graphs with given expected degree sequences"; with
    classes, Karrer and Newman 2011, arXiv:1008.3926, equation 14. Deviations: the numbers of edges within and
    between classes are fixed, not Poisson; weights are cut at the square root of their sum, beyond which a pair would
    be joined more than once; repeated edges are drawn anew.
    """
    uniform = seeds.generator(seed, "graph/weights").random(vertices)
    weights = (1 - uniform) ** (-1 / (exponent - 1))
    weights *= degree / weights.mean()
    np.minimum(weights, np.sqrt(weights.sum()), out=weights)
    return _planted("power-law", seed, weights, classes, degree, within, features, noise, train_fraction, val_fraction)


def needed_bytes(vertices: int, degree: float, features: int) -> int:
    """Return about how much memory it takes to make a graph at most; tests hold it against what is measured."""
    chunk = 4 * min(vertices * features, _CHUNK_VALUES)
    return int(vertices * (4 * features + 100 + 40 * degree) + chunk)


def _planted(
    name: str,
    seed: int,
    weights: np.ndarray,
    classes: int,
    degree: float,
    within: float,
    features: int,
    noise: float,
    train_fraction: float,
    val_fraction: float,
) -> GraphData:
    num_vertices = len(weights)
    if classes * 2 > num_vertices:
        raise DataError(f"graph {name} has {num_vertices} vertices for {classes} classes", "each class has 2 at least")
    # Places count vertices class by class; who is in which place is drawn, so that numbers tell nothing about classes.
    vertex_at = seeds.generator(seed, "graph/classes").permutation(num_vertices)
    starts = np.arange(classes + 1) * num_vertices // classes
    y = np.empty(num_vertices, np.int64)
    y[vertex_at] = np.repeat(np.arange(classes), np.diff(starts))
    codes = _edges(name, seed, weights, starts, round(num_vertices * degree / 2), within)
    src, dst = np.divmod(codes, num_vertices)
    rows = in_neighbours(name, vertex_at[src], vertex_at[dst], num_vertices, undirected=True)
    masks = draw(name, np.ones(num_vertices, bool), train_fraction, val_fraction, seed)
    x = _features(seed, y, classes, features, noise)
    return GraphData(name, x, y, rows.indptr, rows.indices, *masks, classes)


def _features(seed: int, y: np.ndarray, classes: int, features: int, noise: float) -> np.ndarray:
    rng = seeds.generator(seed, "graph/features")
    centers = (rng.normal(size=(classes, features)) * (_CENTER_RADIUS / np.sqrt(features))).astype(np.float32)
    x = np.empty((len(y), features), np.float32)
    step = max(1, _CHUNK_VALUES // features)
    for start, stop in pairwise([*range(0, len(y), step), len(y)]):
        rng.standard_normal(dtype=np.float32, out=x[start:stop])
        x[start:stop] *= noise
        x[start:stop] += centers[y[start:stop]]
    return x


def _edges(name: str, seed: int, weights: np.ndarray, starts: np.ndarray, num_edges: int, within: float) -> np.ndarray:
    """Return different pairs of places as `smaller * number of vertices + larger`."""
    sizes, count = np.diff(starts), len(weights)
    cumulative = np.concatenate([[0.0], np.cumsum(weights)])
    bounds = cumulative[starts]  # of each class, in weight
    shares, total = np.diff(bounds), bounds[-1]
    alike = bool((weights == 1).all())
    rng = seeds.generator(seed, "graph/edges")

    def place(points: np.ndarray) -> np.ndarray:
        found = points.astype(np.int64) if alike else np.searchsorted(cumulative, points, side="right") - 1
        return np.clip(found, 0, count - 1)

    def same(number: int) -> tuple[np.ndarray, np.ndarray]:
        own = rng.choice(len(sizes), number, p=shares**2 / (shares**2).sum())
        first, second = (place(bounds[own] + rng.random(number) * shares[own]) for _ in range(2))
        return first, second

    def different(number: int) -> tuple[np.ndarray, np.ndarray]:
        rest = total - shares
        own = rng.choice(len(sizes), number, p=shares * rest / (shares * rest).sum())
        first = place(bounds[own] + rng.random(number) * shares[own])
        points = rng.random(number) * rest[own]
        return first, place(points + np.where(points >= bounds[own], shares[own], 0.0))

    inside = round(num_edges * within)
    pairs_within = int((sizes * (sizes - 1) // 2).sum())
    parts = []
    for what, pairs, number, available in (
        ("within classes", same, inside, pairs_within),
        ("between classes", different, num_edges - inside, count * (count - 1) // 2 - pairs_within),
    ):
        if 2 * number > available:
            raise DataError(
                f"graph {name} wants {number:,} edges {what}, where there are {available:,} pairs of vertices",
                "at most half of them are joined: lower data.degree, or raise data.vertices",
            )
        parts.append(_different(name, pairs, number, count, rng))
    return np.concatenate(parts)


def _different(name: str, pairs: Pairs, number: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw pairs until there are as many different ones as asked for."""
    codes = np.empty(0, np.int64)
    for _ in range(_MOST_TRIES):
        missing = number - len(codes)
        if not missing:
            return codes
        first, second = pairs(missing + missing // 20 + 16)
        proper = first != second
        new = np.unique(np.minimum(first, second)[proper] * count + np.maximum(first, second)[proper])
        new = new[~np.isin(new, codes)] if len(codes) else new
        codes = np.concatenate([codes, rng.permutation(new)[:missing] if len(new) > missing else new])
    raise DataError(
        f"graph {name} found only {len(codes):,} of {number:,} different edges",
        "lower data.degree, or raise data.exponent",
    )
