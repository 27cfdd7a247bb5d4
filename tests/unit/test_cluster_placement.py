"""Placement: exact where it says so, never over-committed, and a table that says what is short."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.inventory import Node
from cluster.placement import place, reason, table


def node(available: dict[str, float] | None = None, **total: float) -> Node:
    return Node("n", "127.0.0.1", total, total if available is None else available)


amounts = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
resources = st.fixed_dictionaries({"CPU": amounts, "GPU": amounts})
nodes = st.lists(resources.map(lambda total: node(**total)), min_size=1, max_size=3)
strategies = st.sampled_from(["pack", "spread"])


def most_that_fit(bundles: list[dict[str, float]], machines: list[Node]) -> int:
    """Try every assignment, leaving bundles out included."""
    best = 0
    for choice in product([None, *range(len(machines))], repeat=len(bundles)):
        used: dict[tuple[int, str], float] = {}
        for bundle, where in zip(bundles, choice, strict=True):
            if where is not None:
                for name, amount in bundle.items():
                    used[where, name] = used.get((where, name), 0.0) + amount
        if all(amount <= machines[where].total.get(name, 0.0) for (where, name), amount in used.items()):
            best = max(best, sum(where is not None for where in choice))
    return best


@settings(max_examples=150, deadline=None)
@given(bundle=resources, count=st.integers(1, 5), machines=nodes, strategy=strategies)
def test_identical_bundles_are_placed_as_often_as_any_assignment_could(bundle, count, machines, strategy) -> None:  # type: ignore[no-untyped-def]
    assert place([bundle] * count, machines, strategy).num_placed == most_that_fit([bundle] * count, machines)


@settings(max_examples=150, deadline=None)
@given(bundles=st.lists(resources, max_size=5), machines=nodes, strategy=strategies)
def test_no_node_is_given_more_than_it_has(bundles, machines, strategy) -> None:  # type: ignore[no-untyped-def]
    placement = place(bundles, machines, strategy)
    assert len(placement.assignment) == len(bundles)
    for index, machine in enumerate(machines):
        for name in ("CPU", "GPU"):
            given_out = sum(b[name] for b, where in zip(bundles, placement.assignment, strict=True) if where == index)
            assert given_out <= machine.total[name] + 1e-9
    assert placement.num_placed <= most_that_fit(bundles, machines)


def test_pack_fills_a_node_first_and_spread_takes_turns() -> None:
    machines = [node(CPU=4.0), node(CPU=4.0)]
    assert place([{"CPU": 1}] * 4, machines, "pack").assignment == (0, 0, 0, 0)
    assert place([{"CPU": 1}] * 4, machines, "spread").assignment == (0, 1, 0, 1)


def test_large_bundles_go_before_small_ones() -> None:
    placement = place([{"CPU": 1}, {"CPU": 1}, {"CPU": 2}], [node(CPU=2.0), node(CPU=2.0)])
    assert placement.fits
    assert placement.assignment[0] == placement.assignment[1] != placement.assignment[2]


def test_tenths_of_a_cpu_add_up_as_ray_adds_them() -> None:
    assert place([{"CPU": 0.1}] * 10, [node(CPU=1.0)]).fits
    assert place([{"CPU": 0.1}] * 11, [node(CPU=1.0)]).num_placed == 10


def test_the_table_says_need_versus_have_and_what_is_missing() -> None:
    placement = place([{"CPU": 2, "GPU": 1}] * 3, [node(CPU=4.0), node({"CPU": 1.0}, CPU=4.0, GPU=1.0)])
    assert reason(placement, 2) == "1 of 3 workers fit on 2 nodes: short of 2 GPU"
    assert table(placement).splitlines() == [
        "resource  one worker  all workers  cluster  largest node  available  missing",
        "CPU                2            6        8             4          5        -",
        "GPU                1            3        1             1          0        2",
    ]


def test_a_worker_larger_than_any_node_is_short_though_the_cluster_has_enough() -> None:
    placement = place([{"CPU": 3}], [node(CPU=2.0), node(CPU=2.0)])
    assert placement.num_placed == 0
    assert placement.needs[0].missing == 1
    assert reason(placement, 2) == "0 of 1 worker fit on 2 nodes: short of 1 CPU"


def test_what_is_left_in_pieces_is_told_as_such() -> None:
    placement = place([{"CPU": 2}] * 3, [node(CPU=3.0), node(CPU=3.0)])
    assert reason(placement, 2) == "2 of 3 workers fit on 2 nodes: each node has too little left for one more"


def test_memory_is_written_in_gibibytes() -> None:
    placement = place([{"memory": 3 * 2**30}] * 2, [node(memory=4.0 * 2**30)])
    assert "3.0 GiB" in table(placement)
    assert "short of 2.0 GiB memory" in reason(placement, 1)


@pytest.mark.parametrize("machines", [[], [node()]])
def test_nothing_fits_where_there_is_nothing(machines: list[Node]) -> None:
    assert place([{"CPU": 1}], machines).assignment == (None,)
