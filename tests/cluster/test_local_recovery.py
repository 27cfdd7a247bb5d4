"""One worker of a lossless run is killed outright and started again alone: the others stay, and the bits too."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.errors import WorkerError
from orchestrator.life import Trial
from orchestrator.local_plan import LocalPlan
from orchestrator.planning import plan
from orchestrator.progress import size
from orchestrator.rundir import RunDirectory
from tests.cluster.test_local_gang import config, same

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MODULES = {"modules": 3, "queue": 2}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run in this process."""
    return orchestrator.run(config(tmp_path_factory.mktemp("reference"), workers=0, **MODULES), quiet=True)


def disturbed(tmp_path: Path, address: str, kills: dict[int, tuple[int, ...]], every: int = 4, **changes: Any) -> Any:
    """Run with workers killed after steps, and return the run and its events."""

    def kill(report: Any, directory: RunDirectory) -> bool:
        for rank in left.pop(report.state.step, ()):
            pids = {event["worker"]: event["pid"] for event in directory.events() if event["kind"] in started}
            os.kill(pids[f"rank {rank}"], signal.SIGKILL)
        return False

    started, left = ("worker_started", "worker_replaced"), dict(kills)
    settings = config(tmp_path, workers=3, address=address, **MODULES, recovery="alone", **changes)
    settings["checkpoint"] = {"every": every}
    result = orchestrator.run(settings, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=kill))
    return result, list(RunDirectory.open(result.run_dir).events())


def told(events: list[Any], kind: str) -> list[Any]:
    return [event for event in events if event["kind"] == kind]


@pytest.mark.parametrize("rank", [0, 1, 2], ids=["first", "middle", "last"])
def test_the_others_keep_their_processes_and_the_run_ends_with_the_same_bits(reference, tmp_path, local_ray, rank):
    result, events = disturbed(tmp_path, local_ray, {24: (rank,)}, every=20)
    same(reference, result)
    assert len(told(events, "worker_started")) == 3 and told(events, "gang_restarted") == []
    (restarted,), (recovered,) = told(events, "rank_restarted"), told(events, "rank_recovered")
    assert [event["worker"] for event in told(events, "worker_replaced")] == [f"rank {rank}"]
    assert restarted["from_step"] == 20 and 4 <= recovered["replayed"] <= 20


def test_two_workers_side_by_side_and_later_one_again(reference: Any, tmp_path: Path, local_ray: str) -> None:
    result, events = disturbed(tmp_path, local_ray, {6: (0, 1), 21: (1,)}, restarts=3)
    same(reference, result)
    assert len(told(events, "rank_restarted")) == 3 and told(events, "gang_restarted") == []


def test_a_worker_killed_before_the_first_state_begins_again_at_the_start(reference, tmp_path, local_ray) -> None:
    result, events = disturbed(tmp_path, local_ray, {0: (1,)})
    same(reference, result)
    assert told(events, "rank_restarted")[0]["from_step"] in (0, 4)


def test_a_worker_lost_more_often_than_allowed_ends_the_run(tmp_path: Path, local_ray: str) -> None:
    with pytest.raises(WorkerError, match="orchestrator resume"):
        disturbed(tmp_path, local_ray, {6: (1,), 21: (2,)}, restarts=1)


def test_the_plan_counts_the_batches_and_the_evaluations_that_a_worker_held_at_most(tmp_path, local_ray) -> None:
    every, queue, modules = 4, 1, 2
    strategy = {"modules": modules, "queue": queue, "steps": 12, "batch_size": 2}
    settings = config(tmp_path, address=local_ray, recovery="alone", **strategy)
    settings |= {"checkpoint": {"every": every}, "evaluate": {"every": every, "batch_size": 6}}
    planned = plan(settings)
    assert isinstance(planned, LocalPlan)
    (batch,), (evaluation,) = planned.stages.sent_bytes, planned.stages.test_bytes
    assert batch == 2 * 8 * 4 and evaluation == 16 * 8 * 4
    assert planned.held_bytes == ((every + queue * modules) * batch + 2 * evaluation, 0)
    together = plan({**settings, "strategy": {**settings["strategy"], "recovery": "together"}})
    assert isinstance(together, LocalPlan) and together.held_bytes == (0, 0)
    beyond = (alone - other for alone, other in zip(planned.memory, together.memory, strict=True))
    assert tuple(beyond) == planned.held_bytes
    shown = [line for _, lines in planned.sections() for line in lines]
    assert any(line.startswith("held for a lost worker") and size(planned.held_bytes[0]) in line for line in shown)

    held = orchestrator.run(settings, quiet=True).metrics["workers/held_bytes_0"]
    # No state is whole before the last worker has had all of the evaluation due with it.
    assert every * batch + evaluation <= held <= planned.held_bytes[0]
