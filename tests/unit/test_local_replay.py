"""The ring buffer and the clock of asynchronous local learning."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from strategies.local.replay import Entry, Replay, Ticks


def filled(size: int, batches: int, max_reuse: int | None = None) -> Replay:
    buffer = Replay(size, max_reuse)
    for batch in range(1, batches + 1):
        buffer.put(batch, {"h": torch.full((1,), float(batch))})
    return buffer


def taken(buffer: Replay, times: int) -> list[int | None]:
    return [entry.batch if (entry := buffer.take()) else None for _ in range(times)]


def test_of_those_used_least_the_newest_is_next() -> None:
    assert taken(filled(3, 3), 7) == [3, 2, 1, 3, 2, 1, 3]


def test_a_new_batch_goes_before_all_that_were_used() -> None:
    buffer = filled(3, 3)
    assert taken(buffer, 2) == [3, 2]
    buffer.put(4, {})
    assert taken(buffer, 5) == [4, 4, 3, 2, 4]


def test_the_oldest_goes_and_counts_if_nobody_used_it() -> None:
    buffer = filled(2, 4)
    assert [entry.batch for entry in buffer.entries] == [3, 4] and buffer.num_unused == 2
    assert taken(buffer, 1) == [4]
    buffer.put(5, {})
    buffer.put(6, {})
    assert buffer.num_unused == 3


def test_batches_used_often_enough_are_waited_out_unless_no_more_will_come() -> None:
    buffer = filled(2, 2, max_reuse=1)
    assert taken(buffer, 5) == [2, 1, 2, 1, None] and not buffer.ready()
    assert buffer.ready(limited=False) and buffer.take(limited=False) == Entry(2, {"h": torch.full((1,), 2.0)}, 2)
    buffer.put(3, {})
    assert taken(buffer, 3) == [3, 3, None]


def test_an_empty_buffer_has_nothing() -> None:
    assert Replay(1).take() is None and not Replay(1).ready(limited=False)


@pytest.mark.parametrize("bad", [(0, None), (2, -1)])
def test_a_buffer_that_cannot_hold_anything_is_refused(bad: tuple[int, int | None]) -> None:
    with pytest.raises(ValueError, match="at least 1 batch"):
        Replay(*bad)


def test_modules_have_turns_in_proportion_to_their_speed_and_time_passes_as_it_would() -> None:
    clock = Ticks(5, [1.0, 2.0, 4.0])
    turns = Counter(clock.module(tick) for tick in range(3500))
    assert clock.tick_s == pytest.approx(4 / 7)
    for module, slowdown in enumerate([1.0, 2.0, 4.0]):
        assert turns[module] == pytest.approx(3500 * clock.tick_s / slowdown, rel=0.08)


def test_turns_depend_on_the_seed_and_the_tick_alone() -> None:
    first = [Ticks(5, [1.0, 1.0]).module(tick) for tick in range(40)]
    assert first == [Ticks(5, [1.0, 1.0]).module(tick) for tick in range(40)]
    assert first != [Ticks(6, [1.0, 1.0]).module(tick) for tick in range(40)]
