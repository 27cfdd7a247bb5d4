"""Which clients samplers prefer, as the papers say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from strategies.federated.sampling import Candidates, Feedback, sampler, uniform
from strategies.seeds import generator

GREEDY = {"name": "oort", "exploration": 0.0, "exploration_min": 0.0}


def ones(ids):
    return np.ones(len(ids), np.int64)


def counts(section, candidates, count, rounds, memory=None):
    made = sampler(section)
    found = np.zeros(candidates.num_clients, int)
    for round_ in range(rounds):
        drawn = made.draw(memory or made.init(), candidates, count, round_, generator(0, "cohort", round_ + 1))
        found[list(drawn)] += 1
    return found


def told(losses, durations=None, examples=None, step=0, section=GREEDY, memory=None):
    made = sampler(section)
    feedback = [
        Feedback(client, loss, (examples or {}).get(client, 10), (durations or {}).get(client, 1.0))
        for client, loss in losses.items()
    ]
    return made.learn(memory or made.init(), feedback, step)


def test_uniform_draws_are_those_that_runs_have_used_so_far() -> None:
    made = sampler({"name": "uniform"})
    for round_ in range(1, 20):
        drawn = made.draw({}, Candidates(1000, ones), 30, round_ - 1, generator(4, "cohort", round_))
        assert drawn == uniform(1000, 30, generator(4, "cohort", round_))


def test_among_those_available_draws_are_uniform() -> None:
    candidates = Candidates(60, ones, lambda client: client % 3 == 0, frozenset({0, 30}))
    found = counts({"name": "uniform"}, candidates, 4, 1500)
    eligible = [client for client in range(3, 60, 3) if client != 30]
    assert found.sum() == found[eligible].sum() == 6000
    assert stats.chisquare(found[eligible]).pvalue > 1e-3


def test_weighted_draws_follow_the_numbers_of_examples() -> None:
    sizes = np.array([0, 1, 2, 3, 10, 4])
    found = counts({"name": "weighted"}, Candidates(6, lambda ids: sizes[ids]), 1, 3000)
    assert found[0] == 0
    assert stats.chisquare(found[1:], 3000 * sizes[1:] / 20).pvalue > 1e-3


def test_where_few_of_many_are_left_draws_still_follow_the_numbers_of_examples() -> None:
    sizes = np.ones(2000, np.int64)
    left = {77: 1, 500: 2, 1999: 3}
    for client, size in left.items():
        sizes[client] = size
    candidates = Candidates(2000, lambda ids: sizes[ids], left.__contains__)
    found = counts({"name": "weighted"}, candidates, 1, 600)
    assert found.sum() == 600
    assert stats.chisquare(found[list(left)], 600 * np.array([1, 2, 3]) / 6).pvalue > 1e-3


def test_fixed_clients_are_the_cohort_as_far_as_they_can() -> None:
    made, rng = sampler({"name": "fixed", "clients": [8, 2, 5]}), np.random.default_rng(0)
    assert made.draw({}, Candidates(9, ones), 3, 0, rng) == (2, 5, 8)
    assert made.draw({}, Candidates(9, ones), 2, 7, rng) == (2, 8)
    assert made.draw({}, Candidates(9, ones, None, frozenset({8})), 2, 7, rng) == (2, 5)
    with pytest.raises(ValueError, match="client 8 is fixed, but there are 8 clients"):
        made.draw({}, Candidates(8, ones), 3, 0, rng)


def test_all_clients_take_their_turn() -> None:
    made, rng = sampler({"name": "round-robin"}), np.random.default_rng(0)
    cohorts = [made.draw({}, Candidates(7, ones), 3, step, rng) for step in range(7)]
    assert cohorts[:3] == [(0, 1, 2), (3, 4, 5), (0, 1, 6)]
    assert np.bincount(np.concatenate(cohorts)).tolist() == [3] * 7


def test_oort_prefers_clients_with_high_loss() -> None:
    memory = told({client: 5.0 if client < 10 else 0.5 for client in range(100)})
    found = counts(GREEDY, Candidates(100, ones), 10, 50, memory)
    assert found[:10].sum() == 500


def test_oort_prefers_clients_with_many_examples() -> None:
    memory = told(dict.fromkeys(range(100), 1.0), examples=dict.fromkeys(range(10), 100))
    assert counts(GREEDY, Candidates(100, ones), 10, 20, memory)[:10].sum() == 200


def test_oort_leaves_slow_clients_alone_unless_none_is_too_slow() -> None:
    losses = {client: 5.0 if client < 20 else 4.0 if client < 40 else 0.5 for client in range(100)}
    memory = told(losses, durations=dict.fromkeys(range(20), 100.0))
    assert counts(GREEDY, Candidates(100, ones), 10, 20, memory)[20:40].sum() == 200
    patient = GREEDY | {"percentile": 100.0}
    memory = told(losses, durations=dict.fromkeys(range(20), 100.0), section=patient)
    assert counts(patient, Candidates(100, ones), 10, 20, memory)[:20].sum() == 200


def test_oort_comes_back_to_a_client_it_has_not_heard_for_long() -> None:
    made = sampler(GREEDY)
    memory = told({0: 0.0, 99: 20.0}, step=0)
    memory = told({**dict.fromkeys(range(1, 50), 1.0), 98: 20.0, 97: 20.0}, step=4000, memory=memory)
    # after 4000 steps the bonus of client 0 is sqrt(0.1 * log(4001) / 1) = 0.91 and that of 1 to 49 is 0.01
    drawn = made.draw(memory, Candidates(100, ones), 4, 4000, np.random.default_rng(0))
    assert drawn == (0, 97, 98, 99)


def test_oort_clips_a_utility_that_sticks_out() -> None:
    losses = {0: 1e9, **{client: 1.0 + client / 100 for client in range(1, 100)}}
    unclipped = GREEDY | {"clip": 0.9999999, "cut_off": 1e-6}
    clipped = GREEDY | {"clip": 0.9, "cut_off": 1e-6}
    found = {}
    for clip, section in (("no", unclipped), ("yes", clipped)):
        made, memory = sampler(section), told(losses, section=section)
        drawn = [made.draw(memory, Candidates(100, ones), 1, 0, np.random.default_rng(seed)) for seed in range(100)]
        found[clip] = drawn.count((0,))
    assert found["no"] >= 99 and found["yes"] < 20


def test_oort_explores_that_part_of_a_cohort_and_less_from_round_to_round() -> None:
    section = {"name": "oort", "exploration": 0.6, "exploration_decay": 0.9, "exploration_min": 0.1}
    made = sampler(section)
    memory = told(dict.fromkeys(range(500), 1.0), section=section)
    for step, part in ((0, 0.6), (5, 0.6 * 0.9**5), (100, 0.1)):
        drawn = [made.draw(memory, Candidates(1000, ones), 7, step, np.random.default_rng(seed)) for seed in range(200)]
        new = np.mean([sum(client >= 500 for client in cohort) / 7 for cohort in drawn])
        assert abs(new - part) < 0.02


def test_oorts_pacer_lets_slower_clients_in_when_utility_falls() -> None:
    section = GREEDY | {"pacer_window": 2, "pacer_delta": 30.0}
    falling = memory = sampler(section).init()
    for step, loss in enumerate([4.0, 4.0, 3.0, 3.0]):
        falling = told({1: loss}, step=step, section=section, memory=falling)
    for step, loss in enumerate([3.0, 3.0, 4.0, 4.0]):
        memory = told({1: loss}, step=step, section=section, memory=memory)
    assert (float(falling["percentile"]), float(memory["percentile"])) == (80.0, 50.0)
    for step in range(4, 12):
        falling = told({1: 1.0 / step}, step=step, section=section, memory=falling)
    assert float(falling["percentile"]) == 100.0


def test_power_of_choice_takes_the_worst_of_its_candidates() -> None:
    section = {"name": "power-of-choice", "candidates": 10}
    made = sampler(section)
    losses = {client: float((client * 37) % 101) for client in range(100)}
    memory = told(losses, section=section)
    for seed in range(20):
        short = made.shortlist(memory, Candidates(100, ones), 3, 0, np.random.default_rng(seed))
        drawn = made.draw(memory, Candidates(100, ones), 3, 0, np.random.default_rng(seed))
        assert len(short) == 10
        assert set(drawn) == set(sorted(short, key=losses.__getitem__)[-3:])


def test_power_of_choice_first_tries_those_it_knows_nothing_of() -> None:
    section = {"name": "power-of-choice", "candidates": 50}
    memory = told({client: 100.0 for client in range(50) if client not in (7, 30)}, section=section)
    drawn = sampler(section).draw(memory, Candidates(50, ones), 2, 0, np.random.default_rng(0))
    assert drawn == (7, 30)


def test_power_of_choice_draws_candidates_by_size_and_ties_by_chance() -> None:
    sizes = np.array([1, 2, 3, 10])
    found = counts({"name": "power-of-choice", "candidates": 1}, Candidates(4, lambda ids: sizes[ids]), 1, 1000)
    assert stats.chisquare(found, 1000 * sizes / 16).pvalue > 1e-3
    found = counts({"name": "power-of-choice", "candidates": 10}, Candidates(10, ones), 1, 1000)
    assert stats.chisquare(found).pvalue > 1e-3
