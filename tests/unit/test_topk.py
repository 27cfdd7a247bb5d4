"""Top-k and random-k by hand."""

from __future__ import annotations

import pytest
import torch

from strategies.compression import FP16, Codec, RandomK, TopK, chain


def through(codec: Codec, values: list[float]) -> list[float]:
    decoded: list[float] = codec.decode(codec.encode({"w": torch.tensor(values)}))["w"].tolist()
    return decoded


def test_the_largest_stay_as_they_are() -> None:
    assert through(TopK(0.4), [0.1, -7.0, 3.0, 0.2, -0.3]) == [0, -7, 3, 0, 0]


def test_of_a_tie_the_first_is_kept() -> None:
    assert through(TopK(0.5), [1.0, -2.0, 2.0, -2.0]) == [0, -2, 2, 0]


def test_at_least_one_is_kept() -> None:
    assert through(TopK(1e-6), [1.0, -2.0]) == [0, -2]


def test_the_tree_shares_one_budget() -> None:
    tree = {"a": torch.tensor([1.0, 2.0]), "none": torch.zeros(0), "b": torch.tensor([[9.0, -8.0], [0.5, 3.0]])}
    codec = TopK(0.5, scope="tree")
    back = codec.decode(codec.encode(tree))
    assert (back["a"].tolist(), back["b"].tolist()) == ([0, 0], [[9, -8], [0, 3]])


def test_doubles_keep_all_their_bits() -> None:
    exact = torch.tensor([1 / 3, 1e300, 0.0], dtype=torch.float64)
    assert torch.equal(TopK(1.0).decode(TopK(1.0).encode({"w": exact}))["w"], exact)


def test_the_kept_values_are_what_the_next_stage_codes() -> None:
    codec = chain([TopK(0.5), FP16()])
    assert through(codec, [1.0001, 0.1, -5.0, 0.2]) == [1, 0, -5, 0]
    tree = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    assert len(TopK(0.5).encode(tree)) - len(codec.encode(tree)) == 500 * 2 - len("+fp16")


def test_random_k_multiplies_by_n_over_k() -> None:
    values = [float(number) for number in range(1, 11)]
    found = through(RandomK(0.2).seeded(5), values)
    kept = [index for index, value in enumerate(found) if value]
    assert len(kept) == 2
    assert [found[index] for index in kept] == [5 * values[index] for index in kept]
    plain = through(RandomK(0.2, unbiased=False).seeded(5), values)
    assert [plain[index] for index in kept] == [values[index] for index in kept]


def test_random_k_sends_a_seed_and_no_positions() -> None:
    tree = {"w": torch.ones(10_000)}
    assert len(RandomK(0.01).bind(tree).encode(tree)) == 4 + 8 + 2 + 8 + 4 * 100 + 4


def test_random_k_says_when_scaling_overflows() -> None:
    with pytest.raises(ValueError, match="'w' times n/k leaves the range"):
        RandomK(0.01).encode({"w": torch.full((1000,), 1e38)})


@pytest.mark.parametrize("keep", [0, -1, 1.01, float("nan")])
def test_a_fraction_is_one(keep: float) -> None:
    for kind in (TopK, RandomK):
        with pytest.raises(ValueError, match="keep="):
            kind(keep)
    with pytest.raises(ValueError, match="scope="):
        TopK(0.1, scope="layer")  # type: ignore[arg-type]
