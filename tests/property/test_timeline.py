"""Whatever clients do: steps repeat, go on from any state, lose no ticket, and never have a client twice in flight."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.federated.behaviour import IDEAL, behaviour, duration_s, lognormal_speed
from strategies.federated.behaviour.traces import trace
from strategies.federated.clock import AT_REST, Clock, VirtualClock, from_columns, to_columns
from strategies.federated.pacing import Anarchic, Buffered, Synchronous
from strategies.federated.queue import build, items, pop, push
from strategies.federated.sampling import Feedback, sampler, uniform
from strategies.federated.timeline import Population, Starved, plan
from strategies.seeds import generator
from trainers import wire

NUM_CLIENTS = 9
STEPS = 6
TRACES = {"a": trace([0, 0, 1, 2, 3], [0.0, 50.0, 10.0, 3.0, 0.0], [20.0, 60.0, 40.0, 80.0, 0.5])}


def sizes(ids):
    return np.asarray(ids) % 4 + 1


def kinds(**members):
    return st.one_of(*(st.fixed_dictionaries({"kind": st.just(kind), **fields}) for kind, fields in members.items()))


seconds = st.floats(0.01, 50.0)
behaviours = st.fixed_dictionaries(
    {},
    optional={
        "speed": kinds(
            lognormal={"sigma": st.floats(0, 2)},
            classes={"classes": st.just([{"share": 1, "speed": 5.0}, {"share": 2, "speed": 1.0}])},
        ),
        "availability": kinds(
            diurnal={"period_s": seconds, "share": st.floats(0.05, 1), "spread": st.floats(0, 1)},
            sessions={"on_s": seconds, "off_s": seconds},
            trace={"path": st.just("a"), "period_s": st.none() | st.floats(80, 200)},
        ),
        "dropout": st.floats(0, 0.9),
        "pause": kinds(constant={"seconds": st.just(0.0) | seconds}, exponential={"mean_s": seconds}),
        "steps": kinds(
            uniform={"low": st.just(1), "high": st.integers(1, 10)}, **{"by-speed": {"steps": st.floats(1, 9)}}
        ),
        "stops": st.fixed_dictionaries({"fraction": st.floats(0, 1), "mean_s": st.floats(1, 200)}),
    },
)
limits = st.none() | st.integers(0, 3)
paces = st.one_of(
    st.builds(
        lambda cohort, more, deadline, least: Synchronous(cohort, cohort + more, deadline, min(least, cohort)),
        st.integers(1, 6), st.integers(0, 3), st.none() | st.floats(0.1, 30), st.integers(1, 3),
    ),
    st.builds(Buffered, st.integers(1, 6), st.integers(1, NUM_CLIENTS), limits),
    st.builds(Anarchic, st.integers(1, 12), limits),
)  # fmt: skip
samplers = st.sampled_from(
    [{"name": "uniform"}, {"name": "weighted"}, {"name": "oort"}, {"name": "power-of-choice", "candidates": 4}]
)


def population(seed, section):
    return Population(seed, NUM_CLIENTS, behaviour(seed, section, TRACES), lambda client: client + 1, sizes, 0.5)


def after(which, memory, done, step):
    """What a sampler remembers when losses are a function of the ticket."""
    told = [Feedback(t.client, 1.0 / (1 + t.order), 3, t.finish_s - t.start_s) for t in done.arrivals]
    return which.learn(memory, told, step)


def play(seed, section, pace, name, cut=None):
    """Plan some steps, with the state written and read back after step `cut`; None ends a run that is starved."""
    clients, which = population(seed, section), sampler(name)
    clock, memory, plans = Clock(), which.init(), []
    for step in range(STEPS):
        if step == cut:
            clients, which = population(seed, section), sampler(name)
            tickets = from_columns(wire.decode(wire.encode(to_columns(clock.tickets))))
            clock = Clock.of(float.fromhex(clock.now_s.hex()), clock.order, tickets)
            memory = wire.decode(wire.encode(memory))
        try:
            plans.append(plan(pace, clients, which, memory, clock, step))
        except Starved as error:
            assert error.num_clients == NUM_CLIENTS >= error.stopped + error.unavailable
            return [*plans, None]
        clock, memory = plans[-1].clock, after(which, memory, plans[-1], step)
    return plans


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), behaviours, paces, samplers, st.integers(0, STEPS - 1))
def test_a_run_that_is_cut_after_any_step_goes_on_as_if_it_had_not_been(seed, section, pace, name, cut) -> None:
    assert play(seed, section, pace, name) == play(seed, section, pace, name, cut)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99), behaviours, paces, samplers)
def test_steps_keep_their_promises(seed, section, pace, name) -> None:
    waits_s = behaviour(seed, section, TRACES).waits_s
    limit = getattr(pace, "max_staleness", None)
    size = pace.cohort if isinstance(pace, Synchronous) else pace.buffer
    now_s, flying, named = 0.0, {}, set()
    for step, done in enumerate(play(seed, section, pace, name)):
        if done is None:
            break
        assert 1 <= len(done.arrivals) <= size
        ended = [*done.arrivals, *done.late, *done.dropped, *done.stale]
        under_way = [ticket for ticket in done.clock.tickets if ticket.version != AT_REST]
        assert list(done.arrivals) == sorted(done.arrivals)
        assert now_s <= min(ticket.finish_s for ticket in done.arrivals)
        assert done.arrivals[-1].finish_s <= done.clock.now_s
        assert all(ticket.finish_s >= done.clock.now_s for ticket in done.clock.tickets)
        assert len({ticket.client for ticket in done.clock.tickets}) == len(done.clock.tickets)
        # every ticket that was in flight or started now either ended or is in flight
        assert len(flying) + done.started == len(ended) + len(under_way)
        new = {ticket.order: ticket for ticket in [*ended, *under_way] if ticket.order not in flying}
        assert len(new) == done.started
        for ticket in new.values():
            assert ticket.version == step and waits_s(ticket.client, ticket.start_s) == 0
            assert (ticket.client, ticket.version, ticket.repeat) not in named
            named.add((ticket.client, ticket.version, ticket.repeat))
        assert not any(ticket.dropped for ticket in [*done.arrivals, *done.late, *done.stale])
        assert all(ticket.dropped for ticket in done.dropped)
        if limit is not None:
            assert all(step - ticket.version <= limit for ticket in done.arrivals)
            assert all(step - ticket.version > limit for ticket in done.stale)
        now_s, flying = done.clock.now_s, {ticket.order: ticket for ticket in under_way}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_plain_synchronous_rounds_are_bit_for_bit_those_of_a_barrier(seed, num_clients, cohort, sigma) -> None:
    cohort = min(cohort, num_clients)
    made = behaviour(seed, {"step_s": 0.05, "speed": {"kind": "lognormal", "sigma": sigma}})
    clients = Population(seed, num_clients, made, lambda client: client % 5 + 1, sizes, 0.05)
    state, clock = Clock(), VirtualClock()
    for step in range(4):
        for client in uniform(num_clients, cohort, generator(seed, "cohort", step + 1)):
            speed = lognormal_speed(seed, client, sigma=sigma)
            clock.start(client, step, duration_s(client % 5 + 1, step_s=0.05, speed=speed))
        finished = [clock.next() for _ in range(cohort)]
        done = plan(Synchronous(cohort, cohort), clients, sampler({"name": "uniform"}), {}, state, step)
        state = done.clock
        assert list(done.arrivals) == finished
        assert (state.now_s, state.order, state.tickets) == (clock.now_s, clock.order, ())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20) | st.none()))
def test_a_queue_gives_its_items_in_order_and_older_ones_stay_as_they_were(first, steps) -> None:
    queue, model = build(first), sorted(first)
    kept = [(queue, list(model))]
    for item in steps:
        if item is not None:
            queue, model = push(queue, item), sorted([*model, item])
        elif queue is not None:
            least, queue = pop(queue)
            assert least == model.pop(0)
        kept.append((queue, list(model)))
    assert [sorted(items(queue)) for queue, _ in kept] == [model for _, model in kept]


def test_a_queue_of_many_is_no_deeper_than_python_can_go() -> None:
    queue = None
    for item in range(50_000, 0, -1):
        queue = push(queue, item)
    for item in range(50_001, 60_000):
        queue = push(queue, item)
    for expected in range(1, 100):
        least, queue = pop(queue)
        assert least == expected


def test_ideal_clients_are_what_an_empty_section_means() -> None:
    made = behaviour(1, {})
    for client in range(5):
        assert (made.speed(client), made.waits_s(client, 3.0)) == (IDEAL.speed(client), IDEAL.waits_s(client, 3.0))
