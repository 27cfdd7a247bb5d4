"""The validator against other ways of knowing: threads with bounded queues, any orders, faults planted anywhere."""

from __future__ import annotations

from queue import Queue
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.pipeline import Action, Schedule, deadlock, job, num_positions, problems, schedule, splits_backward
from strategies.pipeline.actions import Job, downstream, executed, inputs, on_grid, upstream

KINDS = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3), ("zero-bubble", 1), ("zero-bubble-v", 2)]


@pytest.mark.parametrize(("name", "chunks"), KINDS)
@pytest.mark.parametrize(("stages", "microbatches"), [(1, 3), (2, 5), (3, 2), (4, 9), (4, 11)])
def test_threads_with_queues_of_one_message_run_to_the_end(
    name: str, chunks: int, stages: int, microbatches: int
) -> None:
    made = schedule(name, stages, microbatches, chunks)
    last, holder = num_positions(made), made.placement.stage
    links: dict[tuple[int, int, str], Queue[Job]] = {
        (source, target, kind): Queue(maxsize=1)
        for source in range(stages) for target in range(stages) for kind in "FB"
    }  # fmt: skip
    ended: list[int] = []

    def run(rank: int) -> None:
        for action in made[rank]:
            what = job(action, made.placement)
            source, target = upstream(what, last), downstream(what, last)
            if source is not None and holder(source.position) != rank:
                assert links[holder(source.position), rank, what.kind].get(timeout=20) == source
            if target is not None and holder(target.position) != rank:
                links[rank, holder(target.position), what.kind].put(what, timeout=20)
        ended.append(rank)

    threads = [Thread(target=run, args=(rank,)) for rank in range(stages)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == list(range(stages))


@st.composite
def any_orders(draw) -> Schedule:
    """Ranks that each keep F before B of a micro-batch, and otherwise do as they like: often a deadlock."""
    stages, microbatches = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    found = []
    for stage in range(stages):
        turns = draw(st.permutations("FB" * microbatches))
        row: list[Action] = []
        counts = {"F": 0, "B": 0}
        for turn in turns:
            kind = "F" if counts["F"] == counts["B"] else "B" if counts["F"] == microbatches else turn
            row.append(Action(len(row), stage, kind, counts[kind]))  # type: ignore[arg-type]
            counts[kind] += 1
        found.append(row)
    return found


@settings(deadline=None)
@given(any_orders())
def test_what_stops_with_any_number_of_messages_is_what_cannot_be_executed(orders) -> None:
    try:
        num_executed = len(list(executed(orders)))
    except ValueError:
        num_executed = 0
    assert (deadlock(orders, None) is None) == (num_executed == sum(map(len, orders)))


@settings(deadline=None)
@given(any_orders())
def test_more_room_on_links_never_makes_a_deadlock(orders) -> None:
    ends = [deadlock(orders, in_flight) is None for in_flight in (1, 2, 3, 5, None)]
    assert ends == sorted(ends)


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 8), st.data())
def test_a_fault_planted_anywhere_is_found(kind, stages, microbatches, data) -> None:
    name, chunks = kind
    made = schedule(name, stages, microbatches, chunks)
    rank = data.draw(st.integers(0, stages - 1))
    row = made[rank]
    at = data.draw(st.integers(0, len(row) - 1))
    end = row[-1].tick + 1
    match data.draw(st.sampled_from(["missing", "doubled", "stage", "microbatch", "chunk", "tick", "order"])):
        case "missing":
            del row[at]
        case "doubled":
            row.append(row[at]._replace(tick=end))
        case "stage":
            row[at] = row[at]._replace(stage=rank + 1)
        case "microbatch":
            row[at] = row[at]._replace(microbatch=row[at].microbatch + 1)
        case "chunk":
            row[at] = row[at]._replace(chunk=row[at].chunk + 1)
        case "tick":
            row[at] = row[at]._replace(tick=-1 if at else end + 1)
        case "order":  # a backward moved to the front, before its forward
            backward = data.draw(st.sampled_from([action for action in row if action.kind == "B"]))
            row.remove(backward)
            row.insert(0, backward._replace(tick=row[0].tick - 1))
    assert problems(made, stages, microbatches, chunks, splits_backward(name))


@settings(deadline=None)
@given(any_orders())
def test_a_grid_starts_each_action_as_soon_as_it_can(orders) -> None:
    if deadlock(orders, None) is None:
        made = on_grid(orders)
        ends = {job(action, made.placement): action.tick + 1 for row in made for action in row}
        for row in made:
            for before, action in zip([None, *row], row, strict=False):
                free = before.tick + 1 if before else 0
                needed = [ends[what] for what in inputs(job(action, made.placement), len(made))]
                assert action.tick == max([free, *needed])
