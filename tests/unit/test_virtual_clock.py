"""The virtual clock hands participations back in order of time, ties in order of start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.federated.clock import VirtualClock


def test_the_faster_client_finishes_first_and_time_moves_to_it() -> None:
    clock = VirtualClock()
    clock.start(client=4, version=0, duration_s=2.0)
    clock.start(client=9, version=0, duration_s=0.5)
    assert [clock.next().client, clock.now_s, clock.next().client, clock.now_s] == [9, 0.5, 4, 2.0]


def test_clients_that_finish_together_come_in_the_order_they_started() -> None:
    clock = VirtualClock()
    for client in (5, 1, 3):
        clock.start(client, 0, 1.0)
    assert [clock.next().client for _ in range(3)] == [5, 1, 3]


def test_a_participation_that_takes_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="client 3"):
        VirtualClock().start(3, 0, 0.0)


@given(st.lists(st.tuples(st.integers(0, 99), st.floats(0.001, 1e6)), min_size=1, max_size=50), st.integers(0, 50))
def test_a_clock_rebuilt_from_its_state_goes_on_as_if_nothing_had_happened(starts, taken) -> None:  # type: ignore[no-untyped-def]
    clock = VirtualClock()
    for client, duration in starts:
        clock.start(client, 0, duration)
    for _ in range(min(taken, len(starts))):
        clock.next()
    again = VirtualClock(clock.now_s, clock.order, clock.tickets)
    assert again.tickets == clock.tickets
    while clock.tickets:
        assert again.next() == clock.next()
        assert again.now_s == clock.now_s
