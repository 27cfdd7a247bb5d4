"""Ctrl-C and SIGTERM arrive between writes, a second one at once, and handlers are put back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from orchestrator.interrupts import Interrupts

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@BOTH
def test_a_signal_raises_where_the_main_thread_is(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), number)
        raise AssertionError("not interrupted")
    assert signal.getsignal(number) is before


@BOTH
def test_a_signal_waits_for_the_end_of_a_deferred_block(number: int) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.deferred():
        with interrupts.deferred():
            os.kill(os.getpid(), number)
            assert interrupts.pending
        done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]


def test_a_second_signal_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")


def test_an_error_inside_a_deferred_block_is_not_hidden_by_the_signal() -> None:
    with pytest.raises(KeyError), Interrupts() as interrupts, interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        raise KeyError("what went wrong")


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with Interrupts() as interrupts, interrupts.deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
