"""The user's own DeepSpeed configuration beside the experiment file: taken as it is, or both places are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError, Problem

BASE: dict[str, Any] = {
    "name": "zero",
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "strategy": {"kind": "zero", "stage": 3, "ranks": 2, "batch_size": 32, "optimizer": {"name": "adamw", "lr": 1e-3}},
}


def problems(native: Any, *overrides: str) -> list[Problem]:
    config = {**BASE, "strategy": {**BASE["strategy"], "deepspeed": native}}
    with pytest.raises(ConfigError) as error:
        load_experiment(config, overrides)
    return error.value.problems


def test_what_agrees_or_is_deepspeeds_own_is_taken_as_it_is() -> None:
    native = {
        "train_batch_size": 32, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 0,
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000, "sub_group_size": 10},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": "auto"}},
        "bf16": {"enabled": False}, "wall_clock_breakdown": False,
    }  # fmt: skip
    config = {**BASE, "strategy": {**BASE["strategy"], "deepspeed": native}}
    assert load_experiment(config).experiment.strategy.deepspeed == native


@pytest.mark.parametrize(
    ("native", "path", "other"),
    [
        ({"train_batch_size": 64}, "train_batch_size", "strategy.batch_size is 32"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "strategy.batch_size is 32"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps", "strategy.accumulate is 1"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "strategy.clip_norm is null"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler", "strategy.learning_rate is constant"),
        ({"optimizer": {"type": "SGD"}}, "optimizer.type", "strategy.optimizer.name is 'adamw'"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}, "optimizer.params.lr",
            "strategy.optimizer.lr is 0.001",
        ),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage", "strategy.stage is 3"),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}}, "zero_optimization.offload_param.device",
            "strategy.offload is 'none'",
        ),
        ({"bf16": {"enabled": True}}, "bf16.enabled", "strategy.precision is null"),
        ({"fp16": {"enabled": True}}, "fp16.enabled", "strategy.precision is null"),
    ],
)  # fmt: skip
def test_a_contradiction_names_both_places(native: dict[str, Any], path: str, other: str, tmp_path: Path) -> None:
    (problem,) = problems(native)
    assert problem.path == f"strategy.deepspeed.{path}" and other in problem.message and problem.hint
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(native))
    (problem,) = problems(str(file))
    assert problem.path == "strategy.deepspeed" and "ds.json" in problem.message
    assert path in problem.message and other in problem.message


def test_a_file_that_is_none_or_holds_no_object_is_told(tmp_path: Path) -> None:
    assert "no such file" in problems("nowhere.json")[0].message
    for text in ("{", "[1]"):
        (tmp_path / "bad.json").write_text(text)
        assert "bad.json" in problems(str(tmp_path / "bad.json"))[0].message


@pytest.mark.parametrize(
    ("overrides", "path", "words"),
    [
        (("strategy.stage=0", "strategy.offload=cpu"), "strategy.offload", "stage 0"),
        (("strategy.stage=2", "strategy.offload=nvme", "strategy.nvme_folder=/x"), "strategy.offload", "stage 3 only"),
        (("strategy.offload=nvme",), "strategy.nvme_folder", "offload is nvme"),
        (("strategy.nvme_folder=/x",), "strategy.nvme_folder", "offload is none"),
        (("strategy.offload=cpu", "cluster.workers=0"), "strategy.offload", "no DeepSpeed"),
        (("strategy.batch_size=1",), "strategy.batch_size", "2 ranks"),
        (("cluster.workers=3",), "cluster.workers", "one process"),
        (("data.partition={kind: shards, clients: 4}",), "data.partition", "clients"),
        (("strategy.stage=auto", "cluster.address=head:6379"), "strategy.rank_memory", "auto"),
        (("strategy.stage=5",), "strategy.stage", "expected one of"),
        (("strategy.precision=bf16", "model.dtype=float64"), "strategy.precision", "float64"),
    ],
)
def test_what_cannot_be_combined_is_told_before_anything_starts(
    overrides: tuple[str, ...], path: str, words: str
) -> None:
    (problem,) = problems({}, *overrides)
    assert problem.path == path and words in problem.message
