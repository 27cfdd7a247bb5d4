"""The loop over steps: the next one begins while the caller records the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.engines.base import RunState, StepReport
from orchestrator.engines.stepping import Step, stepping
from orchestrator.errors import WorkerError


class Steps:
    """Steps that say when they begin and end."""

    def __init__(self, fails_at: int = -1) -> None:
        self.told: list[str] = []
        self.ends = False
        self._fails_at = fails_at

    def step(self, state: RunState) -> Step:
        number = state.step + 1
        if number == self._fails_at:
            raise WorkerError("nobody is left")
        self.told.append(f"begin {number}")
        try:
            yield
            self.told.append(f"end {number}")
            return StepReport(RunState(number, {}, {}), {"train/loss": 1.0})
        finally:
            self.told.append(f"over {number}")

    def evaluate(self, state: RunState) -> dict[str, float]:
        self.told.append(f"evaluate {state.step}")
        return {"test/loss": 2.0}

    def run(self, last: int, every: int = 100) -> Iterator[Any]:
        return stepping(RunState(0, {}, {}), last, every, self.step, self.evaluate, lambda: self.ends)


def test_a_step_begins_before_the_one_before_it_is_told() -> None:
    steps = Steps()
    for report in steps.run(3):
        steps.told.append(f"told {report.state.step}")
    assert [line for line in steps.told if "over" not in line] == [
        "evaluate 0", "told 0",
        "begin 1", "end 1", "begin 2", "told 1",
        "end 2", "begin 3", "told 2",
        "end 3", "evaluate 3", "told 3",
    ]  # fmt: skip


def test_workers_evaluate_before_they_begin_the_next_step() -> None:
    steps = Steps()
    reports = list(steps.run(2, every=1))
    assert steps.told.index("evaluate 1") < steps.told.index("begin 2")
    assert [sorted(report.values) for report in reports[1:]] == [["test/loss", "train/loss"]] * 2


def test_a_step_that_cannot_begin_fails_in_its_turn() -> None:
    steps = Steps(fails_at=2)
    running = steps.run(3)
    assert [next(running).state.step for _ in range(2)] == [0, 1]
    with pytest.raises(WorkerError, match="nobody is left"):
        next(running)


def test_a_step_begun_for_a_run_that_ends_is_thrown_away() -> None:
    steps = Steps()
    running = steps.run(3)
    assert [next(running).state.step for _ in range(2)] == [0, 1]
    steps.ends = True
    assert list(running) == []
    assert steps.told[-2:] == ["begin 2", "over 2"]
