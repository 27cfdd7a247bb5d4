"""One test for each bug that was, with its story."""

from __future__ import annotations

import torch

from orchestrator.cli import submitting
from strategies.base import Contribution
from strategies.federated.folding import fold
from trainers import models, modules
from trainers.local import LocalSettings, Task, train

SETTINGS = LocalSettings(1, None, 4, {"name": "sgd", "lr": 0.1}, None)


def test_clients_learn_although_folding_records_no_gradients() -> None:
    """Folding draws clients under `no_grad`, so their training ran without gradients and changed nothing."""
    model = models.build({"name": "logistic"}, input_shape=(3,), num_classes=2, seed=0)
    start = modules.snapshot(model)
    x, y = torch.randn(8, 3), torch.arange(8) % 2

    def contributions():  # type: ignore[no-untyped-def]
        trained = train(model, Task(0, 1, start), x, y, SETTINGS, run_seed=0)
        yield Contribution(trained.delta, 1.0)

    folded = fold(contributions())
    assert folded is not None
    assert all(float(tensor.abs().max()) > 0 for tensor in folded.total.values())


def test_output_of_a_job_is_not_shown_twice_after_continuing(monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    """After Ctrl-C and "continue", `submit` followed the job from its first line again."""
    from cluster import jobs

    asked: list[int] = []

    def follow(address, job, write, *, num_seen):  # type: ignore[no-untyped-def]
        asked.append(num_seen)
        write("round 1\nround 2\n"[num_seen : 8 if num_seen == 0 else None])
        if num_seen == 0:
            raise KeyboardInterrupt
        return jobs.JobOutcome("SUCCEEDED", 0, "")

    monkeypatch.setattr(jobs, "follow", follow)
    monkeypatch.setattr(submitting, "_asked", lambda job: "continue")
    assert submitting._follow("http://head:8265", "job") == 0
    assert asked == [0, 8]
    assert capsys.readouterr().out == "round 1\nround 2\n"
