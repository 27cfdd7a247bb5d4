"""Weights that a run begins with, from files and from runs; and a run's model as a plain state_dict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orchestrator
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError, OrchestratorError, ResumeError
from orchestrator.preparing import prepare
from orchestrator.run import resume_run
from orchestrator.weights import export
from trainers import models

CALM = {"optimizer": {"lr": 1e-9}}
STRATEGIES: dict[str, dict[str, Any]] = {
    "federated": {"kind": "federated", "algorithm": {"name": "fedavg", "rounds": 1}, "client": CALM},
    "peers": {"kind": "peers", "algorithm": {"name": "gossip", "iterations": 1}, "client": CALM},
    "pipeline": {"kind": "pipeline", "steps": 1, "microbatches": 2, **CALM},
    "local-learning": {"kind": "local-learning", "steps": 1, **CALM},
    "zero": {"kind": "zero", "steps": 1, **CALM},
}
SLOW = ("peers", "pipeline", "local-learning")


def config(root: Path, kind: str = "zero", **model: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"name": "synthetic", "examples": 80, "test_examples": 20, "features": 6, "classes": 3}
    if kind in ("federated", "peers"):
        data["partition"] = {"kind": "iid", "clients": 4}
    return {
        "name": "weights",
        "data": data,
        "model": {"name": "mlp", "hidden": [8, 8], **model},
        "strategy": STRATEGIES[kind],
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 1},
        "storage": {"root": str(root)},
    }


def other() -> nn.Module:
    """The same model, drawn by another seed."""
    return models.build({"name": "mlp", "hidden": [8, 8]}, input_shape=(6,), num_classes=3, seed=99)


def problems(given: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        prepare(load_experiment(given))
    assert all(problem.path == "model.weights" for problem in error.value.problems)
    return [f"{problem.message} | {problem.hint}" for problem in error.value.problems]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in STRATEGIES]
)
def test_a_run_of_any_strategy_begins_with_the_weights_of_a_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(other().state_dict(), file)
    result = orchestrator.run(config(tmp_path, kind, weights=str(file)), quiet=True)
    weights = result.weights() if kind != "peers" else result.client(0)
    for name, tensor in other().state_dict().items():
        assert torch.allclose(weights[name], tensor, atol=1e-6), name
    manifest = (result.run_dir / "manifest.json").read_text()
    assert "w.pt" in manifest and "sha256" in manifest


def test_what_was_exported_begins_another_run_and_is_what_torch_loads(tmp_path: Path) -> None:
    first = orchestrator.run(config(tmp_path), quiet=True)
    assert export(first.run_dir, tmp_path / "w.pt") == 1
    exported = torch.load(tmp_path / "w.pt", weights_only=True)
    fresh = other()
    fresh.load_state_dict(exported)
    assert all(torch.equal(tensor, first.weights()[name]) for name, tensor in fresh.state_dict().items())
    checkpoint = first.run_dir / "checkpoints" / "step-000001"
    for source in (tmp_path / "w.pt", first.run_dir, checkpoint):
        prepared = prepare(load_experiment(config(tmp_path, weights=str(source))))
        assert all(torch.equal(tensor, exported[name]) for name, tensor in prepared.model.state_dict().items())
    with pytest.raises(ResumeError, match="no checkpoint of step 7"):
        export(first.run_dir, tmp_path / "w.pt", 7)
    with pytest.raises(ConfigError, match=r"\.pt, \.pth, \.safetensors"):
        export(first.run_dir, tmp_path / "w.bin")


def test_safetensors_files_leave_and_enter_where_that_library_is(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch")
    file = tmp_path / "w.safetensors"
    first = orchestrator.run(config(tmp_path), quiet=True)
    assert export(first.run_dir, file) == 1
    exported = files.load_file(file)
    assert exported.keys() == other().state_dict().keys()
    assert all(torch.equal(tensor, first.weights()[name]) for name, tensor in exported.items())
    prepared = prepare(load_experiment(config(tmp_path, weights=str(file))))
    assert all(torch.equal(tensor, exported[name]) for name, tensor in prepared.model.state_dict().items())
    file.write_bytes(file.read_bytes()[:-5])
    assert "cannot be read" in problems(config(tmp_path, weights=str(file)))[0]


def test_without_that_library_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    file = tmp_path / "w.safetensors"
    with pytest.raises(OrchestratorError, match="needs that library"):
        export(tmp_path / "a run", file)
    file.write_bytes(b"")
    assert problems(config(tmp_path, weights=str(file))) == [
        "reading and writing .safetensors needs that library | pip install safetensors"
    ]


def test_weights_for_ranks_that_hold_parts_are_kept_beside_a_model_without_memory(tmp_path: Path) -> None:
    torch.save(other().state_dict(), tmp_path / "w.pt")
    given = config(tmp_path, weights=str(tmp_path / "w.pt"))
    prepared = prepare(load_experiment({**given, "cluster": {"workers": 2}}))
    assert all(parameter.is_meta for parameter in prepared.model.parameters()) and prepared.begun is not None
    assert all(torch.equal(tensor, other().state_dict()[name]) for name, tensor in prepared.begun.tree.items())


def test_differences_are_told_by_name(tmp_path: Path) -> None:
    tensors = other().state_dict()
    names = list(tensors)
    file = tmp_path / "w.pt"

    def said(changed: Any) -> str:
        torch.save(changed, file)
        return "\n".join(problems(config(tmp_path, weights=str(file))))

    assert f"lacks {names[0]}" in said({name: tensors[name] for name in names[1:]})
    assert "has nose, which the model has not" in said({**tensors, "nose": torch.zeros(1)})
    shaped = said({**tensors, names[0]: torch.zeros(2, 2)})
    assert f"{names[0]} in" in shaped and "shape [2, 2], the model's is [8, 6]" in shaped
    assert "begin with 'module.'" in said({f"module.{name}": tensor for name, tensor in tensors.items()})
    assert "which is no tensor" in said({"epoch": 3})
    assert "holds a list" in said([1])
    torch.save({"state_dict": tensors, "epoch": 3}, file)  # as many trainers write them
    assert prepare(load_experiment(config(tmp_path, weights=str(file)))).begun is not None


def test_nothing_in_a_file_is_executed_and_what_is_none_is_told(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    assert "cannot be read" in problems(config(tmp_path, weights=str(tmp_path / "evil.pt")))[0]
    assert not (tmp_path / "pwned").exists()
    (tmp_path / "bad.pt").write_bytes(b"rubbish")
    assert "cannot be read" in problems(config(tmp_path, weights=str(tmp_path / "bad.pt")))[0]
    assert "no such file" in problems(config(tmp_path, weights="nowhere.pt"))[0]
    assert "neither a run directory" in problems(config(tmp_path, weights=str(tmp_path)))[0]
    (tmp_path / "w.txt").write_text("")
    assert "expected a file called" in problems(config(tmp_path, weights=str(tmp_path / "w.txt")))[0]


def test_weights_and_pretraining_are_one_or_the_other(tmp_path: Path) -> None:
    source = {"name": "synthetic", "examples": 80, "features": 6, "classes": 3}
    with pytest.raises(ConfigError, match=r"model\.weights: got 'w.pt', but model.pretrain"):
        load_experiment(config(tmp_path, weights="w.pt", pretrain={"data": source}))


def test_a_run_goes_on_without_its_file_from_a_checkpoint_and_not_with_another(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(other().state_dict(), file)
    gang, federated = (orchestrator.run(config(tmp_path, kind, weights=str(file)), quiet=True) for kind in
                       ("zero", "federated"))  # fmt: skip
    torch.save({name: tensor + 1 for name, tensor in other().state_dict().items()}, file)
    with pytest.raises(ResumeError, match="other weights than the run began with"):
        resume_run(federated.run_dir, overrides=["strategy.algorithm.rounds=2"], quiet=True)
    file.unlink()
    assert resume_run(gang.run_dir, overrides=["strategy.steps=2"], quiet=True).step == 2


class Tied(nn.Module):
    """Two names for one matrix, a buffer that is saved, one that is not, and counters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, width, bias=False), nn.Linear(6, width, bias=False)
        self.second.weight = self.first.weight
        self.norm, self.head = nn.BatchNorm1d(width), nn.Linear(width, 3)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.first(x) + self.scale * self.second(x)))
        return result


def tied(width: int = 4) -> nn.Module:
    return Tied(width)


@pytest.mark.parametrize("kind", ["zero", "federated"])
def test_tied_and_unsaved_tensors_leave_and_enter_as_torch_has_them(kind: str, tmp_path: Path) -> None:
    sys.modules.setdefault("tied_models_of_tests", sys.modules[__name__])
    given = config(tmp_path, kind)
    given["model"] = {"target": "tied_models_of_tests:tied"}
    first = orchestrator.run(given, quiet=True)
    export(first.run_dir, tmp_path / "w.pt")
    exported = torch.load(tmp_path / "w.pt", weights_only=True)
    assert exported.keys() == tied().state_dict().keys()
    assert torch.equal(exported["first.weight"], exported["second.weight"]) and "scale" not in exported
    tied().load_state_dict(exported)
    del exported["second.weight"]  # as safetensors leaves it out
    torch.save(exported, tmp_path / "w.pt")
    given["model"]["weights"] = str(tmp_path / "w.pt")
    prepared = prepare(load_experiment(given))
    own = prepared.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in exported.items() if tensor.is_floating_point())
