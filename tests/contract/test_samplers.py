"""What every sampler promises, over all that an experiment file can name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.federated.sampling import SAMPLERS, Candidates, Feedback, sampler
from trainers import wire

NUM_CLIENTS = 60
SECTIONS = [
    {"name": "uniform"},
    {"name": "weighted"},
    {"name": "fixed", "clients": [50, 3, 17, 4, 41, 9, 8]},
    {"name": "round-robin"},
    {"name": "oort"},
    {"name": "oort", "exploration": 0.0, "exploration_min": 0.0},
    {"name": "power-of-choice", "candidates": 20},
    {"name": "power-of-choice", "candidates": 1, "fresh_losses": True},
]


def sizes(ids):
    return np.asarray(ids) % 7 + 1


def memories(made, steps):
    """A memory after some steps of feedback about random clients."""
    memory, rng = made.init(), np.random.default_rng(1)
    for step in range(steps):
        told = [Feedback(int(c), float(rng.exponential()), int(sizes(c)), 1.0 + c) for c in rng.integers(0, 40, 6)]
        memory = made.learn(memory, told, step)
    return memory


def test_every_sampler_is_here() -> None:
    assert {section["name"] for section in SECTIONS} == set(SAMPLERS)


@pytest.mark.parametrize("section", SECTIONS, ids=str)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(1, NUM_CLIENTS),
    st.sets(st.integers(0, NUM_CLIENTS - 1)),
    st.sets(st.integers(0, NUM_CLIENTS - 1)) | st.none(),
    st.integers(0, 99),
)
def test_a_draw_is_different_free_clients_in_order_and_the_same_again(section, steps, count, busy, there, seed) -> None:
    made = sampler(section)
    memory = memories(made, steps)
    candidates = Candidates(NUM_CLIENTS, sizes, there.__contains__ if there is not None else None, frozenset(busy))
    drawn = made.draw(memory, candidates, count, steps, np.random.default_rng(seed))
    assert drawn == made.draw(memory, candidates, count, steps, np.random.default_rng(seed))
    assert list(drawn) == sorted(set(drawn)) and all(isinstance(client, int) for client in drawn)
    free = set(range(NUM_CLIENTS) if there is None else there) - busy
    allowed = free if made.among is None else free & set(made.among)
    assert set(drawn) <= allowed
    assert len(drawn) == min(count, len(allowed))
    if made.shortlist is not None:
        short = made.shortlist(memory, candidates, count, steps, np.random.default_rng(seed))
        assert set(drawn) <= set(short)


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_a_memory_is_a_value_that_a_checkpoint_holds_and_grows_with_the_clients_seen(section) -> None:
    made = sampler(section)
    memory = memories(made, 5)
    before = {name: tensor.clone() for name, tensor in memory.items()}
    back = wire.decode(wire.encode(memory))
    told = [Feedback(12, 3.0, 5, 2.0), Feedback(999_999, 1.0, 5, 2.0)]
    after, again = made.learn(memory, told, 5), made.learn(back, told, 5)
    assert all(torch.equal(after[name], again[name]) for name in after) and list(after) == list(again)
    assert all(torch.equal(memory[name], before[name]) for name in before)
    assert sum(tensor.numel() for tensor in after.values()) < 300


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_feedback_without_a_loss_teaches_nothing(section) -> None:
    made = sampler(section)
    memory = memories(made, 3)
    after = made.learn(memory, [Feedback(2, float("nan"), 5, 1.0)], 3)
    assert all(torch.equal(after[name], memory[name]) for name in memory)


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_a_million_clients_are_not_looked_at_one_by_one(section) -> None:
    if section["name"] == "fixed":
        section = section | {"clients": list(range(1, 900_000, 9000))}
    asked = []

    def available(client):
        asked.append(client)
        return client % 3 > 0

    made = sampler(section)
    drawn = made.draw(
        memories(made, 3), Candidates(1_000_000, sizes, available, frozenset({5})), 50, 3, np.random.default_rng(0)
    )
    assert len(drawn) == 50
    assert len(asked) < 500
