"""ForwardGNN's single-forward against dense numpy, and what it may not read."""

from __future__ import annotations

import copy
import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from strategies.local.base import LocalModule, LocalRule
from strategies.local.forward_gnn import OPTIMIZER, SingleForward, build, fit, propagation, with_class_vertices
from strategies.local.serial import predict, train_batch
from trainers.data.planetoid import load_graph, normalize_rows

CLASSES = 3


def communities(num_vertices: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges mostly within classes, labels, and a training vertex in every third; both directions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_vertices) % CLASSES
    chance = np.where(labels[:, None] == labels, 0.3, 0.02)
    src, dst = np.nonzero(np.triu(rng.random((num_vertices, num_vertices)) < chance, 1))
    train = np.arange(num_vertices) % 9 < 3
    return np.concatenate([src, dst]), np.concatenate([dst, src]), labels, train


def made(labels: np.ndarray | None = None, depth: int = 2) -> tuple[LocalRule, list[LocalModule], Tensor, Tensor]:
    src, dst, true, train = communities()
    labels = true if labels is None else labels
    torch.manual_seed(0)
    sizes = [8, *[16] * depth]
    units: list[nn.Module] = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    rule = build(src, dst, labels, train, temperature=0.5)
    modules = rule.modules([*units, nn.Linear(16, CLASSES)], num_classes=CLASSES, input_shape=(8,), seed=3)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((60, 8))).float()
    return rule, modules, x, torch.from_numpy(labels)


def optimizers(modules: list[LocalModule], lr: float = 0.01) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(module.parameters(), lr=lr) for module in modules]


def digest(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


def test_only_training_vertices_are_joined_to_their_classes() -> None:
    src, dst, labels, train = communities()
    joined = set(zip(*(ends.tolist() for ends in with_class_vertices(src, dst, labels, train, CLASSES)), strict=True))
    added = joined - set(zip(src.tolist(), dst.tolist(), strict=True))
    members = np.flatnonzero(train).tolist()
    expected = {(v, 60 + v % 3) for v in members} | {(60 + v % 3, v) for v in members}
    assert added == expected and 0 < len(members) < 60


def test_labels_of_validation_and_test_vertices_change_no_bit_of_training() -> None:
    _, _, true, train = communities()
    other = np.where(train, true, (true + 1) % CLASSES)
    results = []
    for labels in (true, other):
        rule, modules, x, y = made(labels)
        steps = optimizers(modules)
        losses = [train_batch(modules, steps, rule, x, y, t, num_classes=CLASSES) for t in range(3)]
        results.append((losses, [digest(module) for module in modules]))
    assert results[0] == results[1] and not np.array_equal(true, other)


def test_propagation_is_the_symmetric_normalisation() -> None:
    src, dst, _, _ = communities()
    dense = np.eye(60)
    dense[dst, src] = 1
    scale = 1 / np.sqrt(dense.sum(1))
    twice = propagation(np.tile(src, 2), np.tile(dst, 2), 60)
    assert np.allclose(twice.to_dense().numpy(), scale[:, None] * dense * scale, atol=1e-15)


def test_a_layers_output_and_loss_are_those_worked_out_by_hand() -> None:
    rule, modules, x, y = made()
    module = modules[0].double()
    assert isinstance(module, SingleForward) and module.virtual is not None
    _, _, labels, train = communities()
    out = module(rule.start(x.double(), y, CLASSES, 0), y, 0)["h"].numpy()
    everything = np.concatenate([x.double().numpy(), module.virtual.numpy()])
    everything /= np.linalg.norm(everything, axis=1, keepdims=True)
    linear = module.unit[0]  # type: ignore[index]
    h = module.matrix.to_dense().numpy() @ everything @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    h = np.maximum(h, 0)
    assert np.allclose(out, h, atol=1e-12)
    logits = h[:60] @ h[60:].T / 0.5
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert module.learn() == pytest.approx(-logs[train, labels[train]].mean(), rel=1e-10)


def test_the_answer_is_the_sum_of_the_layers_softmaxes() -> None:
    rule, modules, x, _ = made()
    carry, total = {"h": x}, torch.zeros(60, CLASSES)
    for module in modules:
        h = module.infer(carry)["h"]
        total += (h[:60] @ h[60:].T / 0.5).softmax(1)
        carry = {"h": h}
    assert torch.allclose(predict(modules, rule, x, num_classes=CLASSES), total, atol=1e-6)


def test_a_finished_layer_stays_while_the_next_one_learns_and_other_classes_are_told() -> None:
    rule, modules, x, y = made()
    alone = copy.deepcopy(modules)
    validation = torch.arange(60) % 9 > 5
    first = fit(alone[:1], optimizers(alone[:1]), rule, x, y, validation, num_classes=CLASSES, max_epochs=40)
    begun = digest(modules[1])
    both = fit(modules, optimizers(modules), rule, x, y, validation, num_classes=CLASSES, max_epochs=40)
    assert digest(modules[0]) == digest(alone[0]) and both[0] == first[0]
    assert digest(modules[1]) != begun == digest(alone[1])
    answers = predict(modules, rule, x, num_classes=CLASSES).argmax(1)
    assert (answers == y)[torch.arange(60) % 9 > 2].float().mean() > 0.6


def test_a_layer_stops_when_validation_has_had_patience_and_keeps_its_best_weights() -> None:
    rule, modules, x, y = made(depth=1)
    training = torch.arange(60) % 9 < 3
    never_right = torch.where(training, y, CLASSES)
    start = copy.deepcopy(modules)
    told = fit(modules, optimizers(modules), rule, x, never_right, ~training, num_classes=CLASSES, every=3, patience=4)[
        0
    ]
    assert (told.accuracy, told.epoch, told.num_epochs) == (0.0, 3, 15)
    fit(start, optimizers(start), rule, x, never_right, ~training, num_classes=CLASSES, max_epochs=3, every=3)
    assert digest(modules[0]) == digest(start[0])


def test_labels_out_of_range_are_refused() -> None:
    src, dst, labels, train = communities()
    with pytest.raises(ValueError, match="from 0 to 1"):
        with_class_vertices(src, dst, labels, train, 2)
    with pytest.raises(ValueError, match="got the head alone"):
        build(src, dst, labels, train).modules([nn.Linear(8, 3)], num_classes=3, input_shape=(8,), seed=0)


@pytest.mark.slow
def test_cora_is_learned_from_its_public_split(data_folder: Path) -> None:
    graph = load_graph("cora", data_folder)
    src, dst = graph.edge_index
    rule = build(src, dst, graph.y, graph.train_mask)
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(a, 128), nn.ReLU()) for a in (1433, 128)]
    modules = rule.modules([*units, nn.Linear(128, 7)], num_classes=7, input_shape=(1433,), seed=0)
    options = {key: value for key, value in OPTIMIZER.items() if key != "name"}
    steps = [torch.optim.Adam(module.parameters(), **options) for module in modules]  # type: ignore[arg-type]
    x, y = torch.from_numpy(normalize_rows(graph.x).toarray()), torch.from_numpy(graph.y)
    fit(modules, steps, rule, x, y, torch.from_numpy(graph.val_mask), num_classes=7, max_epochs=100)
    right = predict(modules, rule, x, num_classes=7).argmax(1) == y
    assert right[torch.from_numpy(graph.test_mask)].float().mean() > 0.7
