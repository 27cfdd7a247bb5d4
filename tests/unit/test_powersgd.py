"""PowerSGD: exact on low rank, a projection otherwise, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from strategies.compression import PowerSGD


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def through(codec: PowerSGD, tensor: torch.Tensor) -> torch.Tensor:
    return codec.decode(codec.encode({"w": tensor}))["w"]


def test_a_matrix_of_the_rank_comes_back() -> None:
    matrix = torch.randn(30, 3, generator=rng()) @ torch.randn(3, 20, generator=rng())
    assert torch.allclose(through(PowerSGD(rank=3), matrix), matrix, atol=1e-5)
    exact = torch.randn(30, 3, generator=rng(), dtype=torch.float64) @ torch.randn(3, 20, generator=rng()).double()
    tall = exact.reshape(30, 5, 2, 2)
    assert torch.allclose(through(PowerSGD(rank=3), tall), tall, atol=1e-10)


def test_it_is_a_projection_onto_the_range_of_m_q() -> None:
    """Vogels et al., Algorithm 1, written out: decoded = P P^T M."""
    matrix = torch.randn(12, 9, generator=rng(), dtype=torch.float64)
    decoded = through(PowerSGD(rank=2), matrix)
    left = torch.linalg.svd(decoded).U[:, :2]
    assert torch.linalg.matrix_rank(decoded) == 2
    assert torch.allclose(left @ left.T @ matrix, decoded, atol=1e-12)


def test_more_iterations_come_nearer_to_the_best_approximation() -> None:
    matrix = torch.randn(60, 50, generator=rng())
    u, s, v = torch.linalg.svd(matrix)
    best = float((u[:, :4] * s[:4] @ v[:4] - matrix).norm())
    errors = [float((through(PowerSGD(4, iterations), matrix) - matrix).norm()) for iterations in (1, 4, 40)]
    assert errors[0] > errors[1] > errors[2] > best
    assert errors[2] < 1.001 * best


def test_vectors_and_matrices_without_gain_pass_whole() -> None:
    tree = {
        "bias": torch.randn(50, generator=rng()),
        "tiny": torch.randn(3, 3, generator=rng()),
        "none": torch.zeros(0, 5),
    }
    back = PowerSGD(rank=2).decode(PowerSGD(rank=2).encode(tree))
    assert all(torch.equal(back[name], tree[name]) for name in tree)


def test_the_payload_is_the_factors() -> None:
    tree = {"w": torch.randn(100, 200, generator=rng())}
    assert len(PowerSGD(rank=2).bind(tree).encode(tree)) == 4 + 8 + 2 + 4 * 2 * 300 + 4


def test_tiny_zero_and_huge_matrices_survive() -> None:
    matrix = torch.randn(20, 2, generator=rng()) @ torch.randn(2, 20, generator=rng())
    for scale in (0.0, 1e-36, 1e35):
        assert torch.allclose(through(PowerSGD(2), matrix * scale), matrix * scale, atol=scale * 1e-4)
    with pytest.raises(ValueError, match="factors leave"):
        PowerSGD(1).encode({"w": torch.full((400, 400), 3e38)})


def test_ranks_and_iterations_start_at_one() -> None:
    with pytest.raises(ValueError, match="both at least 1"):
        PowerSGD(rank=0)
