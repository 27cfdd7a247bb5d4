"""The loop of engines whose states are whole after every step: step, evaluate where that is due, tell.

A step is a generator that returns its report. What it does up to its first `yield` may be done early, as soon as the
state before it is known: then workers train while the caller records the step before, writes checkpoints, tells MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping

from orchestrator.engines.base import RunState, StepReport
from orchestrator.errors import OrchestratorError
from trainers.threads import intra_op_threads

Step = Generator[None, None, StepReport]


def stepping(
    state: RunState,
    last: int,
    every: int,
    step: Callable[[RunState], Step],
    evaluate: Callable[[RunState], Mapping[str, float]],
    ends: Callable[[], bool],
) -> Generator[StepReport, None, None]:
    """Yield one report a step, from `state` to step `last`; a fresh state is evaluated first.

    Args:
        every: steps between evaluations; there is one after the last step, too. ends: whether to stop before that; a
            step that has begun by then is thrown away.
    """
    if state.step == 0 and last:
        yield StepReport(state, evaluate(state))
    begun: Step | None = None
    while state.step < last:
        # The driver's share is small sums. With more threads than one, torch's idle ones spin after each of them and
        # took 70 ms of CPU a round from workers on the same cores (on two cores).
        with intra_op_threads(1):
            report = _finished(begun or step(state))
        state = report.state
        if state.step % every == 0 or state.step == last:
            report = report._replace(values={**report.values, **evaluate(state)})
        with intra_op_threads(1):
            begun = _begun(step(state)) if state.step < last else None
        yield report
        if ends():
            return


def _begun(step: Step) -> Step | None:
    """Do what may be done early of a step; None when that fails: it is tried again, and fails, in its turn."""
    try:
        next(step)
    except OrchestratorError:
        return None
    return step


def _finished(step: Step) -> StepReport:
    """Return what a step comes to."""
    while True:
        try:
            next(step)
        except StopIteration as end:
            report: StepReport = end.value
            return report
