"""The loop of engines whose states are whole after every step: step, evaluate where that is due, tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from orchestrator.engines.base import RunState, StepReport
from trainers.threads import intra_op_threads


def stepping(
    state: RunState,
    last: int,
    every: int,
    step: Callable[[RunState], StepReport],
    evaluate: Callable[[RunState], Mapping[str, float]],
    ends: Callable[[], bool],
) -> Iterator[StepReport]:
    """Yield one report a step, from `state` to step `last`; a fresh state is evaluated first.

    Args:
        every: steps between evaluations; there is one after the last step, too. ends: whether to stop before that.
    """
    if state.step == 0 and last:
        yield StepReport(state, evaluate(state))
    while state.step < last:
        # The driver's share is small sums. With more threads than one, torch's idle ones spin after each of them and
        # took 70 ms of CPU a round from workers on the same cores (on two cores).
        with intra_op_threads(1):
            report = step(state)
        state = report.state
        if state.step % every == 0 or state.step == last:
            report = report._replace(values={**report.values, **evaluate(state)})
        yield report
        if ends():
            return
