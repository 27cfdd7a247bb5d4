"""Clients whose examples are drawn when they are asked for: nothing is kept, and nothing depends on the order asked."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.partition import class_counts, drawn, partition


def test_a_client_holds_different_examples_in_ascending_order_and_always_the_same() -> None:
    divided = drawn(50, 1_000_000, 7, run_seed=3)
    for client in (0, 12, 999_999):
        rows = divided.rows(client)
        assert len(set(rows.tolist())) == 7 and rows.tolist() == sorted(rows.tolist())
        assert rows[0] >= 0 and rows[-1] < 50
        assert np.array_equal(rows, divided.rows(client))


def test_clients_and_seeds_draw_differently() -> None:
    rows = {tuple(drawn(50, 10, 7, run_seed=seed).rows(client)) for seed in (1, 2) for client in range(10)}
    assert len(rows) == 20


def test_every_example_is_drawn_as_often() -> None:
    divided = drawn(20, 4000, 5, run_seed=0)
    counts = np.bincount(np.concatenate([divided.rows(client) for client in range(4000)]), minlength=20)
    # 4000 draws of 5 out of 20: 1000 each, with a standard deviation of sqrt(4000 * 1/4 * 3/4) = 27
    assert np.abs(counts - 1000).max() < 5 * 27


def test_sizes_take_no_memory_of_their_own() -> None:
    sizes = drawn(50, 1_000_000, 7, run_seed=3).sizes()
    assert sizes.shape == (1_000_000,) and sizes.strides == (0,) and sizes[5] == 7
    assert drawn(50, 10, 7, 3).sizes_of(np.array([1, 5])).tolist() == [7, 7]


def test_classes_are_counted() -> None:
    labels = np.arange(50) % 3
    divided = drawn(50, 1000, 7, run_seed=3)
    counts = class_counts(divided, labels, 3, 4)
    assert counts.sum(axis=1).tolist() == [7] * 4
    assert counts[2].tolist() == np.bincount(labels[divided.rows(2)], minlength=3).tolist()


def test_more_examples_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="hold 8 examples, but there are 7"):
        partition({"kind": "drawn", "clients": 2, "examples": 8}, None, None, 7, np.random.default_rng(0))


def test_a_client_that_does_not_exist_is_refused() -> None:
    with pytest.raises(IndexError, match="client 10 of 10"):
        drawn(50, 10, 7, 3).rows(10)
