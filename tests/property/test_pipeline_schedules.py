"""All schedules of all sizes, fewer micro-batches than stages and uneven rounds among them, under one set of laws."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.pipeline import (
    Costs,
    gpipe,
    interleaved,
    job,
    one_f_one_b,
    problems,
    schedule,
    simulate,
    splits_backward,
    uniform,
    zero_bubble,
    zero_bubble_v,
)
from strategies.pipeline.actions import inputs

KINDS = [
    ("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3), ("interleaved", 4), ("zero-bubble", 1),
    ("zero-bubble-v", 2),
]  # fmt: skip
SIZES = [(stages, microbatches) for stages in range(1, 9) for microbatches in range(1, 17)]

every_kind = pytest.mark.parametrize(("name", "chunks"), KINDS)
kinds = st.sampled_from(KINDS)
num_stages = st.integers(1, 8)
num_microbatches = st.integers(1, 20)
seconds = st.fractions(0, 10, max_denominator=8)


@every_kind
@pytest.mark.parametrize("in_flight", [1, 2, 3, None])
def test_schedules_have_no_problems_whatever_a_link_holds(name: str, chunks: int, in_flight: int | None) -> None:
    for stages, microbatches in SIZES:
        made = schedule(name, stages, microbatches, chunks)
        assert problems(made, stages, microbatches, chunks, splits_backward(name), in_flight) == []


@every_kind
def test_long_and_wide_schedules_have_no_problems(name: str, chunks: int) -> None:
    for stages, microbatches in ((2, 65), (3, 50), (5, 49), (9, 19), (12, 23), (12, 25), (16, 33)):
        made = schedule(name, stages, microbatches, chunks)
        assert problems(made, stages, microbatches, chunks, splits_backward(name)) == []


@every_kind
def test_ticks_are_the_starts_of_a_simulation_with_unit_costs(name: str, chunks: int) -> None:
    for stages, microbatches in SIZES:
        made = schedule(name, stages, microbatches, chunks)
        spans = simulate(made, uniform(stages * chunks, 1, 1, 1 if splits_backward(name) else None)).spans
        assert [[span.start_s for span in row] for row in spans] == [[action.tick for action in row] for row in made]


def test_gpipe_is_idle_for_exactly_its_formula() -> None:
    for stages, microbatches in SIZES:
        for costs in (uniform(stages), uniform(stages, Fraction(1, 3), Fraction(7, 10))):
            simulation = simulate(gpipe(stages, microbatches), costs)
            assert simulation.bubble == Fraction(stages - 1, microbatches + stages - 1)
            assert simulation.peak_live == [microbatches] * stages


def test_gpipe_does_forwards_of_clock_t_on_micro_batch_t_minus_s_and_backwards_in_reverse() -> None:
    for stages, microbatches in SIZES:
        made = gpipe(stages, microbatches)
        end = 2 * (microbatches + stages - 1) - 1
        for stage, row in enumerate(made):
            forwards = [action for action in row if action.kind == "F"]
            assert all(action.microbatch == action.tick - stage for action in forwards)
            assert [a._replace(kind="B", tick=end - a.tick) for a in reversed(forwards)] == row[microbatches:]


def test_one_f_one_b_is_as_long_as_gpipe_and_holds_fewer_micro_batches() -> None:
    for stages, microbatches in SIZES:
        for costs in (uniform(stages), uniform(stages, 1, 2), uniform(stages, 5, 1)):
            simulation = simulate(one_f_one_b(stages, microbatches), costs)
            assert simulation.bubble == Fraction(stages - 1, microbatches + stages - 1)
            assert simulation.peak_live == [min(microbatches, stages - stage) for stage in range(stages)]


@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_interleaving_divides_the_bubble_by_the_chunks(chunks: int) -> None:
    for stages, microbatches in SIZES:
        simulation = simulate(interleaved(stages, microbatches, chunks), uniform(stages * chunks, 1, 2))
        ideal = Fraction(stages - 1, chunks * microbatches + stages - 1)
        if microbatches % stages == 0 or stages <= microbatches < 2 * stages:
            assert simulation.bubble == ideal
        assert simulation.bubble >= ideal or microbatches < stages
        size = microbatches if microbatches < 2 * stages else stages
        most = [min(chunks * microbatches, (chunks - 1) * size + 2 * (stages - 1 - s) + 1) for s in range(stages)]
        assert all(live <= bound for live, bound in zip(simulation.peak_live, most, strict=True))
        if size == microbatches or microbatches % stages == 0:
            assert simulation.peak_live == most


@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_interleaving_is_shorter_than_1f1b_of_whole_stages(chunks: int) -> None:
    for stages, microbatches in SIZES:
        pieces = simulate(interleaved(stages, microbatches, chunks), uniform(stages * chunks, 1, 2)).makespan_s
        whole = simulate(one_f_one_b(stages, microbatches), uniform(stages, chunks, 2 * chunks)).makespan_s
        assert pieces <= whole


def test_zero_bubble_leaves_a_third_of_the_bubble_of_1f1b_and_holds_no_more_than_its_first_stage() -> None:
    for stages, microbatches in SIZES:
        unit = uniform(stages, 1, 1, 1)
        simulation = simulate(zero_bubble(stages, microbatches), unit)
        whole = simulate(one_f_one_b(stages, microbatches), unit)
        missing = max(0, stages - microbatches)
        assert simulation.makespan_s == 3 * microbatches + (stages - 1) + missing
        assert whole.makespan_s == 3 * microbatches + 3 * (stages - 1)
        assert max(simulation.peak_live) <= min(stages, microbatches) == whole.peak_live[0]


def test_zero_bubble_v_is_never_longer_than_zero_bubble_and_holds_no_more() -> None:
    for stages, microbatches in SIZES:
        halves = simulate(zero_bubble_v(stages, microbatches), uniform(2 * stages, 1, 1, 1))
        whole = simulate(zero_bubble(stages, microbatches), uniform(stages, 2, 2, 2))
        assert max(halves.peak_live) <= 2 * min(stages, microbatches)
        assert halves.bubble < whole.bubble or stages == 1
        if microbatches >= 2 * stages - 1:
            assert halves.makespan_s == 6 * microbatches + stages - 1
        if microbatches == 1:
            assert halves.makespan_s == max(6, 4 * stages + 1)


@st.composite
def stage_costs(draw, positions: int, weight: bool = True) -> Costs:
    def values(number: int) -> list[Fraction]:
        return draw(st.lists(seconds, min_size=number, max_size=number))

    transfer = values(positions - 1) if draw(st.booleans()) else []
    again = values(positions) if draw(st.booleans()) else []
    kept = draw(st.sets(st.integers(0, 3)))
    weights = values(positions) if weight else []
    return Costs(values(positions), values(positions), weights, transfer, again, kept, draw(st.booleans()))


@settings(deadline=None)
@given(num_stages, num_microbatches, st.data())
def test_zero_bubble_is_never_longer_than_1f1b_with_the_costs_it_was_made_for(stages, microbatches, data) -> None:
    costs = data.draw(stage_costs(stages))._replace(recompute_s=())
    made = zero_bubble(stages, microbatches, costs)
    assert problems(made, stages, microbatches, split_backward=True) == []
    simulation = simulate(made, costs)
    assert simulation.makespan_s <= simulate(one_f_one_b(stages, microbatches), costs).makespan_s
    assert max(simulation.peak_live) <= min(stages, microbatches)


@settings(deadline=None)
@given(kinds, st.integers(1, 5), st.integers(1, 9), st.data())
def test_a_simulation_keeps_every_dependency_and_accounts_for_all_time(kind, stages, microbatches, data) -> None:
    name, chunks = kind
    costs = data.draw(stage_costs(stages * chunks))
    made = schedule(name, stages, microbatches, chunks)
    simulation = simulate(made, costs)
    ends = {job(span.action, made.placement): span.end_s for row in simulation.spans for span in row}
    work: Fraction | int = 0
    for rank, (row, again) in enumerate(zip(simulation.spans, simulation.recomputed, strict=True)):
        assert [span.action for span in row] == made[rank]
        taken = sorted([*row, *again], key=lambda span: (span.start_s, span.end_s))
        assert all(before.end_s <= after.start_s for before, after in pairwise(taken))
        work += sum(span.end_s - span.start_s for span in taken)
        for span in row:
            what = job(span.action, made.placement)
            for needed in inputs(what, stages * chunks):
                between = made.placement.stage(needed.position) != made.placement.stage(what.position)
                link = min(needed.position, what.position)
                late = costs.transfer_s[link] if between and costs.transfer_s else 0
                assert span.start_s >= ends[needed] + late
    assert simulation.makespan_s == max(ends.values())
    if simulation.makespan_s:
        assert simulation.bubble == 1 - Fraction(work) / (stages * simulation.makespan_s)
    per_microbatch = sum(costs.forward_s) + sum(costs.backward_s) + sum(costs.weight_s)
    again_per = sum(costs.recompute_s) * sum(m not in costs.not_recomputed for m in range(microbatches))
    assert work == microbatches * per_microbatch + again_per


@settings(deadline=None)
@given(kinds, st.integers(1, 5), st.integers(1, 9), st.data())
def test_higher_costs_never_make_a_schedule_shorter(kind, stages, microbatches, data) -> None:
    name, chunks = kind
    costs = data.draw(stage_costs(stages * chunks))
    dearer = costs._replace(
        forward_s=[value + data.draw(seconds) for value in costs.forward_s],
        transfer_s=[value + data.draw(seconds) for value in costs.transfer_s],
    )
    made = schedule(name, stages, microbatches, chunks)
    assert simulate(made, dearer).makespan_s >= simulate(made, costs).makespan_s
