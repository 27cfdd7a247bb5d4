"""Replicas of a worker: who has which rows, what their step is, and how modules are dealt to unequal workers."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from orchestrator.local_stages import deal
from tests.contract import local_runs
from tests.contract.local_runs import STEPS, dataset, equal, flat
from trainers.decoupled.inline import InlineWorkers
from trainers.decoupled.replicas import rows_of

PLAIN = {"name": "auglocal", "depth": 2, "min_depth": 2, "decay": 0.0, "modules": 2}


def calm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network in which no example has to do with another, and nothing is drawn."""
    layers = [nn.Linear(input_shape[0], 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(8, num_classes))


def trained(model: str, **changes: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    given = local_runs.settings((1, 1), PLAIN, **changes)
    section = {"target": model, "kwargs": {}, "dtype": "float64"}
    run = InlineWorkers(given._replace(model=section), dataset())
    losses = [run.step(number)["train/loss"] for number in range(1, STEPS + 1)]
    return flat(run.export()), losses


@pytest.mark.parametrize("replicas", [(2, 1), (1, 3), (2, 3)])
def test_where_examples_are_apart_replicas_make_the_step_of_the_whole_batch(replicas: tuple[int, ...]) -> None:
    alone, losses = trained("tests.unit.test_local_replicas:calm")
    shared, told = trained("tests.unit.test_local_replicas:calm", replicas=replicas)
    assert told == pytest.approx(losses, rel=1e-12)
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, rtol=1e-11, atol=1e-13)
    assert not equal(shared, alone)  # another order of summation: so it is by replicas that it was done


def test_statistics_are_the_means_of_the_replicas_and_batches_count_once() -> None:
    shared, _ = trained("tests.contract.local_runs:toy", replicas=(1, 3), steps=1)
    alone, _ = trained("tests.contract.local_runs:toy", steps=1)
    counted = {name: int(tensor) for name, tensor in shared.items() if name.endswith("num_batches_tracked")}
    assert counted and set(counted.values()) == {STEPS}
    (first,) = (name for name in shared if name.startswith("1.") and name.endswith("running_var"))
    assert torch.equal(shared[first], alone[first])  # of a worker that shares with nobody
    differ = {name for name in shared if name.endswith("running_var") and not torch.equal(shared[name], alone[name])}
    assert differ and all(torch.isfinite(shared[name]).all() for name in differ)


@given(st.integers(1, 9).flatmap(lambda count: st.tuples(st.just(count), st.integers(count, 60))))
def test_every_row_of_a_batch_has_one_replica(sizes: tuple[int, int]) -> None:
    count, size = sizes
    spans = [rows_of(size, replica, count) for replica in range(count)]
    assert [row for span in spans for row in range(span.start, span.stop)] == list(range(size))
    lengths = [span.stop - span.start for span in spans]
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=3, max_size=7), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_modules_are_dealt_so_that_the_slowest_worker_is_fastest(costs: list[int], processes: list[int]) -> None:
    def slowest(ends: tuple[int, ...]) -> float:
        return max(sum(costs[a:b]) / count for (a, b), count in zip(pairwise(ends), processes, strict=True))

    shares = deal(costs, processes)
    assert sum(shares) == len(costs) and len(shares) == len(processes) and min(shares) > 0
    ends = (0, *(sum(shares[: worker + 1]) for worker in range(len(shares))))
    inner = combinations(range(1, len(costs)), len(processes) - 1)
    assert slowest(ends) == pytest.approx(min(slowest((0, *each, len(costs))) for each in inner))
