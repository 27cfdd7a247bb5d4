"""Graphs made from a seed: what is promised of their edges, degrees, classes and features, and what is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from orchestrator.config.schema import Experiment
from orchestrator.errors import ConfigError
from orchestrator.preparing import prepare
from trainers.data.base import DataError
from trainers.data.graphs import load
from trainers.data.graphs.base import ARRAYS
from trainers.data.graphs.generated import _edges, needed_bytes

KINDS = ("sbm", "power-law")


def same(one, other, *fields: str) -> bool:
    return all(np.array_equal(getattr(one, field), getattr(other, field)) for field in fields)


def ends(graph) -> tuple[np.ndarray, np.ndarray]:
    return graph.indices, np.repeat(np.arange(graph.num_vertices), np.diff(graph.indptr))


@pytest.mark.parametrize("name", KINDS)
def test_a_graph_is_a_function_of_its_seed_and_its_edges_not_of_its_features(name) -> None:
    section = {"name": name, "vertices": 300}
    graph = load(section, seed=1)
    assert same(graph, load(section, seed=1), *ARRAYS)
    assert not same(graph, load(section, seed=2), "indices") and not same(graph, load(section, seed=2), "y")
    other = load({**section, "features": 3, "noise": 0.0, "train_fraction": 0.1}, seed=1)
    assert same(graph, other, "y", "indptr", "indices") and other.num_features == 3


@pytest.mark.parametrize("name", KINDS)
def test_edges_classes_and_splits_are_as_many_as_asked_for(name) -> None:
    graph = load({"name": name, "vertices": 501, "degree": 8, "classes": 4, "within": 0.7}, seed=0)
    src, dst = ends(graph)
    assert graph.num_edges == 2 * round(501 * 8 / 2) and graph.num_vertices == 501 and graph.num_classes == 4
    assert (graph.y[src] == graph.y[dst]).sum() == 2 * round(501 * 4 * 0.7)
    assert set(zip(src.tolist(), dst.tolist(), strict=True)) == set(zip(dst.tolist(), src.tolist(), strict=True))
    assert sorted(np.bincount(graph.y).tolist()) == [125, 125, 125, 126]
    assert [int(mask.sum()) for mask in (graph.train_mask, graph.val_mask, graph.test_mask)] == [250, 126, 125]


def test_vertex_numbers_tell_nothing_about_classes() -> None:
    y = load({"name": "sbm", "vertices": 2000, "classes": 2}, seed=0).y
    assert abs(np.corrcoef(np.arange(2000), y)[0, 1]) < 0.1


def test_every_pair_of_a_class_is_as_likely_as_any_other_and_likewise_between_classes() -> None:
    starts, runs = np.array([0, 3, 8]), 250
    counts = np.zeros((8, 8))
    for seed in range(runs):
        codes = _edges("g", seed, np.ones(8), starts, 10, 0.5)
        counts[codes // 8, codes % 8] += 1
    own = np.repeat([0, 1], [3, 5])
    above = np.triu(np.ones((8, 8), bool), 1)
    for pairs in (above & (own[:, None] == own), above & (own[:, None] != own)):
        share = 5 / pairs.sum()
        spread = np.sqrt(share * (1 - share) / runs)
        assert np.abs(counts[pairs] / runs - share).max() < 4.5 * spread
    assert counts[~above].sum() == 0


def test_degrees_follow_the_weights_and_their_power() -> None:
    weights = np.tile([1.0, 1.0, 2.0, 8.0], 500)
    codes = _edges("g", 0, weights, np.array([0, 1000, 2000]), 6000, 0.5)
    degrees = np.bincount(np.concatenate([codes // 2000, codes % 2000]), minlength=2000)
    means = degrees.reshape(-1, 4).mean(axis=0)
    assert np.abs(means / (6 / 3 * np.array([1, 1, 2, 8])) - 1).max() < 0.1
    for exponent in (2.2, 3.0):
        graph = load({"name": "power-law", "vertices": 20000, "degree": 8, "exponent": exponent, "features": 1}, seed=0)
        degrees = np.diff(graph.indptr)
        tail = degrees[degrees >= 20]
        estimate = 1 + len(tail) / np.log(tail / 19.5).sum()  # Clauset, Shalizi, Newman 2009, equation 3.7
        assert abs(estimate - exponent) < 0.25
        assert degrees.max() > 20 * np.median(degrees)


@pytest.mark.parametrize("name", KINDS)
def test_neighbours_say_what_a_vertex_does_not_say_of_itself(name) -> None:
    graph = load({"name": name, "vertices": 2000, "noise": 3.0}, seed=0)
    src, dst = ends(graph)
    around = graph.x.copy()
    np.add.at(around, dst, graph.x[src])
    around /= 1 + np.diff(graph.indptr)[:, None]

    def accuracy(x: np.ndarray) -> float:
        centers = np.stack([x[graph.train_mask & (graph.y == one)].mean(axis=0) for one in range(graph.num_classes)])
        nearest = ((x[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
        return float((nearest == graph.y)[graph.test_mask].mean())

    assert accuracy(graph.x) + 0.15 < accuracy(around)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vertices": 10, "classes": 6}, "10 vertices for 6 classes"),
        ({"vertices": 20, "classes": 5, "degree": 4}, "wants 32 edges within classes, where there are 30 pairs"),
        ({"vertices": 20, "classes": 2, "degree": 15, "within": 0.0}, "wants 150 edges between classes"),
        ({"vertices": 40, "classes": 2, "degree": 1, "val_fraction": 0.01}, "none is for validation"),
    ],
)
@pytest.mark.parametrize("name", KINDS)
def test_what_cannot_be_made_is_refused(name, changes, said) -> None:
    with pytest.raises(DataError, match=said):
        load({"name": name, "within": 0.8, **changes}, seed=0)


@pytest.mark.parametrize("name", KINDS)
def test_the_memory_reckoned_with_is_what_making_it_takes_at_most(name) -> None:
    vertices, degree, features = 4000, 40, 16
    load({"name": name, "vertices": 100}, seed=0)
    tracemalloc.start()
    try:
        load({"name": name, "vertices": vertices, "degree": degree, "features": features}, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < needed_bytes(vertices, degree, features) < 3 * peak


def test_a_graph_beyond_memory_is_refused_before_it_is_made(monkeypatch) -> None:
    monkeypatch.setattr("orchestrator.preparing.memory_bytes", lambda: 2**30)
    model = {"name": "mlp", "pretrain": {"data": {"name": "sbm", "vertices": 10**9}}}
    given = {"name": "x", "data": {"name": "power-law", "vertices": 10**9}, "model": model}
    with pytest.raises(ConfigError) as caught:
        prepare(Experiment.model_validate(given))
    assert {(problem.path, problem.message) for problem in caught.value.problems} == {
        ("data.vertices", "needs 584.9 GiB of memory, this machine has 1.0 GiB"),
        ("model.pretrain.data.vertices", "needs 584.9 GiB of memory, this machine has 1.0 GiB"),
    }
