"""An interruption that comes while a gang's step is being recorded: its ranks are told, and leave a whole state."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from cluster.gang import RankReport
from orchestrator.engines import opening
from orchestrator.life import RunInterrupted, Trial
from orchestrator.results import RunResult
from trainers.shards import pieces_of, write

MODEL = {"1.weight": torch.ones(3, 4)}


class ScriptedGang:
    """One rank that makes steps until it is told to stop, and writes its state then."""

    def __init__(self) -> None:
        self.word = ""

    def share(self, value: Any) -> Any:
        return value

    def tell(self, word: str) -> None:
        self.word = word

    def run(self, program: str, settings: Mapping[str, Any], *, beat_s: float | None = None) -> Iterator[RankReport]:
        yield RankReport(0, {"kind": "evaluation", "step": 0, "values": {}, "ends": False})
        for step in range(1, 1000):
            ends = self.word == "stop"
            yield RankReport(0, {"kind": "step", "step": step, "values": {"train/loss": 1.0}, "ends": ends})
            if ends:
                yield RankReport(0, {"kind": "evaluation", "step": step, "values": {}, "ends": False})
                yield RankReport(0, {"kind": "spans", "step": step, "part": 0, "spans": []})
                pieces = pieces_of("model", MODEL.items(), 0, 1)
                file = write(f"{settings['folder']}/step-{step:06d}", "shard-0-of-1.arrow", pieces)
                yield RankReport(0, {"kind": "state", "step": step, "part": 0, "file": file._asdict()})
                return


def test_an_interruption_while_a_step_is_recorded_ends_the_ranks_with_a_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def scripted(*args: Any) -> Iterator[ScriptedGang]:
        yield ScriptedGang()

    def interrupt(report: Any, directory: Any) -> bool:
        if report.state.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    monkeypatch.setattr(opening, "open_gang", scripted)
    config = {
        "name": "interrupted",
        "data": {"name": "synthetic", "examples": 40, "test_examples": 10, "features": 4, "classes": 3},
        "model": {"name": "logistic"},
        "strategy": {"kind": "zero", "ranks": 1, "stage": 1, "steps": 1000, "batch_size": 4},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 500},
        "evaluate": {"every": 500},
    }
    with pytest.raises(RunInterrupted) as stopped:
        orchestrator.run(config, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=interrupt))
    assert stopped.value.step in (6, 7)
    assert torch.equal(RunResult(tmp_path / "run", "KILLED", 6, {}).weights()["1.weight"], MODEL["1.weight"])
