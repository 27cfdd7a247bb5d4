"""Sharded runs on processes that gloo joins, against the same steps on whole tensors in one process, in float64."""

from __future__ import annotations

import pytest
import torch

from strategies.sharded import gloo_bytes, parse, table_bytes
from tests.parity import sharded_processes
from tests.parity.sharded_processes import CHANGES, FOUR, HALF, STEPS, TWO, Found, dataset, settings
from trainers.pipeline.state import merge
from trainers.sharded.inline import InlineSharded

OTHERS = [name for name in TWO if name != "tensor parallel"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return sharded_processes.run(tmp_path_factory.mktemp("two"), 2, ["tensor parallel"])


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return sharded_processes.run(tmp_path_factory.mktemp("others"), 2, OTHERS)


def dense(name: str, runs=TWO):
    alone = InlineSharded(settings(*runs[name]), dataset())
    for number in range(1, STEPS + 1):
        values = alone.step(number)
    return alone, values


def agree(found: list[Found], name: str, runs=TWO) -> None:
    alone, values = dense(name, runs)
    whole = alone.export()
    merged = merge([one.parts[name] for one in found], alone._names)
    assert {tree: list(named) for tree, named in merged.items()} == {tree: list(named) for tree, named in whole.items()}
    for tree, named in whole.items():
        for tensor, expected in named.items():
            torch.testing.assert_close(merged[tree][tensor], expected, rtol=0, atol=1e-10)
    for one in found:
        assert one.values[name]["train/loss"] == pytest.approx(values["train/loss"], abs=1e-10)
        assert one.evaluated[name] == pytest.approx(alone.evaluate(STEPS), abs=1e-10)


def test_twenty_steps_by_tensors_are_those_of_one_process(two) -> None:
    """With dropout, clipping and a schedule; every rank reports a share of the state, and all together all of it."""
    agree(two, "tensor parallel")
    first, second = (one.parts["tensor parallel"] for one in two)
    assert first["model"].keys().isdisjoint(second["model"].keys())


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_twenty_steps_on_any_layout_are_those_of_one_process(others, name) -> None:
    agree(others, name)


@pytest.mark.slow
def test_twenty_steps_on_two_by_two_ranks_are_those_of_one_process(tmp_path) -> None:
    agree(sharded_processes.run(tmp_path, 4, FOUR), "two by two", FOUR)


def test_a_run_goes_on_on_another_layout(two) -> None:
    alone = InlineSharded(settings(*TWO["data parallel"]), dataset())
    for number in range(1, 2 * HALF + 1):
        alone.step(number)
    whole, merged = alone.export(), merge([one.resumed for one in two], alone._names)
    for tree, named in whole.items():
        for tensor, expected in named.items():
            torch.testing.assert_close(merged[tree][tensor], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("source", "target"), CHANGES)
def test_a_change_of_layout_sends_what_gloo_is_said_to_send(two, source, target) -> None:
    counts, num_bytes, oracle = two[0].counts[f"{source} {target}"]
    rows, columns = (8, 6) if source == "S(0)" else (4, 6)
    expected = gloo_bytes(parse(source), parse(target), rows * columns * 4, 2)
    assert sum(num_bytes.values()) == expected
    assert sum(counts.values()) == sum(oracle.values()) == (1 if expected else 0)
    table = table_bytes(parse(source), parse(target), rows * columns * 4, 2)
    assert (expected != table) == ((source, target) == ("S(0)", "S(1)"))  # for which gloo has no all-to-all
