"""Steps in virtual time, worked out by hand: who starts, who arrives, and when the server acts."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from strategies.federated.behaviour import IDEAL, behaviour
from strategies.federated.behaviour.base import classes
from strategies.federated.clock import Clock, Ticket, from_columns, to_columns
from strategies.federated.pacing import Anarchic, Buffered, Synchronous, pacing
from strategies.federated.sampling import sampler
from strategies.federated.timeline import Population, Starved, plan, shortlist
from trainers import wire

UNIFORM = sampler({"name": "uniform"})


def population(num_clients, durations=None, steps=1, **parts):
    """Clients that take the given virtual seconds; by default 1 each."""
    speeds = {client: 1 / seconds for client, seconds in (durations or {}).items()}
    made = IDEAL._replace(speed=lambda client: speeds.get(client, 1.0), **parts)
    return Population(0, num_clients, made, lambda client: steps, lambda ids: np.ones(len(ids), np.int64), 1.0)


def steps(pace, clients, number, which=UNIFORM, clock=None, first=0):
    """Plans of some steps, one after another."""
    clock, plans = clock or Clock(), []
    for step in range(first, first + number):
        plans.append(plan(pace, clients, which, which.init(), clock, step))
        clock = plans[-1].clock
    return plans


def who(tickets):
    return [(ticket.client, ticket.finish_s) for ticket in tickets]


# -- synchronous -----------------------------------------------------------------------------------------------------


def test_the_server_waits_for_the_whole_cohort() -> None:
    first, second = steps(Synchronous(3, 3), population(3, {0: 2.0, 1: 1.0, 2: 4.0}), 2)
    assert who(first.arrivals) == [(1, 1.0), (0, 2.0), (2, 4.0)]
    assert (first.clock.now_s, first.started, first.late, first.dropped) == (4.0, 3, (), ())
    assert who(second.arrivals) == [(1, 5.0), (0, 6.0), (2, 8.0)]
    assert [ticket.version for ticket in second.arrivals] == [1, 1, 1]


def test_of_more_clients_than_are_needed_the_first_count_and_the_others_are_late() -> None:
    (done,) = steps(Synchronous(2, 4), population(4, {0: 2.0, 1: 1.0, 2: 4.0, 3: 3.0}), 1)
    assert (who(done.arrivals), who(done.late)) == ([(1, 1.0), (0, 2.0)], [(3, 3.0), (2, 4.0)])
    assert (done.clock.now_s, done.clock.tickets, done.started) == (2.0, (), 4)


def test_a_deadline_ends_the_wait() -> None:
    slow = population(3, {0: 2.0, 1: 1.0, 2: 4.0})
    (done,) = steps(Synchronous(3, 3, deadline_s=2.5), slow, 1)
    assert (who(done.arrivals), who(done.late), done.clock.now_s) == ([(1, 1.0), (0, 2.0)], [(2, 4.0)], 2.5)
    (done,) = steps(Synchronous(3, 3, deadline_s=2.0), slow, 1)
    assert (who(done.arrivals), done.clock.now_s) == ([(1, 1.0), (0, 2.0)], 2.0)


def test_a_deadline_waits_for_the_least_number_of_clients() -> None:
    slow = population(4, {0: 2.0, 1: 1.0, 2: 4.0, 3: 9.0})
    (done,) = steps(Synchronous(4, 4, deadline_s=0.5, min_clients=3), slow, 1)
    assert (who(done.arrivals), done.clock.now_s) == ([(1, 1.0), (0, 2.0), (2, 4.0)], 4.0)


def test_a_client_that_vanishes_is_noticed_when_its_update_would_be_due() -> None:
    clients = population(3, {0: 2.0, 1: 1.0, 2: 4.0}, drops=lambda client, order: client == 2)
    (done,) = steps(Synchronous(3, 3), clients, 1)
    assert (who(done.arrivals), who(done.dropped), done.clock.now_s) == ([(1, 1.0), (0, 2.0)], [(2, 4.0)], 4.0)
    (done,) = steps(Synchronous(2, 3), clients, 1)
    assert (who(done.dropped), done.late, done.clock.now_s) == ([(2, 4.0)], (), 2.0)


def test_when_a_whole_cohort_vanishes_another_one_starts() -> None:
    clients = population(2, drops=lambda client, order: order < 4)
    (done,) = steps(Synchronous(2, 2), clients, 1)
    assert [(t.client, t.order, t.repeat) for t in done.dropped] == [(0, 0, 0), (1, 1, 0), (0, 2, 1), (1, 3, 1)]
    assert [(t.client, t.order, t.repeat) for t in done.arrivals] == [(0, 4, 2), (1, 5, 2)]
    assert (done.clock.now_s, done.started) == (3.0, 6)


def test_clients_that_are_away_are_not_chosen_and_when_all_are_the_server_waits() -> None:
    def waits_s(client, now_s):
        return max(0.0, {0: 5.0, 1: 3.0, 2: 8.0}[client] - now_s)

    first, second, third = steps(Synchronous(2, 2), population(3, waits_s=waits_s), 3)
    assert (who(first.arrivals), first.clock.now_s) == ([(1, 4.0)], 4.0)
    assert (who(second.arrivals), second.clock.now_s) == ([(1, 5.0)], 5.0)
    assert who(third.arrivals) == [(0, 6.0), (1, 6.0)]
    (done,) = steps(Synchronous(2, 2, min_clients=2), population(3, waits_s=waits_s), 1)
    assert who(done.arrivals) == [(0, 6.0), (1, 6.0)]


def test_fixed_clients_are_waited_for_while_others_are_there() -> None:
    fixed = sampler({"name": "fixed", "clients": [2]})
    clients = population(3, waits_s=lambda client, now_s: max(0.0, 7.0 * (client == 2) - now_s))
    (done,) = steps(Synchronous(1, 1), clients, 1, fixed)
    assert who(done.arrivals) == [(2, 8.0)]


def test_without_any_client_left_the_run_is_starved_and_says_why() -> None:
    def waits_s(client, now_s):
        return math.inf if client < 3 else 0.0

    fixed = sampler({"name": "fixed", "clients": [0, 1]})
    with pytest.raises(Starved, match=r"step 3: of 4 clients 3 have stopped for ever, 0 are unavailable, 1 are there"):
        plan(Synchronous(2, 2), population(4, waits_s=waits_s), fixed, {}, Clock(), 2)
    everyone_vanishes = population(2, drops=lambda client, order: True)
    with pytest.raises(Starved, match="of 2 clients 0 have stopped"):
        plan(Synchronous(1, 1), everyone_vanishes, UNIFORM, {}, Clock(), 0)


def test_the_clients_whose_losses_are_wanted_are_those_that_the_plan_chooses_from() -> None:
    made = sampler({"name": "power-of-choice", "candidates": 5, "fresh_losses": True})
    clients = population(40, waits_s=lambda client, now_s: max(0.0, 3.0 - now_s) if client % 2 else math.inf)
    short = shortlist(Synchronous(2, 2), clients, made, made.init(), Clock(), 6)
    done = plan(Synchronous(2, 2), clients, made, made.init(), Clock(), 6)
    assert len(short) == 5 and {ticket.client for ticket in done.arrivals} < set(short)
    assert done.clock.now_s == 4.0
    with pytest.raises(ValueError, match="'uniform' chooses without"):
        shortlist(Synchronous(2, 2), clients, UNIFORM, {}, Clock(), 6)


# -- buffered --------------------------------------------------------------------------------------------------------


def test_a_freed_place_is_filled_at_once_and_with_the_new_model_after_the_server_acted() -> None:
    first, second = steps(Buffered(2, 2), population(2, {0: 2.0, 1: 5.0}), 2)
    assert [(t.client, t.start_s, t.finish_s, t.version, t.repeat) for t in first.arrivals] == [
        (0, 0.0, 2.0, 0, 0), (0, 2.0, 4.0, 0, 1),
    ]  # fmt: skip
    assert [(t.client, t.start_s, t.finish_s, t.version, t.repeat) for t in second.arrivals] == [
        (1, 0.0, 5.0, 0, 0), (0, 4.0, 6.0, 1, 0),
    ]  # fmt: skip
    assert (first.started, second.started, second.clock.now_s) == (3, 2, 6.0)


def test_an_update_that_is_too_old_does_not_count() -> None:
    clients = population(2, {0: 2.0, 1: 5.0})
    plans = steps(Buffered(1, 2, max_staleness=1), clients, 4)
    assert [who(one.arrivals) for one in plans] == [[(0, 2.0)], [(0, 4.0)], [(0, 6.0)], [(0, 8.0)]]
    assert [who(one.stale) for one in plans] == [[], [], [(1, 5.0)], []]
    plans = steps(Buffered(1, 2), clients, 4)
    assert [who(one.arrivals) for one in plans] == [[(0, 2.0)], [(0, 4.0)], [(1, 5.0)], [(0, 6.0)]]


def test_a_buffer_that_cannot_be_filled_any_more_is_acted_on() -> None:
    clients = population(2, {0: 2.0, 1: 5.0}, waits_s=lambda client, now_s: math.inf if now_s >= 6.5 else 0.0)
    first, second = steps(Buffered(3, 2), clients, 2)
    assert (who(first.arrivals), first.clock.now_s) == ([(0, 2.0), (0, 4.0), (1, 5.0)], 5.0)
    assert (who(second.arrivals), who(second.dropped)) == ([(0, 6.0)], [(0, 8.0), (1, 10.0)])
    with pytest.raises(Starved, match="step 3: of 2 clients 2 have stopped for ever"):
        steps(Buffered(3, 2), clients, 1, clock=second.clock, first=2)


def test_places_that_nobody_can_fill_are_filled_when_somebody_comes_back() -> None:
    def waits_s(client, now_s):
        return max(0.0, {0: 0.0, 1: 3.0, 2: 20.0}[client] - now_s) if now_s < 8 or client else max(0.0, 50.0 - now_s)

    plans = steps(Buffered(1, 2), population(3, {0: 2.0, 1: 2.0, 2: 4.0}, waits_s=waits_s), 5)
    assert [who(one.arrivals) for one in plans] == [[(0, 2.0)], [(0, 4.0)], [(0, 6.0)], [(1, 6.0)], [(0, 8.0)]]


def test_clients_in_flight_are_drawn_anew_in_every_step() -> None:
    plans = steps(Buffered(3, 4), population(20), 400)
    found = np.bincount([ticket.client for one in plans for ticket in one.arrivals], minlength=20)
    assert found.sum() == 1200 and abs(found - 60).max() < 5 * np.sqrt(60)


@pytest.mark.parametrize("pace", [Buffered(1, 2), Anarchic(1)], ids=str)
def test_clients_that_always_vanish_end_the_run_and_do_not_hang_it(pace) -> None:
    clients = population(2, drops=lambda client, order: True)
    with pytest.raises(Starved, match="0 have stopped for ever, 0 are unavailable, 2 are there but vanish"):
        steps(pace, clients, 1)


# -- anarchic --------------------------------------------------------------------------------------------------------


def test_clients_come_when_they_like_and_may_come_twice() -> None:
    clients = population(2, {0: 1.0, 1: 10.0}, pause_s=lambda client, order: 0.5)
    first, second = steps(Anarchic(3), clients, 2)
    assert [(t.client, t.start_s, t.finish_s, t.version, t.repeat) for t in first.arrivals] == [
        (0, 0.5, 1.5, 0, 0), (0, 2.0, 3.0, 0, 1), (0, 3.5, 4.5, 0, 2),
    ]  # fmt: skip
    assert [(t.client, t.start_s, t.version, t.repeat) for t in second.arrivals] == [
        (0, 5.0, 1, 0), (0, 6.5, 1, 1), (0, 8.0, 1, 2),
    ]  # fmt: skip
    assert [(t.client, t.version) for t in second.clock.tickets] == [(0, -1), (1, 0)]
    assert (first.started, second.started) == (4, 3)


def test_a_client_decides_how_much_it_does() -> None:
    clients = population(1, num_steps=lambda client, order: 3 if order == 1 else None, steps=7)
    (done,) = steps(Anarchic(2), clients, 1)
    assert [(t.order, t.num_steps, t.finish_s - t.start_s) for t in done.arrivals] == [(1, 3, 3.0), (3, 0, 7.0)]


def test_clients_that_stop_for_ever_block_nobody_until_none_is_left() -> None:
    stops = {0: 3.5, 1: 100.0, 2: 0.0}
    clients = population(3, waits_s=lambda client, now_s: math.inf if now_s >= stops[client] else 0.0)
    first, second = steps(Anarchic(5), clients, 2)
    assert {ticket.client for ticket in first.arrivals} == {0, 1}
    assert who(second.dropped) == [(0, 4.0)] and {ticket.client for ticket in second.arrivals} == {1}
    plans = steps(Anarchic(50), clients, 2, clock=second.clock, first=2)
    assert [len(one.arrivals) for one in plans] == [50, 42]
    with pytest.raises(Starved, match="of 3 clients 3 have stopped for ever, 0 are unavailable"):
        steps(Anarchic(50), clients, 1, clock=plans[-1].clock, first=4)


@pytest.mark.parametrize(
    "section",
    [
        {"speed": {"kind": "classes", "classes": [{"share": 1, "speed": 5.0}, {"share": 1, "speed": 1.0}]}},
        {
            "pause": {
                "kind": "exponential", "mean_s": 100.0,
                "classes": [{"share": 1, "factor": 1.0}, {"share": 1, "factor": 5.0}],
            }
        },
    ],
    ids=["speeds", "pauses"],
)  # fmt: skip
def test_biased_classes_arrive_five_to_one(section) -> None:
    made = behaviour(0, section)
    clients = Population(0, 20, made, lambda client: 1, lambda ids: np.ones(len(ids), np.int64), 0.1)
    first = classes(0, [1, 1])
    arrivals = [first(ticket.client) for one in steps(Anarchic(12), clients, 500) for ticket in one.arrivals]
    assert arrivals.count(0) / arrivals.count(1) == pytest.approx(5.0, rel=0.05)


# -- states, sections ------------------------------------------------------------------------------------------------


def test_tickets_survive_a_checkpoint_exactly() -> None:
    tickets = (
        Ticket(0.1 + 0.2, 3, 7, -1, 0.1),
        Ticket(1e300, 2**40, 999_999, 12, 5e-324, num_steps=9, repeat=2, dropped=True),
    )
    back = from_columns(wire.decode(wire.encode(to_columns(tickets))))
    assert back == tickets and isinstance(back[1].dropped, bool) and isinstance(back[0].client, int)
    assert from_columns(wire.decode(wire.encode(to_columns(())))) == ()


def test_a_clock_that_went_on_leaves_its_earlier_state_alone() -> None:
    clients = population(5, {0: 2.0, 1: 5.0})
    start = steps(Buffered(2, 4), clients, 1)[0].clock
    before = start.tickets
    assert steps(Buffered(2, 4), clients, 3, clock=start, first=1) == steps(
        Buffered(2, 4), clients, 3, clock=start, first=1
    )
    assert start.tickets == before


def test_sections_become_paces() -> None:
    def made(section, **arguments):
        return pacing(section, **{"num_clients": 100, "cohort": 10} | arguments)

    assert made({"kind": "auto"}) == Synchronous(10, 10)
    assert made({"kind": "auto"}, made_for="buffered", buffer=7) == Buffered(7, 10)
    assert made({"kind": "auto"}, made_for="anarchic") == Anarchic(10)
    wide = {"kind": "synchronous", "over_selection": 1.3, "deadline_s": 5.0, "min_clients": 2}
    assert made(wide) == Synchronous(10, 13, 5.0, 2)
    assert made(wide, num_clients=12) == Synchronous(10, 12, 5.0, 2)
    stale = {"buffer": 3, "max_staleness": 4, "stale": "drop"}
    assert made({"kind": "buffered", "concurrency": 50, **stale}) == Buffered(3, 50, 4)
    assert made({"kind": "anarchic", **stale | {"stale": "accept"}}) == Anarchic(3, None)


def test_over_selection_starts_as_many_as_one_would_count() -> None:
    for cohort in range(1, 200):
        made = pacing({"kind": "synchronous", "over_selection": 1.1}, num_clients=10_000, cohort=cohort)
        assert made.starts == math.ceil(Fraction(11, 10) * cohort)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "synchronous", "min_clients": 11}, "min_clients is 11, expected at most the cohort of 10"),
        ({"kind": "buffered", "concurrency": 101}, "a concurrency of 101 is more than the 100 clients"),
        ({"kind": "sometimes"}, "no pacing is called 'sometimes'"),
    ],
)
def test_a_pace_that_cannot_be_kept_is_refused(section, message) -> None:
    with pytest.raises(ValueError, match=message):
        pacing(section, num_clients=100, cohort=10)
