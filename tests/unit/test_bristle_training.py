"""The order of things in a peer's iteration, and the steps of the study's output layer against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.output_layer import Moments, no_moments, train_step
from strategies.peers.bristle.cwr import Peer, centered, iteration


def test_twenty_steps_are_those_of_torch_adam_on_a_layer_without_bias() -> None:
    rng = torch.Generator().manual_seed(0)
    layer = nn.Linear(40, 10, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, weight_decay=5e-3)
    weights = torch.zeros(40, 10)
    moments = no_moments(weights)
    for _ in range(20):
        x, y = torch.randn(5, 40, generator=rng), torch.randint(10, (5,), generator=rng)
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(x), y).backward()
        optimizer.step()
        weights, moments = train_step(weights, moments, x, y)
    assert torch.allclose(weights, layer.weight.detach().T, atol=1e-6, rtol=0)
    assert float(weights.abs().max()) > 0.01
    assert int(moments.step) == 20


def test_peers_may_step_together() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 5, 8, generator=rng), torch.randint(4, (3, 5), generator=rng)
    weights = torch.randn(3, 8, 4, generator=rng)
    together, moments = train_step(weights, no_moments(weights), x, y)
    for p in range(3):
        alone, own = train_step(weights[p], no_moments(weights[p]), x[p], y[p])
        assert torch.allclose(together[p], alone, atol=1e-7)
        assert torch.allclose(moments.second[p], own.second, atol=1e-9)


def test_a_step_writes_into_nothing_it_was_given() -> None:
    weights = torch.ones(4, 3)
    moments = Moments(torch.ones(4, 3), torch.ones(4, 3), torch.tensor(7))
    x, y = torch.ones(2, 4), torch.tensor([0, 1])
    train_step(weights, moments, x, y)
    assert torch.equal(weights, torch.ones(4, 3))
    assert all(torch.equal(moment, torch.ones(4, 3)) for moment in moments[:2])
    assert int(moments.step) == 7


def test_features_must_fit() -> None:
    weights = torch.zeros(4, 3)
    for x in (torch.zeros(2, 5), torch.zeros(0, 4)):
        with pytest.raises(ValueError, match="do not fit"):
            train_step(weights, no_moments(weights), x, torch.zeros(len(x), dtype=torch.int64))


OWNED = torch.tensor([True, False, True])


def plus_one(matrix: Tensor, steps: int) -> tuple[Tensor, int]:
    return matrix + 1, steps + 1


def test_an_iteration_integrates_centres_trains_and_keeps_owned_columns() -> None:
    peer = Peer(torch.zeros(2, 3), torch.full((2, 3), 5.0), 7)
    arrived = torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 3.0]])
    after = iteration(peer, OWNED, plus_one, lambda own: own + arrived)
    middle = torch.tensor([[-1.0, -2.0, 0.0], [1.0, 2.0, 0.0]])
    assert torch.equal(after.tw, middle + 1)
    assert torch.equal(after.cw, torch.tensor([[0.0, -2.0, 1.0], [2.0, 2.0, 1.0]]))
    assert after.moments == 8


def test_which_matrix_is_integrated_is_a_switch() -> None:
    given: list[Tensor] = []

    def integrate(own: Tensor) -> Tensor:
        given.append(own)
        return own

    peer = Peer(torch.zeros(2, 3), torch.full((2, 3), 5.0), 7)
    iteration(peer, OWNED, plus_one, integrate)
    iteration(peer, OWNED, plus_one, integrate, "trained")
    assert torch.equal(given[0], peer.cw) and torch.equal(given[1], peer.tw)
    with pytest.raises(ValueError, match="consolidated or trained"):
        iteration(peer, OWNED, plus_one, integrate, "both")  # type: ignore[arg-type]


def test_without_messages_nothing_is_centred_and_foreign_columns_stay() -> None:
    peer = Peer(torch.ones(2, 3), torch.zeros(2, 3), 7)
    after = iteration(peer, OWNED, plus_one)
    assert torch.equal(after.cw, torch.tensor([[2.0, 1.0, 2.0], [2.0, 1.0, 2.0]]))


def test_columns_are_centred_each_by_its_own_mean() -> None:
    assert torch.allclose(centered(torch.randn(5, 3)).mean(0), torch.zeros(3), atol=1e-6)
