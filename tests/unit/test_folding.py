"""Folding: fixed blocks, fixed order, and no tensor of a caller is changed."""

from __future__ import annotations

import pytest
import torch

from strategies.base import Contribution, Fold
from strategies.federated.folding import NUM_BLOCKS, add, block_size_for, blocks, fold


def test_blocks_are_consecutive_ids_whatever_the_order_they_came_in() -> None:
    assert blocks([44, 3, 21, 7, 12, 40, 18], 2) == [(3, 7), (12, 18), (21, 40), (44,)]


def test_a_client_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="once"):
        blocks([1, 2, 1], 2)


def test_a_block_size_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        blocks([1], 0)


@pytest.mark.parametrize("cohort", [1, 2, 3, 20, 31, 32, 100, 1000, 100_000])
def test_a_cohort_of_any_size_has_at_most_sixteen_blocks(cohort: int) -> None:
    assert len(blocks(range(cohort), block_size_for(cohort))) <= NUM_BLOCKS


def test_a_fold_is_the_weighted_sum() -> None:
    folded = fold(
        [Contribution({"w": torch.tensor([1.0, -2.0])}, 3.0), Contribution({"w": torch.tensor([0.5, 4.0])}, 2.0)]
    )
    assert folded is not None
    assert folded.total["w"].tolist() == [4.0, 2.0]
    assert (folded.weight, folded.num_clients) == (5.0, 2)


def test_folding_leaves_the_contributions_alone() -> None:
    tree = {"w": torch.tensor([1.0])}
    fold([Contribution(tree, 1.0), Contribution(tree, 1.0)])
    assert tree["w"].tolist() == [1.0]


def test_nothing_folds_to_nothing() -> None:
    assert fold([]) is None


def test_adding_no_folds_says_that_no_client_contributed() -> None:
    with pytest.raises(ValueError, match="no client"):
        add([])


def test_folds_of_different_models_do_not_add() -> None:
    with pytest.raises(ValueError, match="'b'"):
        add([Fold({"a": torch.ones(1)}, 1.0, 1), Fold({"a": torch.ones(1), "b": torch.ones(1)}, 1.0, 1)])
