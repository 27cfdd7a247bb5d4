"""Error feedback by hand."""

from __future__ import annotations

import pytest
import torch

from strategies.compression import QSGD, RandomK, SignSGD, TopK, compensate


def test_what_was_left_out_is_sent_later() -> None:
    codec = TopK(0.5)
    tree = {"w": torch.tensor([3.0, 2.0]), "n": torch.tensor(7)}
    first = compensate(codec, tree)
    assert (first.decoded["w"].tolist(), first.residual["w"].tolist()) == ([3, 0], [0, 2])
    second = compensate(codec, tree, first.residual)
    assert (second.decoded["w"].tolist(), second.residual["w"].tolist()) == ([0, 4], [3, 0])
    assert second.payload == codec.encode({"w": torch.tensor([3.0, 4.0]), "n": torch.tensor(7)})
    assert list(second.residual) == ["w"] and int(second.decoded["n"]) == 7


def test_scaled_signs_of_karimireddy() -> None:
    sent = compensate(SignSGD(), {"w": torch.tensor([1.0, -3.0])})
    assert (sent.decoded["w"].tolist(), sent.residual["w"].tolist()) == ([2, -2], [-1, -1])


def test_half_precision_owes_in_single_precision() -> None:
    tree = {"w": torch.tensor([1.0, 0.001], dtype=torch.float16)}
    sent = compensate(TopK(0.5), tree)
    again = compensate(TopK(0.5), tree, sent.residual)
    assert again.residual["w"].dtype == torch.float32
    assert float(again.residual["w"][1]) == 2 * float(tree["w"][1])


def test_nothing_given_is_changed() -> None:
    tree, residual = {"w": torch.ones(3)}, {"w": torch.full((3,), 0.5)}
    compensate(TopK(0.4), tree, residual)
    assert tree["w"].tolist() == [1] * 3 and residual["w"].tolist() == [0.5] * 3


def test_another_trees_residual_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['v', 'w'\] differ"):
        compensate(TopK(), {"w": torch.ones(3)}, {"v": torch.ones(3)})


def test_codecs_that_are_no_contraction_are_refused() -> None:
    for codec in (RandomK(), QSGD(levels=2), QSGD(levels=2).seeded(3)):
        with pytest.raises(ValueError, match="error feedback diverges with"):
            compensate(codec, {"w": torch.ones(3)})
    compensate(RandomK(unbiased=False), {"w": torch.ones(3)})
