"""Dropout with masks of 16 bits: exact means, the generator's order, gradients through what is kept."""

from __future__ import annotations

import pytest
import torch

from trainers.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.6, 0.95])
def test_as_many_are_dropped_as_asked_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(1)
    size = 400_000
    kept = Dropout(p)(torch.ones(size))
    sigma = (p * (1 - p) / size) ** 0.5
    assert abs(float((kept == 0).double().mean()) - p) < 5 * sigma + 1 / 65536
    assert set(kept.unique().tolist()) == {0.0, float(torch.tensor(65536 / (65536 - round(p * 65536))))}
    assert abs(float(kept.double().mean()) - 1) < 5 * sigma / (1 - p)


def test_numbers_that_share_a_word_are_dropped_independently() -> None:
    torch.manual_seed(2)
    dropped = (Dropout(0.5)(torch.ones(100_000, 4)) == 0).double()
    correlation = torch.corrcoef(dropped.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.02
    assert float((dropped.mean(0) - 0.5).abs().max()) < 0.01


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_pass_where_numbers_were_kept(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = torch.randn(shape, dtype=dtype).requires_grad_()
    y = Dropout(0.5)(x)
    upstream = torch.randn(shape, dtype=dtype)
    y.backward(upstream)
    assert x.grad is not None and x.grad.dtype == dtype
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0).to(dtype) * upstream)


def test_the_same_state_of_the_generator_gives_the_same_mask_and_the_next_another() -> None:
    x, drop = torch.ones(1000), Dropout(0.5)
    torch.manual_seed(4)
    first, second = drop(x), drop(x)
    torch.manual_seed(4)
    assert torch.equal(first, drop(x)) and not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation_and_everything_at_one() -> None:
    x = torch.randn(50)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
