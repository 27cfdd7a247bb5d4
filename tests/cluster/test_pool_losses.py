"""Workers of a local pool are killed, frozen and starved; the answers stay the same, or the failure says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import faults
from cluster.errors import PlacementFailed, RemoteFailure
from cluster.executor import Call, WorkerSpec
from cluster.pool import RayExecutor

pytestmark = pytest.mark.ray

Told = list[tuple[str, dict[str, Any]]]
Spec = Callable[..., WorkerSpec]


@pytest.fixture
def pool(local_ray: str, toy: Spec, told: Told) -> Iterator[RayExecutor]:
    def notify(kind: str, fields: Any) -> None:
        told.append((kind, dict(fields)))

    with RayExecutor(2, {"CPU": 1}, start_timeout_s=60, stall_timeout_s=60, notify=notify) as executor:
        executor.start(toy(base=1))
        yield executor


def pids(told: Told) -> dict[str, int]:
    """The process of each worker, the newest where there were several."""
    return {fields["worker"]: fields["pid"] for kind, fields in told if kind in ("worker_started", "worker_replaced")}


def test_it_tells_of_places_and_workers(pool: RayExecutor, told: Told) -> None:
    assert [kind for kind, _ in told] == ["placed", "worker_started", "worker_started"]
    assert pids(told).keys() == {"worker 0", "worker 1"}
    assert {fields["node"] for kind, fields in told if kind == "worker_started"} == {"127.0.0.1"}


def test_a_worker_killed_in_the_middle_of_a_call_changes_no_answer(
    pool: RayExecutor, told: Told, tmp_path: Path
) -> None:
    calls = [Call("die_once", (str(tmp_path / "died"), number)) for number in range(20)]
    answers = sorted((answer[0], answer.value) for answer in pool.run(calls))
    assert answers == [(number, number) for number in range(20)]
    kinds = [kind for kind, _ in told]
    assert kinds.count("worker_lost") >= 1
    (reason,) = {fields["reason"] for kind, fields in told if kind == "worker_lost"}
    assert "killed" in reason


@pytest.mark.slow
def test_both_workers_killed_from_outside_while_idle_are_replaced(pool: RayExecutor, told: Told) -> None:
    first = pids(told)
    for pid in first.values():
        faults.kill(pid)
    assert sorted(answer.value for answer in pool.run([Call("add", (n,)) for n in range(10)])) == list(range(1, 11))
    assert [kind for kind, _ in told].count("worker_lost") == 2


def test_the_pool_goes_on_with_the_workers_it_has(pool: RayExecutor, told: Told, tmp_path: Path) -> None:
    faults.kill(pids(told)["worker 1"])
    answers = list(pool.run([Call("spin", (0.02,)) for _ in range(40)]))
    assert len(answers) == 40
    assert "worker 0" in {answer.worker for answer in answers}
    assert [fields["worker"] for kind, fields in told if kind == "worker_lost"] == ["worker 1"]


@pytest.mark.slow
def test_a_call_that_kills_every_worker_it_meets_is_given_up(pool: RayExecutor, told: Told) -> None:
    calls = [Call("add", (number,)) for number in range(6)]
    calls[2] = Call("die", ())
    with pytest.raises(RemoteFailure) as caught:
        list(pool.run(calls))
    assert caught.value.lost
    assert caught.value.call_index == 2
    assert caught.value.reason.startswith("3 workers were lost at this call")
    assert [kind for kind, _ in told].count("worker_lost") == 3
    assert sorted(answer.value for answer in pool.run([Call("add", (n,)) for n in range(6)])) == list(range(1, 7))


def test_workers_that_do_not_answer_are_named_and_replaced(local_ray: str, toy: Spec, told: Told) -> None:
    def notify(kind: str, fields: Any) -> None:
        told.append((kind, dict(fields)))

    with RayExecutor(2, {"CPU": 1}, start_timeout_s=60, stall_timeout_s=1.0, notify=notify) as pool:
        pool.start(toy())
        with faults.frozen(pids(told)["worker 0"]), pytest.raises(RemoteFailure) as caught:
            list(pool.run([Call("add", (number,)) for number in range(4)]))
        assert caught.value.reason == "no worker answered within 1 s; waited for worker 0 on 127.0.0.1"
        assert caught.value.worker == "worker 0"
        assert caught.value.lost
        assert sorted(answer.value for answer in pool.run([Call("add", (n,)) for n in range(4)])) == [0, 1, 2, 3]


def test_an_answer_that_cannot_travel_is_a_failure_of_its_call(pool: RayExecutor) -> None:
    with pytest.raises(RemoteFailure, match="cannot pickle") as caught:
        list(pool.run([Call("add", (1,)), Call("unpicklable", ())]))
    assert caught.value.call_index == 1
    assert not caught.value.lost
    assert "\x1b[" not in caught.value.remote_traceback
    assert [answer.value for answer in pool.run([Call("add", (1,))])] == [2]


def test_threads_are_set_before_the_workers_libraries_load(local_ray: str, toy: Spec) -> None:
    with RayExecutor(1, {"CPU": 1}, threads=3, start_timeout_s=60) as pool:
        pool.start(toy())
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        assert {answer.value for answer in pool.run([Call("environment", (name,)) for name in names])} == {"3"}


def test_a_second_iteration_at_the_same_time_is_refused(pool: RayExecutor) -> None:
    answers = pool.run([Call("add", (n,)) for n in range(3)])
    next(answers)
    with pytest.raises(RuntimeError, match="runs other calls"):
        next(pool.run([Call("add", (1,))]))
    assert len(list(answers)) == 2


def test_closing_ends_the_processes_and_gives_the_places_back(local_ray: str, toy: Spec, told: Told) -> None:
    from ray.util import placement_group_table

    with RayExecutor(4, {"CPU": 1}, start_timeout_s=60, notify=lambda k, f: told.append((k, dict(f)))) as pool:
        pool.start(toy())
        processes = [psutil.Process(pid) for pid in pids(told).values()]
    assert len(processes) == 4
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
    with RayExecutor(4, {"CPU": 1}, start_timeout_s=60) as pool:
        pool.start(toy())


def test_what_cannot_be_placed_is_refused_at_once_with_need_versus_have(local_ray: str) -> None:
    with pytest.raises(PlacementFailed) as caught, RayExecutor(1000, {"CPU": 1}):
        pass
    assert caught.value.reason == "4 of 1000 workers fit on 1 node: short of 996 CPU"
    need = caught.value.table.splitlines()[1].split()
    assert need[:5] == ["CPU", "1", "1000", "4", "4"]
    assert need[-1] == "996"


@pytest.mark.slow
def test_places_held_by_others_are_waited_for_and_then_given_up(local_ray: str, toy: Spec) -> None:
    with RayExecutor(3, {"CPU": 1}, start_timeout_s=60) as first:
        first.start(toy())
        with (
            RayExecutor(2, {"CPU": 1}, start_timeout_s=1.0) as second,
            pytest.raises(PlacementFailed, match="no place for 2 workers within 1 s") as caught,
        ):
            second.start(toy())
        assert "available" in caught.value.table
    with RayExecutor(4, {"CPU": 1}, start_timeout_s=60) as third:
        third.start(toy())


def test_no_workers_is_nonsense() -> None:
    with pytest.raises(ValueError, match="num_workers is 0"):
        RayExecutor(0)
