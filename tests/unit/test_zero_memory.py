"""What a rank holds at each stage of ZeRO: the paper's formulas, and what is beside them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.zero.memory import STAGES, Model, Numbers, held, smallest

MIXED = Numbers(weight=2, gradient=2, state=4, slots=2)  # Adam in mixed precision: K = 12


def states(number: int, ranks: int, stage: int) -> float:
    found = held(Model(number, number, 0), MIXED, ranks=ranks, stage=stage)
    return found.parameters + found.gradients + found.optimizer


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_figures_of_the_paper_for_seven_and_a_half_billion_parameters_on_64_gpus(
    stage: int, gigabytes: float
) -> None:
    assert states(7_500_000_000, 64, stage) / 1e9 == pytest.approx(gigabytes, abs=0.06)  # its figure 1


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 10**9), frozen=st.floats(0, 1), ranks=st.integers(1, 64), slots=st.sampled_from([0, 1, 2]))
def test_a_higher_stage_never_holds_more_of_the_states_and_shares_add_up(
    total: int, frozen: float, ranks: int, slots: float
) -> None:
    model, numbers = Model(total, total - int(frozen * total), total), Numbers(slots=slots)
    found = [held(model, numbers, ranks=ranks, stage=stage) for stage in STAGES]
    for low, high in pairwise(found[1:]):
        assert high.parameters <= low.parameters
        assert high.gradients <= low.gradients and high.optimizer <= low.optimizer
    assert total * 4 <= found[3].parameters * ranks < (total + ranks) * 4
    assert found[0].optimizer == model.trained * 4 * slots  # float32 needs no copy where nothing is shared out


def test_float32_weights_have_a_copy_where_deepspeed_keeps_one() -> None:
    model, plain = Model(1000, 1000, 10), Numbers(slots=0)
    assert [held(model, plain, ranks=2, stage=stage).optimizer for stage in STAGES] == [0, 2000, 2000, 2000]


def test_what_is_not_trained_has_neither_gradients_nor_states() -> None:
    found = held(Model(1000, 0, 10), Numbers(), ranks=2, stage=2)
    assert (found.parameters, found.gradients, found.optimizer) == (4000, 0, 0)


def test_stage_3_keeps_small_weights_whole_and_gathers_a_module_at_a_time() -> None:
    model = Model(total=1000, trained=1000, largest=300, small=100)
    found = held(model, Numbers(), ranks=2, stage=3)
    assert found.parameters == (100 + 500) * 4 and found.gathered == 300 * 4
    assert held(model, Numbers(live=5000), ranks=2, stage=3).gathered == 900 * 4  # all that is shared out, at most
    assert held(model, Numbers(bucket=50), ranks=2, stage=2).gathered == 50 * 4


def test_offload_moves_what_the_stage_shares_out() -> None:
    model = Model(1000, 1000, 0)
    moved = [held(model, MIXED, ranks=2, stage=stage, offload="cpu").offloaded for stage in (1, 2, 3)]
    assert moved == [6000, 7000, 8000]
    assert held(model, MIXED, ranks=2, stage=3, offload="cpu").on_device == 0
    with pytest.raises(ValueError, match="nothing to offload"):
        held(model, MIXED, ranks=2, stage=0, offload="cpu")
    with pytest.raises(ValueError, match="expected 0, 1, 2 or 3"):
        held(model, MIXED, ranks=2, stage=4)


def test_the_smallest_stage_that_fits_is_the_first_one_whose_bytes_do() -> None:
    model = Model(1000, 1000, 0)
    totals = [held(model, MIXED, ranks=4, stage=stage).total for stage in STAGES]
    assert totals == sorted(totals, reverse=True)
    for stage, total in enumerate(totals):
        assert smallest(model, MIXED, ranks=4, limit=total) == stage
    assert smallest(model, MIXED, ranks=4, limit=totals[-1] - 1) is None
    assert smallest(model, MIXED, ranks=4, limit=2000, offload="cpu", host_counts=False) == 2  # the weights alone
    assert smallest(model, MIXED, ranks=4, limit=2000, offload="cpu") is None
