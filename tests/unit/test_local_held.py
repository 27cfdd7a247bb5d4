"""What a worker holds of what it sent, without sockets: places, the window, the limit, and who has had what."""

from __future__ import annotations

import pytest
import torch

from trainers.decoupled.held import Held, Message, Place
from trainers.decoupled.links import Mark

ALL = Place(0, 0, 0)


def batch(step: int) -> Message:
    return Message(Place(step, 0, 0), Mark(step, 0, 0), {"h": torch.full((2,), float(step))})


def examined(step: int, index: int) -> Message:
    return Message(Place(step, 1, index), Mark(0, 0, 0), {"h": torch.zeros(3)})


def filled(steps: int, window: int = 3, limit: int = 8, begin: Place = ALL) -> Held:
    """A sender whose reader takes everything at once."""
    held = Held(window, limit, begin)
    held.read_by(begin, begin)
    for step in range(1, steps + 1):
        held.put(batch(step))
        held.taken(Place(step, 0, 0))
    return held


def sent(held: Held) -> list[int]:
    found = []
    while (message := held.next()) is not None:
        found.append(message.place.step)
    return found


def test_a_reader_is_sent_no_more_than_the_window_beyond_what_it_took_and_holds_the_sender_back() -> None:
    held = Held(3, 8, ALL)
    for step in (1, 2, 3):
        assert held.fits(Place(step, 0, 0))
        held.put(batch(step))
    assert not held.fits(Place(4, 0, 0)) and sent(held) == []
    held.read_by(ALL, ALL)
    assert sent(held) == [1, 2, 3]
    held.taken(Place(1, 0, 0))
    assert held.fits(Place(4, 0, 0))
    held.put(batch(4))
    assert sent(held) == [4]


def test_a_batch_is_held_until_a_later_whole_state_is_known_and_the_limit_makes_the_sender_wait() -> None:
    held = filled(8)
    assert len(held) == 8 and held.num_bytes == 8 * 8 and not held.fits(Place(9, 0, 0))
    held.keep(5, 5)
    assert len(held) == 3 and held.num_bytes == 3 * 8 and held.most_bytes == 8 * 8 and held.fits(Place(9, 0, 0))


def test_a_reader_in_the_place_of_a_lost_one_is_sent_again_what_it_missed_and_nothing_else() -> None:
    held = filled(6)
    held.keep(2, 2)
    again = Place.behind(2, 5)
    held.read_by(again, again)
    assert sent(held) == [3, 4, 5]
    held.taken(Place(3, 0, 0))
    held.keep(6, 6)  # that others are further does not matter to one that is behind
    assert sent(held) == [6] and [place.step for place in held._messages] == [4, 5, 6]


def test_a_sender_in_the_place_of_a_lost_one_sends_only_what_its_reader_has_not_had() -> None:
    held = Held(2, 8, Place.behind(2, 4))
    held.put(batch(3))
    held.put(batch(4))
    assert not held.fits(Place(5, 0, 0))  # it does not know yet where its reader is
    held.read_by(Place(6, 0, 0), Place(5, 0, 0))
    assert held.fits(Place(5, 0, 0)) and not held.is_new(6) and held.is_new(7)
    for step in (5, 6):
        held.put(batch(step))
    assert sent(held) == [] and held.fits(Place(7, 0, 0))
    held.put(batch(7))
    assert sent(held) == [7]


def test_evaluations_are_held_until_they_are_known_and_there_are_two_at_most() -> None:
    held = Held(9, 8, ALL)
    for step in (1, 2):
        held.put(batch(step))
        held.put(examined(step, 0))
    assert held.fits(Place(2, 1, 1)) and held.fits(Place(3, 0, 0)) and not held.fits(Place(3, 1, 0))
    held.read_by(Place(2, 1, 0), Place(2, 1, 0))
    held.keep(0, 1)
    assert held.fits(Place(3, 1, 0)) and [tuple(place) for place in held._messages] == [(1, 0, 0), (2, 0, 0), (2, 1, 0)]


def test_the_evaluation_before_the_first_batch_is_wanted_until_it_is_known() -> None:
    assert Place.behind(0, -1) < Place(0, 1, 0) and Place.behind(0, 0) > Place(0, 1, 7)
    assert Place(4, 1, 7) < Place.behind(4, -1) < Place(5, 0, 0)


def test_messages_come_in_order() -> None:
    with pytest.raises(ValueError, match="comes after"):
        filled(3).put(batch(3))
