"""Schedules by name, as their docstrings draw them, and the numbers that their papers give."""

from __future__ import annotations

import inspect
from fractions import Fraction
from textwrap import indent

import pytest

from strategies.pipeline import (
    SCHEDULES,
    Costs,
    chunks_of,
    gpipe,
    interleaved,
    one_f_one_b,
    placement,
    problems,
    schedule,
    simulate,
    splits_backward,
    timeline,
    uniform,
    zero_bubble,
    zero_bubble_v,
)

DRAWN = {
    gpipe: gpipe(3, 4),
    one_f_one_b: one_f_one_b(3, 4),
    interleaved: interleaved(2, 4, 2),
    zero_bubble: zero_bubble(3, 4),
    zero_bubble_v: zero_bubble_v(3, 3),
}


@pytest.mark.parametrize("function", DRAWN, ids=lambda function: function.__name__)
def test_the_drawing_in_a_docstring_is_what_timeline_draws(function) -> None:
    legend, drawing = timeline(DRAWN[function]).split("\n\n")
    doc = inspect.getdoc(function)
    assert doc is not None
    assert f"\n\n{legend}\n\n{indent(drawing, '    ')}\n\n" in doc


def test_every_schedule_has_a_drawing() -> None:
    assert set(DRAWN) == set(SCHEDULES.values())


def test_a_schedule_of_fewer_micro_batches_than_stages() -> None:
    assert timeline(one_f_one_b(4, 2), legend=False).split("\n") == [
        "tick     0  1  2  3  4  5  6  7  8  9",
        "stage 0 F0 F1  .  .  .  .  . B0  . B1",
        "stage 1  . F0 F1  .  .  . B0  . B1  .",
        "stage 2  .  . F0 F1  . B0  . B1  .  .",
        "stage 3  .  .  . F0 B0 F1 B1  .  .  .",
    ]


def test_interleaved_rounds_are_even_when_stages_do_not_divide_micro_batches() -> None:
    order = [f"{action.microbatch}{'ab'[action.chunk]}" for action in interleaved(2, 5, 2)[0] if action.kind == "F"]
    assert order == ["0a", "1a", "0b", "1b", "2a", "3a", "2b", "3b", "4a", "4b"]


@pytest.mark.parametrize(
    ("name", "chunks", "makespan", "bubble", "live"),
    [
        ("gpipe", 1, 22, Fraction(3, 11), [8, 8, 8, 8]),
        ("1f1b", 1, 22, Fraction(3, 11), [4, 3, 2, 1]),
        ("interleaved", 2, 38, Fraction(3, 19), [11, 9, 7, 5]),
        ("interleaved", 4, 70, Fraction(3, 35), [19, 17, 15, 13]),
        ("zero-bubble", 1, 27, Fraction(1, 9), [4, 4, 4, 4]),
        ("zero-bubble-v", 2, 51, Fraction(1, 17), [8, 8, 8, 8]),
    ],
)
def test_four_stages_and_eight_micro_batches(
    name: str, chunks: int, makespan: int, bubble: Fraction, live: list[int]
) -> None:
    simulation = simulate(schedule(name, 4, 8, chunks), uniform(4 * chunks, 1, 1, 1 if splits_backward(name) else None))
    assert (simulation.makespan_s, simulation.bubble, simulation.peak_live) == (makespan, bubble, live)


def test_names_give_their_functions() -> None:
    assert schedule("gpipe", 3, 5) == gpipe(3, 5)
    assert schedule("1f1b", 3, 5) == one_f_one_b(3, 5)
    assert schedule("interleaved", 3, 5, 3) == interleaved(3, 5, 3)
    assert schedule("zero-bubble", 3, 5) == zero_bubble(3, 5)
    assert schedule("zero-bubble-v", 3, 5, 2) == zero_bubble_v(3, 5)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("1F1B", "1f1b"),
        ("GPipe", "gpipe"),
        ("interleave", "interleaved"),
        ("zero_bubble", "zero-bubble"),
        ("zero_bubble_v", "zero-bubble-v"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown schedule '{name}'; the nearest is '{nearest}'"):
        schedule(name, 2, 2)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zero-bubble"])
def test_only_interleaved_has_chunks(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' has 1 chunk a rank, got num_chunks=2; for more use interleaved"):
        schedule(name, 2, 2, 2)


def test_interleaved_has_at_least_two_chunks() -> None:
    with pytest.raises(ValueError, match="at least 2 chunks a rank, got num_chunks=1; with one chunk use 1f1b"):
        schedule("interleaved", 2, 2)


@pytest.mark.parametrize("chunks", [1, 3])
def test_zero_bubble_v_has_two_chunks(chunks: int) -> None:
    with pytest.raises(ValueError, match=f"'zero-bubble-v' has 2 chunks a rank, got num_chunks={chunks}"):
        schedule("zero-bubble-v", 2, 2, chunks)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("stages", "microbatches"), [(0, 1), (1, 0), (-2, 3)])
def test_a_pipeline_has_a_stage_and_a_micro_batch(name: str, stages: int, microbatches: int) -> None:
    with pytest.raises(ValueError, match=f"num_stages={stages} and num_microbatches={microbatches}"):
        schedule(name, stages, microbatches, chunks_of(name, 2))


def test_zero_bubble_takes_costs_of_its_own_stages_only() -> None:
    with pytest.raises(ValueError, match="forward_s needs 3 values for a model of 3 positions, got 2"):
        zero_bubble(3, 4, uniform(2, 1, 1, 1))
    with pytest.raises(ValueError, match="give weight_s"):
        zero_bubble(3, 4, uniform(3))


def test_zero_bubble_puts_long_weight_gradients_where_they_fit() -> None:
    # W takes 3: it does not fit the gap of 2 ticks before B1, which unit costs would have given it
    costs = Costs([1, 1], [1, 1], [3, 3], transfer_s=[0])
    names = [f"{action.kind}{action.microbatch}" for action in zero_bubble(2, 2, costs)[0]]
    assert names == ["F0", "F1", "B0", "B1", "W0", "W1"]


def test_a_folded_model_turns_at_the_last_rank_and_comes_back() -> None:
    placed = zero_bubble_v(4, 3).placement
    assert placed == placement("zero-bubble-v", 4, 2)
    assert [placed.stage(position) for position in range(8)] == [0, 1, 2, 3, 3, 2, 1, 0]
    assert [placed.positions(stage) for stage in range(4)] == [[0, 7], [1, 6], [2, 5], [3, 4]]


def test_every_placement_gives_each_position_to_one_chunk_of_one_rank() -> None:
    for name in SCHEDULES:
        for stages in range(1, 7):
            placed = placement(name, stages, chunks_of(name, 3))
            held = [placed.positions(stage) for stage in range(stages)]
            assert sorted(position for row in held for position in row) == list(range(placed.num_positions))
            assert all(row == sorted(row) for row in held)
            assert all(placed.stage(position) == stage for stage, row in enumerate(held) for position in row)


def test_a_schedule_says_itself_where_its_positions_are() -> None:
    # as plain lists, which go round the ranks, the same actions would stand for another pipeline
    made = zero_bubble_v(3, 2)
    assert problems(made, 3, 2, 2, split_backward=True) == []
    assert problems([list(row) for row in made], 3, 2, 2, split_backward=True) != []
