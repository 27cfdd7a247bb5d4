"""Any way of sharing blocks among workers gives the bits of one worker doing all of them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.base import Contribution, Fold
from strategies.federated.folding import Summation, blocks, fold, spans


@given(
    clients=st.lists(st.integers(0, 200), min_size=1, max_size=60),
    size=st.none() | st.integers(1, 20),
    workers=st.integers(1, 9),
    even=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_how_blocks_are_divided_among_workers_leaves_the_bits_alone(clients, size, workers, even, seed) -> None:  # type: ignore[no-untyped-def]
    clients.sort()
    rng = torch.Generator().manual_seed(seed)
    of = [Contribution({"w": torch.randn(7, generator=rng) * 10 ** (c % 9)}, 1.0 + c % 5) for c in clients]
    cut = blocks(clients, size)

    def block(index: int) -> Fold | None:
        return fold(of[place] for place in cut[index])

    alone, shared = Summation(), Summation()
    for index in range(len(cut)):
        alone.push(block(index))
    for span in spans(len(cut), workers, even=even):
        part = Summation()
        for index in span:
            part.push(block(index))
        shared.push(part.total(), len(span))
    one, many = alone.total(), shared.total()
    assert one is not None and many is not None
    assert torch.equal(one.total["w"], many.total["w"])
    assert one.weight == many.weight
    assert one.num_clients == many.num_clients == len(clients)


@given(
    clients=st.lists(st.integers(0, 50), max_size=80),
    size=st.none() | st.integers(1, 20),
    num_blocks=st.integers(1, 20),
)
def test_blocks_cover_everybody_once_and_split_no_client(clients, size, num_blocks) -> None:  # type: ignore[no-untyped-def]
    clients.sort()
    cut = blocks(clients, size, num_blocks)
    assert [place for block in cut for place in block] == list(range(len(clients)))
    homes: dict[int, set[int]] = {}
    for index, block in enumerate(cut):
        for place in block:
            homes.setdefault(clients[place], set()).add(index)
    assert all(len(home) == 1 for home in homes.values())


@given(num_blocks=st.integers(0, 200), workers=st.integers(1, 20), even=st.booleans())
def test_spans_are_nodes_of_the_tree(num_blocks, workers, even) -> None:  # type: ignore[no-untyped-def]
    found = spans(num_blocks, workers, even=even)
    assert [index for span in found for index in span] == list(range(num_blocks))
    for span in found:
        assert len(span) & (len(span) - 1) == 0 and span.start % len(span) == 0
