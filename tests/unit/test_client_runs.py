"""What a run remembers of its clients is as of its steps, however the run was ended, moved or continued."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.engines.base import RunState, StepReport
from orchestrator.engines.rounds import RoundsEngine
from orchestrator.life import RunInterrupted, RunResult, Trial
from orchestrator.rundir import RunDirectory
from trainers import wire

CLIENTS = 12


def config(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "data": {"name": "digits", "partition": {"kind": "iid", "clients": CLIENTS}, "limit": 100},
        "model": {"name": "logistic"},
        "strategy": {"algorithm": {"rounds": 7, "cohort": 3}, "client": {"optimizer": {"lr": 0.1}}},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 3},
        "storage": {"root": str(root)},
        **changes,
    }


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[[], None]]:
    """Let every client remember the rounds it was in; what is put here is called in a step, after its writes."""
    steps, actions = RoundsEngine.steps, {}

    def remembering(self: RoundsEngine, state: RunState) -> Iterator[StepReport]:
        for report in steps(self, state):
            clients, step = [client.client for client in report.clients], report.state.step
            assert self.clients is not None
            found = self.clients.read(clients)
            trees = [wire.decode(payload, copy=False) if payload else {"rounds": torch.empty(0)} for payload in found]
            new = [{"rounds": torch.cat([tree["rounds"], torch.tensor([float(step)])])} for tree in trees]
            self.clients.write({client: wire.encode(tree) for client, tree in zip(clients, new, strict=True)})
            actions.pop(step, lambda: None)()
            yield report

    monkeypatch.setattr(RoundsEngine, "steps", remembering)
    return actions


def remembered(result: RunResult) -> list[list[float]]:
    return [tree["rounds"].tolist() if (tree := result.client(client)) else [] for client in range(CLIENTS)]


def took_part(result: RunResult, last: int = 7) -> list[list[float]]:
    events = RunDirectory.open(result.run_dir).events()
    cohorts = {event["step"]: event["clients"] for event in events if event["kind"] == "round"}
    return [[float(n) for n, cohort in cohorts.items() if client in cohort and n <= last] for client in range(CLIENTS)]


def stop() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise RuntimeError("a bug")


def test_a_client_is_asked_for_by_number_or_name(tmp_path: Path, at_step: object) -> None:
    result = orchestrator.run(config(tmp_path), quiet=True)
    assert remembered(result) == took_part(result)
    assert sorted(step for steps in remembered(result) for step in steps) == sorted(list(range(1, 8)) * 3)
    assert torch.equal(result.client("4")["rounds"], result.client(4)["rounds"])
    assert result.client(10**9) == {}
    with pytest.raises(orchestrator.ResumeError, match="no client is called 'ann'; there are 12, such as 0, 1, 2"):
        result.client("ann")
    assert not [path for path in result.run_dir.iterdir() if "scratch" in path.name or path.suffix == ".tmp"]


@pytest.mark.parametrize(("at", "how"), [(4, stop), (6, stop), (5, fail)])
def test_a_step_that_is_cut_short_after_its_writes_is_not_remembered(
    tmp_path: Path, at_step: dict[int, Callable[[], None]], at: int, how: Callable[[], None]
) -> None:
    at_step[at] = how
    with pytest.raises((RunInterrupted, RuntimeError)):
        orchestrator.run(config(tmp_path), quiet=True)
    (run_dir,) = tmp_path.iterdir()
    reached = RunResult(run_dir, "", 0, {})
    assert remembered(reached) == took_part(reached, at - 1 if how is stop else 3)
    result = orchestrator.run(resume=run_dir, quiet=True)
    assert remembered(result) == took_part(result)


def test_a_run_goes_on_elsewhere_from_its_storage(tmp_path: Path, at_step: dict[int, Callable[[], None]]) -> None:
    at_step[6] = fail
    storage = {"every": 2, "keep": 1, "storage": f"file://{tmp_path / 'storage'}"}
    with pytest.raises(RuntimeError, match="a bug"):
        orchestrator.run(config(tmp_path / "here", checkpoint=storage), quiet=True)
    (run_dir,) = (tmp_path / "here").iterdir()
    shutil.copytree(run_dir, tmp_path / "there")
    shutil.rmtree(run_dir)
    result = orchestrator.run(resume=tmp_path / "there", quiet=True)
    assert remembered(result) == took_part(result)


def test_a_trial_begins_with_the_clients_of_the_checkpoint_it_starts_from(tmp_path: Path, at_step: object) -> None:
    donor = orchestrator.run(config(tmp_path / "donor"), quiet=True)
    begin = donor.run_dir / "checkpoints" / "step-000003"
    heir = orchestrator.run(config(tmp_path), quiet=True, trial=Trial(tmp_path / "heir", 1, {}, start_from=begin))
    shutil.rmtree(donor.run_dir / "checkpoints")
    early = [[step for step in steps if step <= 3] for steps in took_part(donor)]
    late = [[step for step in steps if step > 3] for steps in took_part(heir)]
    assert remembered(heir) == [a + b for a, b in zip(early, late, strict=True)]
    assert any(early) and any(late)
