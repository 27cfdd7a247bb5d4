"""The character of each partition: what makes Dirichlet skewed and shards pathological."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.partition import Partition, by_column, class_counts, dirichlet, iid, shards
from strategies.seeds import generator

LABELS = np.repeat(np.arange(10), 600)


def classes_per_client(made):
    return (class_counts(made, LABELS, 10) > 0).sum(axis=1)


def test_a_small_alpha_leaves_clients_with_few_classes_and_a_large_one_with_all() -> None:
    skewed = dirichlet(LABELS, 50, 0.05, generator(0, "p"))
    even = dirichlet(LABELS, 50, 1000.0, generator(0, "p"))
    assert np.median(classes_per_client(skewed)) <= 3
    assert classes_per_client(even).min() == 10


def test_dirichlet_shares_follow_the_distribution() -> None:
    """A share of Dir_N(alpha) has mean 1/N and variance (N - 1) / (N^2 (N alpha + 1))."""
    num_clients, alpha = 20, 0.5
    shares = np.concatenate(
        [class_counts(dirichlet(LABELS, num_clients, alpha, generator(s, "p"), 0), LABELS, 10) / 600 for s in range(40)]
    )
    variance = (num_clients - 1) / (num_clients**2 * (num_clients * alpha + 1))
    assert shares.mean() == pytest.approx(1 / num_clients)
    assert shares.var() == pytest.approx(variance, rel=0.1)


def test_an_almost_zero_alpha_gives_each_class_to_one_client() -> None:
    made = dirichlet(LABELS, 50, 1e-300, generator(0, "p"), 0)
    assert ((class_counts(made, LABELS, 10) > 0).sum(axis=0) == 1).all()


def test_two_shards_mean_at_most_two_classes_when_shards_divide_the_classes() -> None:
    made = shards(LABELS, 100, 2, generator(0, "p"))
    assert classes_per_client(made).max() <= 2
    assert set(made.sizes()) == {60}


def test_iid_clients_mirror_the_whole() -> None:
    counts = class_counts(iid(len(LABELS), 4, generator(0, "p")), LABELS, 10)
    assert counts.min() > 100


def test_small_natural_clients_are_left_out_with_their_examples() -> None:
    made = by_column(np.array([2, 0, 2, 5, 2, 0]), min_size=2)
    assert [made.rows(client).tolist() for client in range(made.num_clients)] == [[1, 5], [0, 2, 4]]


def test_natural_clients_count_from_zero() -> None:
    with pytest.raises(ValueError, match="numbered from 0"):
        by_column(np.array([0, -1]))


def test_a_client_that_does_not_exist_is_an_index_error() -> None:
    made = Partition(np.arange(3), np.array([0, 1, 3]))
    with pytest.raises(IndexError, match="client 2 of 2"):
        made.rows(2)


def test_a_million_clients_are_cut_whole() -> None:
    made = dirichlet(np.arange(10**6) % 10, 10**6, 0.3, generator(0, "p"))
    assert (made.sizes() == 1).all()
