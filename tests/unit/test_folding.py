"""Folding: fixed blocks, a fixed tree, and no tensor of a caller is changed."""

from __future__ import annotations

import pytest
import torch

from strategies.base import Contribution, Fold
from strategies.federated.folding import NUM_BLOCKS, Summation, add, blocks, fold, spans


def test_blocks_of_a_size_are_consecutive() -> None:
    assert blocks([3, 7, 12, 18, 21, 40, 44], 2) == [range(2), range(2, 4), range(4, 6), range(6, 7)]


def test_blocks_without_a_size_are_nearly_equal() -> None:
    sizes = [len(block) for block in blocks(range(100))]
    assert len(sizes) == NUM_BLOCKS and set(sizes) == {6, 7} and sum(sizes) == 100


@pytest.mark.parametrize(("num", "expected"), [(1, 1), (2, 1), (3, 1), (4, 2), (20, 10), (31, 15), (100_000, 16)])
def test_a_cohort_of_any_size_has_at_most_sixteen_blocks_of_two_or_more(num: int, expected: int) -> None:
    assert len(blocks(range(num))) == expected


def test_nobody_is_in_no_block() -> None:
    assert blocks([]) == []


def test_a_client_that_took_part_twice_stays_in_one_block() -> None:
    assert blocks([1, 2, 2, 2, 3], 2) == [range(4), range(4, 5)]
    assert blocks([5, 5, 5, 5], 1) == [range(4)]


def test_clients_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        blocks([2, 1])


def test_a_block_size_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        blocks([1], 0)


def test_spans_shrink_towards_the_end() -> None:
    assert [len(span) for span in spans(10, 2)] == [4, 2, 2, 1, 1]
    assert [len(span) for span in spans(16, 1)] == [16]


def test_even_spans_are_one_a_worker() -> None:
    assert [len(span) for span in spans(16, 2, even=True)] == [8, 8]
    assert [len(span) for span in spans(8, 3, even=True)] == [2, 2, 2, 2]


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
    assert Summation().total() is None


def test_a_block_without_contributions_adds_nothing() -> None:
    summation = Summation()
    for part in (None, Fold({"w": torch.tensor([2.0])}, 1.0, 1), None):
        summation.push(part)
    total = summation.total()
    assert total is not None and total.total["w"].tolist() == [2.0] and total.num_clients == 1


def test_blocks_are_added_pairwise() -> None:
    """1e8 + 1 is 1e8 in float32; pairwise, the small ones meet each other before they meet the large one."""
    summation = Summation()
    for value in (1e8, 0.0, 4.0, 4.0):
        summation.push(Fold({"w": torch.tensor([value])}, 1.0, 1))
    total = summation.total()
    assert total is not None and total.total["w"].item() == 1e8 + 8


def test_folds_of_different_models_do_not_add() -> None:
    with pytest.raises(ValueError, match="'b'"):
        add(Fold({"a": torch.ones(1)}, 1.0, 1), Fold({"a": torch.ones(1), "b": torch.ones(1)}, 1.0, 1))
