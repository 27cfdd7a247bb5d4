"""Each kind of fault, planted in a schedule that was right: the validator must see it and name it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from strategies.pipeline import Action, Schedule, deadlock, interleaved, one_f_one_b, problems, zero_bubble


def orders(*rows: str) -> Schedule:
    """Return the schedule of one line a rank, such as "F0 F1 B1 B0", with ticks 0, 1, 2, ..."""
    return [
        [Action(tick, stage, word[0], int(word[1:])) for tick, word in zip(count(), row.split(), strict=False)]  # type: ignore[arg-type]
        for stage, row in enumerate(rows)
    ]


def swapped(row: list[Action], first: int, second: int) -> None:
    """Exchange two actions, each taking the other's tick."""
    row[first], row[second] = row[second]._replace(tick=row[first].tick), row[first]._replace(tick=row[second].tick)


def missing(made: Schedule) -> None:
    del made[1][-1]


def doubled(made: Schedule) -> None:
    made[1].append(made[1][-1]._replace(tick=99))


def on_another_rank(made: Schedule) -> None:
    made[0].append(made[2].pop()._replace(tick=99))


def of_another_stage(made: Schedule) -> None:
    made[0][0] = made[0][0]._replace(stage=2)


def one_micro_batch_too_many(made: Schedule) -> None:
    made[1].append(Action(99, 1, "F", 4))


def one_chunk_too_many(made: Schedule) -> None:
    made[1].append(Action(99, 1, "F", 0, 1))


def weights_apart(made: Schedule) -> None:
    made[1].append(Action(99, 1, "W", 0))


def backward_first(made: Schedule) -> None:
    swapped(made[2], 0, 1)


def messages_cross(made: Schedule) -> None:
    swapped(made[2], 0, 2)
    swapped(made[2], 1, 3)


def ticks_fall(made: Schedule) -> None:
    made[0][2] = made[0][2]._replace(tick=1)


def before_its_input(made: Schedule) -> None:
    made[1][0] = made[1][0]._replace(tick=0)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (missing, "rank 1 has B3 of chunk 0 0 times, expected once"),
        (doubled, "rank 1 has B3 of chunk 0 2 times, expected once"),
        (on_another_rank, "rank 0 lists an action of stage 2: B3 of chunk 0 at tick 99"),
        (on_another_rank, "rank 0 has B3 of chunk 0 2 times, expected once"),
        (on_another_rank, "rank 2 has B3 of chunk 0 0 times, expected once"),
        (of_another_stage, "rank 0 lists an action of stage 2: F0 of chunk 0 at tick 0"),
        (one_micro_batch_too_many, "rank 1 has F4 of chunk 0, which is none of kinds FB, 4 micro-batches and 1 chunks"),
        (one_chunk_too_many, "rank 1 has F0 of chunk 1, which is none of kinds FB, 4 micro-batches and 1 chunks"),
        (weights_apart, "rank 1 has W0 of chunk 0, which is none of kinds FB, 4 micro-batches and 1 chunks"),
        (backward_first, "rank 2 runs B0 of chunk 0 before its F0"),
        (messages_cross, "rank 2 takes F1 of position 1 from rank 1 when the next one sent is F0 of position 1"),
        (messages_cross, "rank 1 takes B0 of position 2 from rank 2 when the next one sent is B1 of position 2"),
        (ticks_fall, "rank 0 lists F2 of chunk 0 at tick 1 after F1 of chunk 0 at tick 1: ticks must rise"),
        (before_its_input, "rank 1 has F0 of chunk 0 at tick 0, but F0 of position 0 is at tick 0"),
    ],
)
def test_a_planted_fault_is_named(plant: Callable[[Schedule], None], said: str) -> None:
    made = one_f_one_b(3, 4)
    assert problems(made, 3, 4) == []
    plant(made)
    assert said in problems(made, 3, 4)


def test_a_missing_rank_is_named() -> None:
    assert problems(one_f_one_b(3, 4)[:2], 3, 4) == ["the schedule has 2 ranks, expected 3"]


def test_weights_before_input_gradients_are_named() -> None:
    made = zero_bubble(2, 2)
    where = [action.kind for action in made[1]]
    swapped(made[1], where.index("B"), where.index("W"))
    assert "rank 1 runs W0 of chunk 0 before its B0" in problems(made, 2, 2, split_backward=True)


def test_a_weight_gradient_that_is_left_out_is_named() -> None:
    assert "rank 0 has W0 of chunk 0 0 times, expected once" in problems(one_f_one_b(2, 2), 2, 2, split_backward=True)


def test_chunks_of_one_rank_in_the_wrong_order_are_named() -> None:
    # no message between ranks shows it, for there is one rank only
    made = interleaved(1, 2, 2)
    swapped(made[0], 0, [action.chunk for action in made[0]].index(1))
    assert "rank 0 has F0 of chunk 1 at tick 0, but F0 of position 0 is at tick 1" in problems(made, 1, 2, 2)


@pytest.mark.parametrize("in_flight", [1, 2, None])
def test_ranks_that_wait_for_each_other_are_named(in_flight: int | None) -> None:
    stuck = deadlock(orders("F0 B0 F1 B1", "F0 F1 B0 B1"), in_flight)
    assert stuck is not None
    assert "rank 0 waits for B0 of position 1 from rank 1, to run B0 of position 0" in stuck
    assert "rank 1 waits for F1 of position 0 from rank 0, to run F1 of position 1" in stuck
    assert problems(orders("F0 B0 F1 B1", "F0 F1 B0 B1"), 2, 2, in_flight=in_flight)[-1] == stuck


def test_a_link_that_holds_too_little_stops_a_schedule_that_runs_with_more() -> None:
    made = orders("F0 F1 F2 F3 B0 B1 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3")
    assert deadlock(made, 1) == (
        "deadlock with 1 message(s) in flight: "
        "rank 0 waits for rank 1 to take an earlier message, to send F3 of position 0; "
        "rank 1 waits for rank 0 to take an earlier message, to send B1 of position 1"
    )
    assert deadlock(made, 2) is None
    assert deadlock(made, None) is None


@pytest.mark.parametrize("in_flight", [0, -1])
def test_a_link_holds_at_least_one_message(in_flight: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, or None for no limit, got {in_flight}"):
        deadlock(one_f_one_b(2, 2), in_flight)
