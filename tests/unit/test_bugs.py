"""One test for each bug that was, with its story."""

from __future__ import annotations

import pytest
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


def test_counters_of_batches_do_not_tell_who_was_trained_before() -> None:
    """BatchNorm with `momentum=None` averages over its count of batches, which went from one client to the
    next: bits depended on the number of workers."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4, momentum=None), torch.nn.Linear(4, 2))
    start = modules.snapshot(model)
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    first = train(model, Task(0, 1, start), x, y, SETTINGS, run_seed=0)
    again = train(model, Task(0, 1, start), x, y, SETTINGS, run_seed=0)
    assert all(torch.equal(tensor, again.delta[name]) for name, tensor in first.delta.items())
    assert float(first.delta["1.running_mean"].abs().max()) > 0


def test_a_sampler_of_fresh_losses_says_so_when_all_clients_are_gone() -> None:
    """While the deadline passed the last clients left; the error came as a traceback, from before the plan."""
    from orchestrator.errors import WorkerError
    from tests.contract.federated_plays import config, play

    settings = config(
        {"name": "fedavg", "rounds": 400, "cohort": 2},
        seed=3,
        sampler={"name": "power-of-choice", "candidates": 5, "fresh_losses": True},
        pacing={"kind": "synchronous", "deadline_s": 0.035},
        behaviour={"speed": {"kind": "lognormal", "sigma": 1.0}, "stops": {"fraction": 1.0, "mean_s": 0.05}},
        evaluate={"every": 400},
    )
    with pytest.raises(WorkerError, match="7 have stopped for ever"):
        play(settings)


def test_a_linear_layers_rows_of_words_may_be_changed_in_place_where_its_weights_gradient_waits() -> None:
    """Of three dimensions torch's linear returns a view, which autograd lets nobody change if a function of ours made
    it: `x = linear(x); x += y` ran under every schedule but zero-bubble."""
    from trainers.pipeline import deferred

    gradients = []
    for splits in (False, True):
        torch.manual_seed(0)
        layer, store = torch.nn.Linear(3, 3), deferred.Store()
        if splits:
            deferred.install(layer, store)
        made = layer(torch.randn(2, 4, 3))
        made += 1
        made[:, 0].mul_(2)
        made.square().sum().backward()
        store.run(0)
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


def test_nobody_computes_the_gradient_of_a_pipelines_inputs() -> None:
    """The first stage began with leaves, so its first layer computed a gradient that nobody read: 11 ms of 780."""
    from trainers.pipeline.chunk import Chunk, Run
    from trainers.pipeline.layers import chain

    seen: list[tuple[torch.Tensor | None, ...]] = []
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    model[0].register_full_backward_hook(lambda module, given, returned: seen.append(given))
    chunk = Chunk(chain(model).layers, 0, 2)
    sent = chunk.forward(Run(0, 0, True), {"0": torch.randn(4, 3)})
    assert chunk.backward(0, {"0": torch.ones_like(sent["0"])}) == {}
    assert seen == [(None,)] and float(model[0].weight.grad.abs().max()) > 0


def test_a_stage_may_not_change_what_it_begins_with() -> None:
    """A stage that computes again would begin with other numbers; where nobody asks for a gradient, torch lets it."""
    from trainers.pipeline.chunk import Chunk, LayerFailed, Run
    from trainers.pipeline.layers import chain

    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU(inplace=True), torch.nn.Linear(3, 2))
    for position, keep, followed in ((0, True, None), (0, False, None), (1, True, None), (1, True, ())):
        chunk = Chunk(chain(model).layers, position, 3)
        with pytest.raises(LayerFailed, match="layer 1"):
            chunk.forward(Run(0, 0, keep, followed), {"0": torch.randn(4, 3)})
