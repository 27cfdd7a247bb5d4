"""Ranks that take turns: one at a time, each with torch's random stream to itself, and no wait that nobody can end."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import torch

from trainers.graph.turns import Stuck, TurnCollective, Turns, TurnTransport
from trainers.pipeline.transport import Key


def test_works_run_in_their_order_one_at_a_time_until_they_wait() -> None:
    turns, said, running = Turns(), [], threading.Lock()

    def work(number: int) -> int:
        for part in range(3):
            assert running.acquire(blocking=False), "two run at once"
            said.append((part, number))
            running.release()
            turns.wait(lambda part=part: len(said) >= 3 * (part + 1), lambda: "the others")  # type: ignore[misc]
        return number * number

    assert turns.run([lambda n=n: work(n) for n in range(3)]) == [0, 1, 4]  # type: ignore[misc]
    assert said[:3] == [(0, 0), (0, 1), (0, 2)]
    assert sorted(said[3:6]) == [(1, 0), (1, 1), (1, 2)] and sorted(said[6:]) == [(2, 0), (2, 1), (2, 2)]


def test_what_need_not_wait_runs_through() -> None:
    turns, said = Turns(), []

    def work(number: int) -> None:
        said.append(number)
        turns.wait(lambda: True, lambda: "nothing")
        said.append(number)

    turns.run([lambda: work(0), lambda: work(1)])
    assert said == [0, 0, 1, 1]


def test_each_keeps_its_random_stream_and_the_caller_keeps_theirs() -> None:
    def alone(number: int) -> list[float]:
        torch.manual_seed(number)
        return torch.rand(4).tolist()

    turns, count = Turns(), [0, 0, 0]

    def work(number: int) -> list[float]:
        torch.manual_seed(number)
        drawn = []
        for part in range(4):
            drawn.append(float(torch.rand(1)))
            count[number] += 1
            turns.wait(lambda part=part: min(count) > part, lambda: "the others")  # type: ignore[misc]
        return drawn

    before = torch.get_rng_state()
    assert turns.run([lambda n=n: work(n) for n in range(3)]) == [alone(n) for n in range(3)]  # type: ignore[misc]
    torch.set_rng_state(before)
    turns.run([lambda n=n: work(n % 3) for n in range(3)])  # type: ignore[misc]
    assert torch.equal(torch.get_rng_state(), before)


def test_each_begins_with_the_callers_random_stream() -> None:
    turns = Turns()
    drawn = turns.run([lambda: float(torch.rand(1))] * 3)
    assert len(set(drawn)) == 1


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_failure_ends_all_and_is_raised(broken: int) -> None:
    turns, ended = Turns(), []

    def work(number: int) -> None:
        try:
            if number == broken:
                raise KeyError("no such vertex")
            turns.wait(lambda: False, lambda: "what never comes")
        finally:
            ended.append(number)

    with pytest.raises(KeyError, match="no such vertex"):
        turns.run([lambda n=n: work(n) for n in range(3)])  # type: ignore[misc]
    assert set(ended) >= {broken} and len(ended) == len(set(ended))
    assert turns.run([lambda: 1, lambda: 2]) == [1, 2]  # and nothing of it is left


def test_a_failure_after_another_rank_waits_is_raised_through_its_wait() -> None:
    turns, ended = Turns(), []

    def waits() -> None:
        try:
            turns.wait(lambda: False, lambda: "what never comes")
        finally:
            ended.append("waits")

    def raises() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        turns.run([waits, raises])
    assert ended == ["waits"]


def test_ranks_that_wait_for_one_another_are_told_with_what_they_wait_for() -> None:
    turns, board = Turns(), {}
    ends = [TurnTransport(turns, board, "way 0", rank) for rank in range(2)]

    def work(rank: int) -> None:
        ends[rank].receive(Key("F", 1 - rank, 7))

    with pytest.raises(Stuck) as caught:
        turns.run([lambda: work(0), lambda: work(1)])
    assert "rank 0 waits for Key(kind='F', position=1, microbatch=7) of way 0" in str(caught.value)
    assert "rank 1 waits for Key(kind='F', position=0, microbatch=7) of way 0" in str(caught.value)


def test_a_rank_left_waiting_by_those_that_have_ended_is_told() -> None:
    turns = Turns()
    with pytest.raises(Stuck, match="rank 1 waits for Godot"):
        turns.run([lambda: None, lambda: turns.wait(lambda: False, lambda: "Godot"), lambda: None])


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_news_that_travel_against_the_order_are_no_deadlock(num_ranks: int) -> None:
    turns, board = Turns(), {}
    ends = [TurnTransport(turns, board, "line", rank) for rank in range(num_ranks)]
    last = num_ranks - 1

    def work(rank: int) -> float:
        value = torch.ones(1)
        if rank != last:
            value = ends[rank].receive(Key("F", rank, 0))["0"] + 1
        if rank:
            ends[rank].send(Key("F", rank - 1, 0), {"0": value}, rank - 1)
            return float(ends[rank].receive(Key("B", rank, 0))["0"])
        for target in range(1, num_ranks):
            ends[0].send(Key("B", target, 0), {"0": value}, target)
        return float(value)

    assert turns.run([lambda n=n: work(n) for n in range(num_ranks)]) == [num_ranks] * num_ranks  # type: ignore[misc]
    assert not board


def test_sums_are_there_for_all_members_in_the_order_of_ranks() -> None:
    turns, board = Turns(), {}
    sizes = {"all": 3, "some": 2}
    members = [TurnCollective(turns, sizes, board, rank) for rank in range(3)]

    def work(rank: int) -> tuple[float, float]:
        given = torch.tensor([0.1 * (rank + 1)], dtype=torch.float64)
        pending = members[rank].sum("all", given)
        assert pending.ready()
        total = float(pending.result())
        if rank == 2:
            return total, 0.0
        pending = members[rank].sum("some", given)
        assert pending.ready()
        return total, float(pending.result())

    found = turns.run([lambda n=n: work(n) for n in range(3)])  # type: ignore[misc]
    assert {total for total, _ in found} == {0.1 + 0.2 + 0.1 * 3}
    assert found[0][1] == found[1][1] == 0.1 + 0.2


def test_bytes_to_oneself_are_not_counted() -> None:
    turns, board = Turns(), {}
    end = TurnTransport(turns, board, "way 0", 0)

    def work() -> int:
        end.send(Key("F", 0, 0), {"0": torch.zeros(5)}, 0)
        end.send(Key("F", 1, 0), {"0": torch.zeros(5), "1": torch.zeros(2, dtype=torch.float64)}, 1)
        end.receive(Key("F", 0, 0))
        return end.sent_bytes

    assert turns.run([work]) == [36]


def test_no_thread_is_left_whatever_happens() -> None:
    before, turns = set(threading.enumerate()), Turns()

    def forever() -> None:
        turns.wait(lambda: False, lambda: "what never comes")

    turns.run([lambda: None] * 3)
    with pytest.raises(Stuck):
        turns.run([forever, forever])
    with pytest.raises(ZeroDivisionError):
        turns.run([forever, lambda: 1 / 0])  # type: ignore[list-item]
    assert set(threading.enumerate()) == before


def test_an_interruption_ends_all_ranks_at_their_next_wait() -> None:
    before, turns, steps = set(threading.enumerate()), Turns(), []
    go_on = [True, True]

    def work(number: int) -> None:
        if number == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # wakes a thread that joins another
        for step in range(200):
            steps.append(step)
            time.sleep(0.005)  # as a layer computes
            go_on[number], go_on[1 - number] = False, True
            turns.wait(lambda: go_on[number], lambda: "its turn")

    with pytest.raises(KeyboardInterrupt):
        turns.run([lambda: work(0), lambda: work(1)])
    assert set(threading.enumerate()) == before
    assert len(steps) < 400
    assert turns.run([lambda: 1]) == [1]


def test_threads_of_torch_and_whether_gradients_are_recorded_are_the_callers() -> None:
    threads, turns = torch.get_num_threads(), Turns()
    with torch.no_grad():
        found = turns.run([lambda: (torch.get_num_threads(), torch.is_grad_enabled())] * 2)
    assert found == [(threads, False)] * 2
