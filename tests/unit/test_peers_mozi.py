"""Which models a peer of MOZI keeps, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from strategies.peers.mozi import mozi

OWN = torch.tensor([1.0, 0.0])
HEARD = torch.tensor([[2.0, 0.0], [9.0, 0.0], [1.0, 0.5], [1.0, -0.4], [0.0, 7.0]])


def away(vector: Tensor) -> float:
    """The best model is (1, 1)."""
    return float((vector - 1).norm())


def test_of_the_nearest_those_that_do_as_well_are_kept() -> None:
    found = mozi(OWN, HEARD, away, share=0.5)  # 3 of 5: (1, -0.4), (1, 0.5), (2, 0), of which the second is better
    assert found.kept == (2,) and found.num_rejected == 0
    assert torch.equal(found.model, torch.tensor([1.0, 0.25]))
    everybody = mozi(OWN, HEARD, lambda vector: 0.0, share=1.0, own_weight=0.0)
    assert everybody.kept == (0, 1, 2, 3, 4)
    assert torch.allclose(everybody.model, HEARD.mean(0))


def test_as_good_as_the_own_one_is_good_enough() -> None:
    assert mozi(OWN, OWN[None], away).kept == (0,)


def test_where_none_does_as_well_the_best_of_the_near_ones_is_kept() -> None:
    assert mozi(OWN, HEARD, lambda vector: float((vector - OWN).norm()), own_weight=0.0).kept == (3,)


def test_a_far_model_is_not_kept_however_good_it_is() -> None:
    far = torch.tensor([[1.0, 1.0], [1.0, -0.1], [1.0, -0.2]])
    assert 0 not in mozi(OWN, far, away).kept


def test_what_is_no_number_is_left_out_and_counted() -> None:
    heard = torch.tensor([[math.nan, 0.0], [1.0, 0.5], [math.inf, 0.0]])
    found = mozi(OWN, heard, away)
    assert found.kept == (1,) and found.num_rejected == 2
    nothing = mozi(OWN, heard[[0, 2]], away)
    assert torch.equal(nothing.model, OWN) and nothing.kept == () and nothing.num_rejected == 2
    unmeasured = mozi(OWN, HEARD, lambda vector: math.nan)
    assert torch.equal(unmeasured.model, OWN) and unmeasured.kept == ()


@pytest.mark.parametrize("arguments", [{"share": 0.0}, {"share": 1.1}, {"own_weight": -0.1}, {"own_weight": 2.0}])
def test_shares_and_weights_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        mozi(OWN, HEARD, away, **arguments)
