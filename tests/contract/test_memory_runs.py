"""`memory: {activations: int8}` in every kind of gang: near weights, the same bits for any cut, the plan, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.config import load_experiment
from orchestrator.config.schema import Experiment
from orchestrator.errors import ConfigError
from orchestrator.preparing import prepare
from orchestrator.stages import divide

INT8 = {"activations": "int8", "min_elements": 64}
KINDS: dict[str, dict[str, Any]] = {
    "pipeline": {
        "data": {"name": "digits", "limit": 200}, "model": {"name": "vit", "patch": 4, "depth": 2, "width": 24},
        "strategy": {"kind": "pipeline", "steps": 3, "batch_size": 16, "microbatches": 2, "stages": 2},
    },
    "graph-pipeline": {
        "data": {"name": "sbm", "vertices": 120}, "model": {"name": "resgcn", "layers": 4, "hidden": 16},
        "strategy": {"kind": "graph-pipeline", "epochs": 3, "stages": 2, "chunks": 2},
    },
    "local-learning": {
        "data": {"name": "digits", "limit": 200}, "model": {"name": "mlp", "hidden": [32, 32, 32]},
        "strategy": {"kind": "local-learning", "steps": 3, "batch_size": 32, "modules": 2},
    },
    "sharded": {
        "data": {"name": "digits", "limit": 200}, "model": {"name": "mlp", "hidden": [32, 32, 32]},
        "strategy": {"kind": "sharded", "steps": 3, "batch_size": 32, "placements": {"1.*": "S(0)"}},
    },
}  # fmt: skip
OTHER_CUT = {"pipeline": {"stages": 1}, "graph-pipeline": {"stages": 1, "chunks": 2}, "local-learning": {}}


def run(tmp_path: Path, kind: str, memory: Any, **changes: Any) -> orchestrator.RunResult:
    plain = {
        **KINDS[kind], "name": "memory", "seed": 3, "storage": {"root": str(tmp_path)}, "tracking": {"enabled": False},
        "cluster": {"workers": 0}, "evaluate": {"every": 3},
    }  # fmt: skip
    return orchestrator.run({**plain, "strategy": {**plain["strategy"], "memory": memory, **changes}}, quiet=True)


@pytest.mark.parametrize("kind", KINDS)
def test_training_begins_exactly_and_goes_on_nearly_as_without(kind: str, tmp_path: Path) -> None:
    exact, rounded = (run(tmp_path, kind, memory).weights() for memory in (None, INT8))
    assert rounded.keys() == exact.keys()
    off, whole = (
        torch.cat([tensor.flatten() for tensor in tensors])
        for tensors in ([rounded[name] - tensor for name, tensor in exact.items()], exact.values())
    )
    assert 0 < float(off.norm()) < 0.03 * float(whole.norm())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipeline", "graph-pipeline"])
def test_the_number_of_stages_moves_no_bit(kind: str, tmp_path: Path) -> None:
    two, one = (run(tmp_path, kind, INT8, **cut).weights() for cut in ({}, OTHER_CUT[kind]))
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


def test_the_plan_expects_a_quarter_of_the_activations() -> None:
    section = {
        "name": "p", "data": {"name": "digits"}, "model": {"name": "vit", "patch": 2, "depth": 4, "width": 48},
        "strategy": {"kind": "pipeline", "stages": 2, "batch_size": 64, "microbatches": 2, "partition": [3, 3]},
        "cluster": {"workers": 0},
    }  # fmt: skip
    held = []
    for memory in (None, INT8):
        experiment = Experiment.model_validate({**section, "strategy": {**section["strategy"], "memory": memory}})
        held.append(divide(prepare(experiment)).predicted.peak_bytes)
    assert all(3 < exact / rounded < 4.2 for exact, rounded in zip(*held, strict=True))


@pytest.mark.parametrize(
    ("memory", "path", "told"),
    [
        ("{activations: int4}", "strategy.memory.activations", "got 'int4', expected 'int8'"),
        (
            "{groups: head}",
            "strategy.memory.groups",
            "got 'head', expected a whole number above 0 or one of heads, channels",
        ),
        ("{layers: 'a('}", "strategy.memory.layers", "'a(' is none"),
        ("{layers: {}}", "strategy.memory.layers", ""),
        ("{layer: x}", "strategy.memory.layer", "unknown key 'layer'"),
        ("{rounding: up}", "strategy.memory.rounding", "got 'up', expected one of stochastic, nearest"),
    ],
)
def test_a_section_that_is_wrong_is_told_before_anything_runs(
    memory: str, path: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "exp.yaml"
    file.write_text(
        f"name: e\ndata: {{name: digits}}\nmodel: {{name: mlp}}\nstrategy: {{kind: pipeline, memory: {memory}}}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_experiment(file)
    assert any(problem.path.startswith(path) and told in problem.message for problem in refused.value.problems)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_that_finds_nothing_is_refused_with_names_that_there_are(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'blok', which finds no part of the model"):
        run(tmp_path, kind, {"layers": {"blok": "none"}})


def test_replicas_of_local_workers_are_refused_with_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each would remember other ranges"):
        run(tmp_path, "local-learning", INT8, replicas={0: 2})
