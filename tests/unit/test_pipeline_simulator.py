"""Simulations worked out by hand: two stages, two or three micro-batches, unequal costs."""

from __future__ import annotations

from fractions import Fraction

import pytest

from strategies.pipeline import Costs, gpipe, interleaved, one_f_one_b, simulate, timeline, uniform, zero_bubble

TWO = Costs([2, 3], [4, 5], transfer_s=[1])
AGAIN = TWO._replace(recompute_s=[2, 3])


def times(spans) -> list[list[tuple]]:
    return [
        [(f"{action.kind}{action.microbatch}", start, end) for start, end, action in row]
        for row in spans
    ]  # fmt: skip


def test_unequal_costs_and_transfers() -> None:
    made = simulate(gpipe(2, 2), TWO)
    assert times(made.spans) == [
        [("F0", 0, 2), ("F1", 2, 4), ("B1", 15, 19), ("B0", 20, 24)],
        [("F0", 3, 6), ("F1", 6, 9), ("B1", 9, 14), ("B0", 14, 19)],
    ]
    assert made.makespan_s == 24
    assert made.bubble == Fraction(5, 12)  # 28 of 48 s are work
    assert made.recomputed == [[], []]


def test_recomputation_begins_before_the_gradient_arrives() -> None:
    made = simulate(gpipe(2, 2), AGAIN)
    assert times(made.spans) == [
        [("F0", 0, 2), ("F1", 2, 4), ("B1", 18, 22), ("B0", 26, 30)],
        [("F0", 3, 6), ("F1", 6, 9), ("B1", 12, 17), ("B0", 20, 25)],
    ]
    assert times(made.recomputed) == [[("B1", 4, 6), ("B0", 22, 24)], [("B1", 9, 12), ("B0", 17, 20)]]
    assert made.bubble == Fraction(11, 30)  # 38 of 60 s are work


def test_recomputation_after_the_gradient_takes_longer() -> None:
    made = simulate(gpipe(2, 2), AGAIN._replace(early_recompute=False))
    assert times(made.recomputed)[0] == [("B1", 18, 20), ("B0", 26, 28)]
    assert made.makespan_s == 32


def test_the_last_micro_batch_need_not_be_recomputed() -> None:
    made = simulate(gpipe(2, 2), AGAIN._replace(not_recomputed={1}))
    assert times(made.recomputed) == [[("B0", 19, 21)], [("B0", 14, 17)]]
    assert made.makespan_s == 27


def test_messages_of_a_slow_link_queue() -> None:
    made = simulate(gpipe(2, 3), Costs([2, 1], [1, 1], transfer_s=[5]))
    assert times(made.spans)[1][:3] == [("F0", 7, 8), ("F1", 12, 13), ("F2", 17, 18)]


def test_chunks_on_the_same_rank_pass_on_for_nothing() -> None:
    assert simulate(interleaved(1, 2, 2), Costs([1, 1], [1, 1], transfer_s=[100])).makespan_s == 8


def test_a_schedule_that_does_not_split_does_both_parts_of_backward_in_one() -> None:
    costs = uniform(1, 1, 2, 3)
    assert times(simulate(gpipe(1, 1), costs).spans) == [[("F0", 0, 1), ("B0", 1, 6)]]
    assert times(simulate(zero_bubble(1, 1), costs).spans) == [[("F0", 0, 1), ("B0", 1, 3), ("W0", 3, 6)]]


def test_bytes_with_activations_kept_and_recomputed() -> None:
    costs = uniform(2)._replace(activation_bytes=[100, 10], boundary_bytes=[7, 3])
    assert simulate(gpipe(2, 3), costs).peak_bytes == [300, 30]
    assert simulate(one_f_one_b(2, 3), costs).peak_bytes == [200, 10]
    always = costs._replace(recompute_s=[1, 1])
    assert simulate(gpipe(2, 3), always).peak_bytes == [2 * 7 + 100, 2 * 3 + 10]
    assert simulate(gpipe(2, 3), always._replace(not_recomputed={2})).peak_bytes == [2 * 7 + 100, 2 * 3 + 10]
    assert simulate(gpipe(2, 3), costs._replace(recompute_s=[1, 0])).peak_bytes == [2 * 7 + 100, 30]


def test_activations_are_held_until_the_weight_gradients() -> None:
    costs = uniform(2, 1, 1, 1)._replace(activation_bytes=[100, 10], boundary_bytes=[7, 3])
    assert simulate(zero_bubble(2, 3), costs).peak_bytes == [200, 20]


def test_gradients_put_aside_by_an_input_backward_are_held_until_the_weight_gradients() -> None:
    costs = uniform(2, 1, 1, 1)._replace(activation_bytes=[100, 10], gradient_bytes=[40, 4])
    # stage 0 is F0 F1 B0 W0 F2 B1 W1 B2 W2, stage 1 F0 B0 F1 B1 W0 W1 and so on: two are put aside there
    assert simulate(zero_bubble(2, 3), costs).peak_bytes == [240, 28]
    assert simulate(gpipe(2, 3), costs).peak_bytes == [300, 30]


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        (Costs([1], [1, 1]), "forward_s needs 2 values for a model of 2 positions, got 1"),
        (Costs([1, 1], []), "backward_s needs 2 values for a model of 2 positions, got 0"),
        (uniform(2)._replace(transfer_s=[1, 1]), "transfer_s needs 1 values for a model of 2 positions, got 2"),
        (Costs([1, 1], [1, -3]), "backward_s must be at least 0, got -3"),
        (Costs([1, float("nan")], [1, 1]), "forward_s must be at least 0, got nan"),
    ],
)
def test_costs_of_another_model_are_refused(costs: Costs, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        simulate(gpipe(2, 2), costs)


def test_a_split_schedule_needs_the_cost_of_its_parts() -> None:
    with pytest.raises(ValueError, match="give weight_s"):
        simulate(zero_bubble(2, 2), uniform(2))


def test_a_schedule_that_cannot_run_is_refused() -> None:
    made = gpipe(2, 2)
    made[0].reverse()
    with pytest.raises(ValueError, match="this schedule cannot run: rank 0 at B0 of position 0 waits for"):
        simulate(made, uniform(2))


def test_a_simulation_is_drawn_to_scale() -> None:
    assert timeline(simulate(gpipe(2, 2), AGAIN), width=30) == (
        "F2: forward of micro-batch 2; B2: its backward; a dot: the stage waits. '=' goes on with the action, "
        "'r' recomputes.\n"
        "\n"
        "stage 0 F0F1rr............B1==rr..B0==\n"
        "stage 1 ...F0=F1=rrrB1===rrrB0===.....\n"
        "makespan 30 s, bubble 36.7%"
    )
