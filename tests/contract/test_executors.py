"""What every executor promises, whatever it runs on: one suite, a row for each."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.connect import connect
from cluster.errors import RemoteFailure
from cluster.executor import Call, Executor, WorkerSpec
from cluster.inline import InlineExecutor

HERE = str(Path(__file__).parents[1] / "cluster")


@pytest.fixture(scope="module")
def ray_here(leave_own_cluster: Callable[[], None]) -> Iterator[None]:
    leave_own_cluster()
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
        connect("local", min_cpus=8, temp_dir=folder),
    ):
        yield


def on_ray(num_workers: int) -> Callable[[], Executor]:
    def make() -> Executor:
        from cluster.pool import RayExecutor

        return RayExecutor(num_workers, {"CPU": 1}, start_timeout_s=60, stall_timeout_s=60)

    return make


MAKERS = [
    pytest.param(InlineExecutor, id="inline"),
    *(pytest.param(on_ray(count), id=f"ray-{count}", marks=pytest.mark.ray) for count in (1, 2, 4)),
]


@pytest.fixture(params=MAKERS, scope="module")
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """An executor whose workers add to 1, kept for all tests that only run calls."""
    if request.param is not InlineExecutor:
        request.getfixturevalue("ray_here")
    with request.param() as executor:
        executor.start(toy(base=1))
        yield executor


@pytest.fixture(params=[MAKERS[0], MAKERS[2]])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """An executor that is not started."""
    if request.param is not InlineExecutor:
        request.getfixturevalue("ray_here")
    with request.param() as executor:
        yield executor


def toy(**kwargs: Any) -> WorkerSpec:
    return WorkerSpec("toy_worker:Toy", kwargs, (HERE,))


def values(executor: Executor, calls: list[Call]) -> list[Any]:
    """Run calls and return their values in the order of the calls."""
    answers = sorted(executor.run(calls), key=lambda answer: answer[0])
    assert [answer[0] for answer in answers] == list(range(len(calls)))
    return [answer.value for answer in answers]


def test_every_call_is_answered_once_under_its_own_index(pool: Executor) -> None:
    assert values(pool, [Call("add", (number,)) for number in range(37)]) == list(range(1, 38))


def test_no_calls_give_no_answers(pool: Executor) -> None:
    assert list(pool.run([])) == []


def test_answers_say_who_gave_them(pool: Executor) -> None:
    names = {answer.worker for answer in pool.run([Call("add", (number,)) for number in range(20)])}
    assert names <= {f"worker {number}" for number in range(pool.num_workers)}
    assert names


def test_a_shared_value_arrives_whole_in_calls_and_in_the_constructor(executor: Executor) -> None:
    array = np.arange(100_000, dtype=np.float64)
    handle = executor.share(array)
    executor.start(toy(base=handle))
    assert np.array_equal(values(executor, [Call("add", (0,))])[0], array)
    echoed = values(executor, [Call("echo", (handle, 7, handle))])[0]
    assert np.array_equal(echoed[0], array)
    assert echoed[1] == 7
    assert np.array_equal(echoed[2], array)


def test_arrow_buffers_keep_their_bytes_both_ways(pool: Executor) -> None:
    for size in (0, 10, 3_000_000):
        buffer = pa.py_buffer(os.urandom(size))
        for argument in (buffer, pool.share(buffer)):
            (answer,) = values(pool, [Call("echo", (argument,))])
            assert isinstance(answer, pa.Buffer)
            assert answer.equals(buffer)


def test_a_released_value_can_no_longer_be_used(pool: Executor) -> None:
    handle = pool.share(3)
    pool.release(handle)
    with pytest.raises(ValueError, match="released"):
        list(pool.run([Call("echo", (handle,))]))
    assert values(pool, [Call("add", (1,))]) == [2]


def test_a_call_that_raises_brings_its_traceback_and_leaves_the_pool_usable(pool: Executor) -> None:
    calls = [Call("add", (number,)) for number in range(20)]
    calls[3] = Call("fail", ("boom",))
    for _ in range(3):
        with pytest.raises(RemoteFailure) as caught:
            list(pool.run(calls))
        failure = caught.value
        assert failure.reason == "ValueError: boom"
        assert failure.call_index == 3
        assert failure.worker.startswith("worker ")
        assert not failure.lost
        assert "toy_worker.py" in failure.remote_traceback
        assert "raise ValueError(text)" in failure.remote_traceback
        assert values(pool, [Call("add", (number,)) for number in range(10)]) == list(range(1, 11))


@pytest.mark.parametrize(
    "method, reason",
    [("leave", "SystemExit: 3"), ("raise_unpicklable", "Odd: odd one"), ("absent", "AttributeError: 'Toy' object")],
)
def test_whatever_user_code_raises_arrives_as_text(pool: Executor, method: str, reason: str) -> None:
    with pytest.raises(RemoteFailure) as caught:
        list(pool.run([Call(method, ())]))
    assert caught.value.reason.startswith(reason)
    assert values(pool, [Call("add", (5,))]) == [6]


@pytest.mark.parametrize(
    "spec, reason",
    [
        (WorkerSpec("no_such_module:Toy", {}), "ModuleNotFoundError: No module named 'no_such_module'"),
        (WorkerSpec("toy_worker:Absent", {}, (HERE,)), "AttributeError: module 'toy_worker' has no attribute 'Absent'"),
        (WorkerSpec("toy_worker:Toy", {"fail": "no data"}, (HERE,)), "ValueError: no data"),
        (WorkerSpec("toy_worker:Toy", {"depth": 3}, (HERE,)), "TypeError: Toy.__init__() got an unexpected keyword"),
    ],
)
def test_a_worker_that_cannot_be_built_fails_the_start(executor: Executor, spec: WorkerSpec, reason: str) -> None:
    with pytest.raises(RemoteFailure) as caught:
        executor.start(spec)
    assert caught.value.reason.startswith(reason)
    assert caught.value.call_index == -1
    executor.start(toy(base=2))
    assert values(executor, [Call("add", (1,))]) == [3]


def test_starting_again_builds_the_workers_anew(executor: Executor) -> None:
    executor.start(toy(base=1))
    assert values(executor, [Call("add", (0,))]) == [1]
    executor.start(toy(base=2))
    assert values(executor, [Call("add", (0,))] * 5) == [2] * 5


def test_leaving_off_in_the_middle_leaves_the_pool_usable(pool: Executor) -> None:
    for taken in (1, 0, 2):
        answers = pool.run([Call("spin", (0.01,))] * 12)
        assert [next(answers).value for _ in range(taken)] == [0.01] * taken
        del answers
        gc.collect()
        assert values(pool, [Call("add", (number,)) for number in range(8)]) == list(range(1, 9))


def test_calls_before_the_start_or_after_the_end_are_refused(executor: Executor) -> None:
    with pytest.raises(RuntimeError, match="start"):
        list(executor.run([Call("add", (1,))]))
    executor.start(toy())
    executor.close()
    executor.close()
    with pytest.raises(RuntimeError, match="start"):
        list(executor.run([Call("add", (1,))]))


def test_an_import_path_given_for_workers_is_not_left_in_this_process(executor: Executor) -> None:
    before = list(sys.path)  # the executor of other tests may still have put its own there
    executor.start(WorkerSpec("toy_worker:Toy", {}, (HERE, "/no/such/folder")))
    executor.close()
    assert sys.path == before
