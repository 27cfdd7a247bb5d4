"""The profile of local learning and pipelines: the clocks change no bit, and the arithmetic of schedules is theirs."""

from __future__ import annotations

import pytest
import torch

from benchmarks.local_profile import Clocks, Profile, ideal_s
from strategies.pipeline import schedule
from tests.contract.local_runs import dataset, flat, settings
from trainers.decoupled.inline import InlineWorkers


def test_clocks_see_auxiliary_networks_where_they_are_and_change_no_bit() -> None:
    given = settings((1, 1), {"name": "auglocal", "depth": 1, "modules": 2})
    timed, plain = InlineWorkers(given, dataset()), InlineWorkers(given, dataset())
    clocks = [Clocks(worker) for worker in timed.workers]
    for number in (1, 2, 3):
        assert timed.step(number) == plain.step(number)
    mine, theirs = flat(timed.export()), flat(plain.export())
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []
    first, last = (each.read(3) for each in clocks)
    assert first.seconds["auxiliary"] > 0 == last.seconds["auxiliary"]
    assert all(each.seconds[part] > 0 for each in (first, last) for part in ("module", "optimizer"))
    clocks[0].clear()
    assert clocks[0].read(1).own_s == 0


@pytest.mark.parametrize(("name", "ticks"), [("gpipe", 15), ("1f1b", 15), ("zero-bubble", 13)])
def test_the_ideal_of_a_pipeline_is_its_schedule_and_the_slowest_optimizer(name: str, ticks: int) -> None:
    seconds = dict.fromkeys(("module", "auxiliary", "optimizer", "sending", "waiting"), 0.0)
    actions = {"F": 1.0, "B": 1.0, "W": 1.0} if name == "zero-bubble" else {"F": 1.0, "B": 2.0}
    both = [Profile({**seconds, "optimizer": slow}, actions) for slow in (0.5, 0.25)]
    assert ideal_s(both, schedule(name, 2, 4)) == ticks + 0.5


def test_the_ideal_of_local_learning_is_the_worker_with_most_work_of_its_own() -> None:
    first = Profile({"module": 3.0, "auxiliary": 2.0, "optimizer": 1.0, "sending": 7.0, "waiting": 9.0}, {})
    last = Profile({"module": 5.0, "auxiliary": 0.0, "optimizer": 0.5, "sending": 7.0, "waiting": 9.0}, {})
    assert ideal_s([first, last], None) == 6.0
