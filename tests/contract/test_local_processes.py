"""Local learning across processes: the serial program's bits, what is sent, and what would break the equality."""

from __future__ import annotations

import pytest
import torch

from tests.contract.local_processes import OTHERS, REPLICATED, RULE, SHARES, WAYS, Found, replicas, run
from tests.contract.local_runs import HIDDEN, STEPS, dataset, flat, named, serially, settings
from trainers.decoupled.inline import InlineWorkers
from trainers.decoupled.links import MARK_BYTES


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return run(tmp_path_factory.mktemp("gloo"))


def same(found: list[Found], way: str) -> list[bool]:
    """Return for each worker whether its state is the serial program's, all of its tensors."""
    theirs = named(settings(SHARES, RULE), serially(settings(SHARES, RULE))[0])
    mine = [flat(each.states[way]) for each in found]
    assert set().union(*mine) == theirs.keys()
    return [all(torch.equal(tensor, theirs[name]) for name, tensor in own.items()) for own in mine]


def test_workers_in_processes_of_their_own_have_the_bits_of_the_serial_program(found: list[Found]) -> None:
    assert same(found, WAYS[0]) == [True, True, True]
    _, losses, accuracy = serially(settings(SHARES, RULE))
    told = found[-1].values[WAYS[0]]
    assert [values["train/loss"] for values in told[:STEPS]] == losses
    assert told[-1]["test/accuracy"] == accuracy


@pytest.mark.parametrize("name", OTHERS)
def test_rules_that_hear_from_behind_from_nobody_or_of_several_tensors_do_too(found: list[Found], name: str) -> None:
    theirs = named(settings(*OTHERS[name]), serially(settings(*OTHERS[name]))[0])
    mine = {key: tensor for each in found for key, tensor in flat(each.others[name]).items()}
    assert [key for key in theirs if not torch.equal(mine[key], theirs[key])] == []


@pytest.mark.parametrize("way", WAYS[1:])
def test_what_is_sent_after_learning_or_in_half_precision_changes_every_later_worker(found, way: str) -> None:
    assert same(found, way) == [True, False, False]


def test_what_is_sent_is_the_boundary_activations_and_a_mark_and_nothing_goes_back(found: list[Found]) -> None:
    batch = 7 * HIDDEN * 4 + MARK_BYTES
    tests = [min(6, len(dataset().test_y) - start) * HIDDEN * 4 for start in range(0, len(dataset().test_y), 6)]
    for rank, each in enumerate(found):
        assert {target for target, _ in each.sent} == ({rank + 1} if rank < 2 else set())
        assert sum(size for _, size in each.sent) == (STEPS * batch + sum(tests) if rank < 2 else 0)
    assert [values["comm/boundary_bytes"] for values in found[-1].values[WAYS[0]][:STEPS]] == [2.0 * batch] * STEPS


def test_a_fast_worker_is_held_back_by_the_queue_but_runs_ahead_within_it(found: list[Found]) -> None:
    assert 1 < max(found[1].ahead) <= 3  # two between them, and the one that it works on


@pytest.mark.parametrize("name", REPLICATED)
def test_replicas_of_a_worker_stay_the_same_and_have_the_bits_of_one_process(found: list[Found], name: str) -> None:
    given = replicas(name)
    whole = InlineWorkers(given, dataset())
    told = [whole.step(number)["train/loss"] for number in range(1, STEPS + 1)]
    expected = whole.export()
    for each in found:
        mine = each.replicated[name][1]
        assert {"model", "counters", "optimizer.momentum_buffer"} <= {tree for tree, named in mine.items() if named}
        differ = [key for tree, of in mine.items() for key in of if not torch.equal(of[key], expected[tree][key])]
        assert differ == []
    last = found[given.places().index((1, 0))].replicated[name][0]
    assert [values["train/loss"] for values in last[:STEPS]] == told
    assert last[-1]["test/accuracy"] == whole.evaluate(STEPS)["test/accuracy"]
    rows = 7 * HIDDEN * 4
    assert [values["comm/boundary_bytes"] for values in last[:STEPS]] == [rows + 2.0 * MARK_BYTES] * STEPS
