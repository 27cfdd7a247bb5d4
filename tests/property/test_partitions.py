"""Partitions of arbitrary data: random sizes, labels, skew and least sizes, including the barely possible."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from strategies.partition import by_column, class_counts, dirichlet, iid, natural_clients, shards

seed = st.integers(0, 2**32)
labels = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda values: np.array(values, np.int64))


def covers(made, num_examples):
    return np.array_equal(np.sort(made.order), np.arange(num_examples)) and (np.diff(made.offsets) >= 0).all()


@settings(deadline=None)
@given(st.integers(1, 200), st.data(), seed)
def test_iid_sizes_differ_by_one_at_most(num_examples, data, seed) -> None:
    num_clients = data.draw(st.integers(1, num_examples))
    made = iid(num_examples, num_clients, np.random.default_rng(seed))
    assert covers(made, num_examples)
    assert made.sizes().max() - made.sizes().min() <= 1


@settings(deadline=None)
@given(labels, st.data(), st.floats(1e-6, 1e15), seed)
def test_dirichlet_gives_everyone_the_least_size_whatever_the_skew(labels, data, alpha, seed) -> None:
    num_clients = data.draw(st.integers(1, len(labels)))
    min_size = data.draw(st.integers(0, len(labels) // num_clients))
    made = dirichlet(labels, num_clients, alpha, np.random.default_rng(seed), min_size)
    assert covers(made, len(labels))
    assert made.num_clients == num_clients
    assert made.sizes().min() >= min_size


@settings(deadline=None)
@given(labels, st.integers(1, 30), st.floats(1e-3, 1e3), seed)
def test_raising_the_least_size_only_moves_what_it_must(labels, num_clients, alpha, seed) -> None:
    least = len(labels) // num_clients
    drawn = dirichlet(labels, num_clients, alpha, np.random.default_rng(seed), 0).sizes()
    filled = dirichlet(labels, num_clients, alpha, np.random.default_rng(seed), least).sizes()
    assert np.maximum(filled - drawn, 0).sum() == np.maximum(least - drawn, 0).sum()
    gave = filled < drawn
    assert not gave.any() or filled[gave].max() - filled[gave].min() <= 1
    assert not gave.any() or filled[gave].max() + 1 >= drawn[~gave].max(initial=0)


@settings(deadline=None)
@given(labels, st.data(), seed)
def test_shards_give_a_client_few_classes(labels, data, seed) -> None:
    shards_per_client = data.draw(st.integers(1, len(labels)))
    num_clients = data.draw(st.integers(1, len(labels) // shards_per_client))
    made = shards(labels, num_clients, shards_per_client, np.random.default_rng(seed))
    assert covers(made, len(labels))
    smallest, largest = np.array([0, 1]) + len(labels) // (num_clients * shards_per_client)
    assert made.sizes().min() >= smallest * shards_per_client
    assert made.sizes().max() <= largest * shards_per_client


@settings(deadline=None)
@given(labels, st.integers(1, 20))
def test_by_column_keeps_whole_clients_or_none_of_them(owners, min_size) -> None:
    sizes = np.bincount(owners)
    expected = np.flatnonzero(sizes >= min_size)
    assume(len(expected) > 0)
    made = by_column(owners, min_size)
    assert natural_clients(made, owners).tolist() == expected.tolist()
    for client, natural in enumerate(expected):
        assert made.rows(client).tolist() == np.flatnonzero(owners == natural).tolist()


@settings(deadline=None)
@given(labels, st.data(), seed)
def test_class_counts_agree_with_counting_by_hand(labels, data, seed) -> None:
    num_clients = data.draw(st.integers(1, len(labels)))
    made = dirichlet(labels, num_clients, 0.5, np.random.default_rng(seed), 0)
    shown = data.draw(st.integers(1, num_clients))
    counts = class_counts(made, labels, 7, shown)
    by_hand = [np.bincount(labels[made.rows(client)], minlength=7).tolist() for client in range(shown)]
    assert counts.tolist() == by_hand
