"""Any way of sharing blocks among workers gives the bits of one worker doing all of them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.base import Contribution
from strategies.federated.folding import add, blocks, fold


@given(
    clients=st.sets(st.integers(0, 10_000), min_size=1, max_size=60),
    size=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    order=st.randoms(use_true_random=False),
)
def test_the_order_in_which_blocks_are_computed_leaves_the_bits_alone(clients, size, seed, order) -> None:  # type: ignore[no-untyped-def]
    rng = torch.Generator().manual_seed(seed)
    of = {c: Contribution({"w": torch.randn(7, generator=rng) * 10 ** (c % 9)}, 1.0 + c % 5) for c in sorted(clients)}
    groups = blocks(clients, size)
    straight = add([fold([of[c] for c in group]) for group in groups])  # type: ignore[list-item]
    arrival = list(range(len(groups)))
    order.shuffle(arrival)
    done = {index: fold([of[c] for c in groups[index]]) for index in arrival}
    shuffled = add([done[index] for index in range(len(groups))])  # type: ignore[misc]
    assert torch.equal(straight.total["w"], shuffled.total["w"])
    assert straight.weight == shuffled.weight
    assert straight.num_clients == shuffled.num_clients == len(clients)
