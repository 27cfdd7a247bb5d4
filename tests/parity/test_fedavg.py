"""FedAvg against the plain computations it stands for, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from cluster.inline import InlineExecutor
from orchestrator.config import load_experiment
from orchestrator.engines.rounds import RoundsEngine
from orchestrator.preparing import Prepared, prepare
from strategies.seeds import generator
from trainers.data.base import to_tensor

TOLERANCE = {"rtol": 0.0, "atol": 1e-10}


def experiment(**strategy: Any) -> Any:
    """A small float64 experiment of odd sizes, its data drawn with mixed signs."""
    partition = strategy.pop("partition", {"kind": "dirichlet", "clients": 7, "alpha": 0.4, "min_size": 3})
    return load_experiment(
        {
            "name": "parity",
            "seed": 11,
            "data": {
                "name": "synthetic", "kind": "blobs", "examples": 203, "test_examples": 37,
                "features": 9, "classes": 4, "partition": partition,
            },
            "model": {"name": "mlp", "hidden": [13], "dtype": "float64"},
            "strategy": {"kind": "federated", **strategy},
            "cluster": {"workers": 0},
        }
    ).experiment  # fmt: skip


def federated_weights(settings: Any, prepared: Prepared) -> dict[str, torch.Tensor]:
    with InlineExecutor() as executor:
        engine = RoundsEngine(settings, prepared, executor)
        engine.start()
        *_, last = engine.steps(engine.initial_state())
        return dict(last.state.model)


def tensors(prepared: Prepared, client: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = prepared.partition.rows(client)
    data = prepared.dataset
    return to_tensor(data.train_x[rows], data, torch.float64), torch.as_tensor(data.train_y[rows])


def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, lr: float) -> None:
    model.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= lr * parameter.grad


@pytest.mark.parametrize("batch_size", [1, 8, 13, "full"])
def test_one_client_that_always_takes_part_is_plain_sgd_on_the_same_batches(batch_size: int | str) -> None:
    settings = experiment(
        partition={"kind": "iid", "clients": 1},
        algorithm={"rounds": 3, "cohort": 1},
        client={"epochs": 2, "batch_size": batch_size, "optimizer": {"name": "sgd", "lr": 0.2}},
    )
    prepared = prepare(settings)
    got = federated_weights(settings, prepared)
    plain = prepare(settings).model
    x, y = tensors(prepared, 0)
    size = len(x) if batch_size == "full" else int(batch_size)
    for round_ in (1, 2, 3):
        rng = generator(11, "batches", round_, 0)
        for _ in range(2):
            order = torch.from_numpy(rng.permutation(len(x)))
            for start in range(0, len(x), size):
                step(plain, x[order[start : start + size]], y[order[start : start + size]], 0.2)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(got[name], parameter.detach(), **TOLERANCE)


def test_one_local_step_of_equal_clients_is_one_large_batch_step() -> None:
    settings = experiment(
        partition={"kind": "iid", "clients": 7},  # 203 = 7 x 29
        algorithm={"rounds": 5, "cohort": "all"},
        client={"epochs": 1, "batch_size": "full", "optimizer": {"name": "sgd", "lr": 0.3}},
    )
    prepared = prepare(settings)
    got = federated_weights(settings, prepared)
    plain = prepare(settings).model
    parts = [tensors(prepared, client) for client in range(7)]
    assert {len(x) for x, _ in parts} == {29}
    x, y = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    for _ in range(5):
        step(plain, x, y, 0.3)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(got[name], parameter.detach(), **TOLERANCE)


@pytest.mark.parametrize(
    ("weighting", "server_lr", "block"), [("examples", 1.0, 1), ("uniform", 0.7, 3), ("examples", 1.6, 99)]
)
def test_uneven_clients_are_weighted_as_the_paper_says(weighting: str, server_lr: float, block: int) -> None:
    settings = experiment(
        algorithm={"rounds": 2, "cohort": 4, "weighting": weighting, "server_lr": server_lr},
        client={"steps": 5, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}},
        fold_block=block,
    )
    prepared = prepare(settings)
    got = federated_weights(settings, prepared)
    from strategies.federated.sampling import uniform

    model = {name: p.detach().clone() for name, p in prepare(settings).model.named_parameters()}
    for round_ in (1, 2):
        local, weights = [], []
        for client in uniform(7, 4, generator(11, "cohort", round_)):
            net = prepare(settings).model
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    parameter.copy_(model[name])
            x, y = tensors(prepared, client)
            rng, left = generator(11, "batches", round_, client), 5
            while left:
                order = torch.from_numpy(rng.permutation(len(x)))
                for start in range(0, len(x), 4):
                    if left:
                        step(net, x[order[start : start + 4]], y[order[start : start + 4]], 0.1)
                        left -= 1
            local.append({name: p.detach().clone() for name, p in net.named_parameters()})
            weights.append(float(len(x)) if weighting == "examples" else 1.0)
        mean = {n: sum(w * m[n] for w, m in zip(weights, local, strict=True)) / sum(weights) for n in model}
        model = {name: (1 - server_lr) * model[name] + server_lr * mean[name] for name in model}
    for name, expected in model.items():
        torch.testing.assert_close(got[name], expected, **TOLERANCE)
