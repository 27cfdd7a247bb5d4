"""Seeds are a function of their purpose, and nothing else."""

from __future__ import annotations

import itertools

import pytest

from strategies.seeds import generator, integer


def test_the_same_purpose_gives_the_same_numbers() -> None:
    assert generator(7, "batches", 3, 5).random(4).tolist() == generator(7, "batches", 3, 5).random(4).tolist()


def test_seed_purpose_round_and_client_each_change_the_numbers() -> None:
    drawn = {integer(*where) for where in [(7, "batches", 3, 5), (8, "batches", 3, 5), (7, "cohort", 3, 5), (7, "batches", 4, 5), (7, "batches", 3, 6), (7, "batches", 5, 3)]}  # fmt: skip  # noqa: E501
    assert len(drawn) == 6


def test_no_two_of_many_clients_and_rounds_share_a_seed() -> None:
    drawn = [integer(0, "client", round_, client) for round_, client in itertools.product(range(40), range(60))]
    assert len(set(drawn)) == len(drawn)


def test_the_numbers_are_pinned_so_that_old_runs_can_be_repeated() -> None:
    assert integer(7, "cohort", 1) == PINNED


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        integer(0, "cohort", -1)


PINNED = 3398259918960204389
