"""ZeRO as a run without workers: what it leaves, how it goes on, and what of the file is settled first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError, ResumeError
from orchestrator.life import Trial
from orchestrator.planning import plan
from orchestrator.preparing import prepare
from orchestrator.report.page import render
from orchestrator.report.reading import read
from orchestrator.report.run_page import page
from orchestrator.run import resume_run
from orchestrator.rundir import RunDirectory
from orchestrator.summary import summary
from orchestrator.vectorising import settle
from orchestrator.zero_sizes import sizes


def config(root: Path, workers: int = 0, **strategy: Any) -> dict[str, Any]:
    return {
        "name": "zero",
        "seed": 5,
        "data": {"name": "synthetic", "examples": 60, "test_examples": 20, "features": 6, "classes": 3},
        "model": {"name": "mlp", "hidden": [16, 16]},
        "strategy": {
            "kind": "zero", "ranks": 2, "steps": 6, "batch_size": 10, "optimizer": {"name": "adamw", "lr": 0.01},
            **strategy,
        },
        "cluster": {"workers": workers},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 2},
        "evaluate": {"every": 3},
        "storage": {"root": str(root)},
    }  # fmt: skip


def test_validate_tells_the_stage_the_ranks_and_the_data(tmp_path: Path) -> None:
    told = summary(prepare(load_experiment(config(tmp_path, stage=2))))
    assert told.startswith("zero: zero stage 2 of 2 ranks, synthetic-blobs with 60 examples, ")


def test_a_run_leaves_its_model_its_stage_and_a_page(tmp_path: Path) -> None:
    result = orchestrator.run(config(tmp_path), quiet=True)
    assert (result.status, result.step, result.unit) == ("FINISHED", 6, "step")
    assert "stage: 0" in (result.run_dir / "config.resolved.yaml").read_text()
    told = json.loads((result.run_dir / "partition.json").read_text())
    assert told["kind"] == "zero" and told["stage"] == 0 and set(told["expected"]) == {"0", "1", "2", "3"}
    assert told["num_parameters"] == sum(tensor.numel() for tensor in result.weights().values())
    drawn = render(page(read(RunDirectory.open(result.run_dir))))
    assert "What ranks hold" in drawn and "stage 3" in drawn and "rank 1" in drawn


def test_a_run_that_stopped_goes_on_to_the_same_bits_with_other_ranks_only_named(tmp_path: Path) -> None:
    whole = orchestrator.run(config(tmp_path), quiet=True)
    trial = Trial(tmp_path / "cut", 0, {}, on_step=lambda report, directory: report.state.step == 3)
    cut = orchestrator.run(config(tmp_path), quiet=True, trial=trial)
    assert (cut.status, cut.step) == ("STOPPED", 3)
    longer = resume_run(cut.run_dir, overrides=["strategy.stage=2", "strategy.rank_memory=10"], quiet=True)
    assert all(torch.equal(longer.weights()[name], tensor) for name, tensor in whole.weights().items())
    other = resume_run(cut.run_dir, overrides=["strategy.steps=8", "strategy.ranks=3"], quiet=True)
    assert other.step == 8  # three shares of each batch: the same sums in another order
    with pytest.raises(ResumeError, match="batch_size"):
        resume_run(cut.run_dir, overrides=["strategy.batch_size=5"], quiet=True)


def test_activations_in_8_bits_are_planned_and_their_ranges_go_on_with_a_resumed_run(tmp_path: Path) -> None:
    memory = {"memory": {"min_elements": 16, "groups": 2}}
    shown = [line for _, section in plan(config(tmp_path, **memory)).sections() for line in section]
    assert any(line.startswith("activations kept") and line.endswith("as they are") for line in shown)
    whole = orchestrator.run(config(tmp_path, **memory), quiet=True)
    trial = Trial(tmp_path / "cut", 0, {}, on_step=lambda report, directory: report.state.step == 3)
    cut = orchestrator.run(config(tmp_path, **memory), quiet=True, trial=trial)
    longer = resume_run(cut.run_dir, quiet=True)
    assert all(torch.equal(longer.weights()[name], tensor) for name, tensor in whole.weights().items())
    exact = orchestrator.run(config(tmp_path), quiet=True).weights()
    assert any(not torch.equal(exact[name], tensor) for name, tensor in whole.weights().items())
    unfound = config(tmp_path, memory={"layers": {"attention": "int8"}})
    for checks in (plan, lambda given: settle(prepare(load_experiment(given)))):
        with pytest.raises(ConfigError, match=r"strategy\.memory\.layers: got 'attention', which finds no part"):
            checks(unfound)


def test_lamb_clipped_and_with_noise_makes_the_steps_that_a_pipeline_makes(tmp_path: Path) -> None:
    same = {
        "optimizer": {"name": "lamb", "lr": 0.02, "kwargs": {"exclude": "bias"}}, "clip_norm": 0.4, "clip_value": 0.05,
        "gradient_noise": {"eta": 0.01, "gamma": 0.55},
    }  # fmt: skip
    zero = orchestrator.run(config(tmp_path, **same), quiet=True).weights()
    piped = config(tmp_path)
    kept = {key: value for key, value in piped["strategy"].items() if key != "ranks"}
    piped["strategy"] = {**kept, **same, "kind": "pipeline", "stages": 1, "replicas": 2, "microbatches": 1}
    for name, tensor in orchestrator.run(piped, quiet=True).weights().items():
        torch.testing.assert_close(zero[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_driver_builds_no_model_that_ranks_will_hold_in_parts(tmp_path: Path) -> None:
    wide = {"name": "mlp", "hidden": [100_000, 100_000]}  # 40 GB
    loaded = load_experiment({**config(tmp_path, workers=2, stage=3, rank_memory=10**12), "model": wide})
    prepared = prepare(loaded)
    assert all(parameter.is_meta for parameter in prepared.model.parameters())
    planned = plan(loaded)
    lines = [line for _, section in planned.sections() for line in section]
    assert planned.num_parameters > 10**10 and any("<- this run" in line for line in lines)
    assert planned.problems and "would need" in planned.problems[0]  # the machine that this runs on
    with pytest.raises(ConfigError, match="memory"):
        prepare(load_experiment({**config(tmp_path), "model": wide}))  # in one process, it would


def test_auto_is_the_smallest_stage_that_fits_and_is_written_out(tmp_path: Path) -> None:
    given = {**config(tmp_path, workers=2, stage=3), "model": {"name": "mlp", "hidden": [200] * 8}}
    prepared = prepare(load_experiment(given))
    totals = [sizes(prepared).held(prepared.experiment.strategy, stage).total for stage in range(4)]
    assert totals == sorted(totals, reverse=True)
    for stage, total in enumerate(totals):
        given["strategy"] |= {"stage": "auto", "rank_memory": total}
        settled, line = settle(prepare(load_experiment(given)))
        assert settled.experiment.strategy.stage == stage
        assert line.startswith(f"stage          {stage}: ") and "strategy.rank_memory" in line
        shown = [line for _, section in plan(given).sections() for line in section]
        assert any(line.startswith("the smallest stage that fits") and line.endswith(f": {stage}") for line in shown)
        assert [line.split()[0] for line in shown if line.endswith("<- this run")] == [str(stage)]


def test_a_model_that_fits_at_no_stage_is_told_with_what_it_needs(tmp_path: Path) -> None:
    given = config(tmp_path, workers=2, rank_memory=100)
    with pytest.raises(ConfigError, match=r"strategy\.rank_memory: a rank would hold .* at stage 3"):
        settle(prepare(load_experiment(given)))
    assert plan(given).exit_code == 3


def test_deepspeeds_own_file_is_read_once_and_kept_in_the_resolved_file(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"wall_clock_breakdown": false, "zero_optimization": {"sub_group_size": 9}}')
    result = orchestrator.run(config(tmp_path, deepspeed=str(tmp_path / "ds.json")), quiet=True)
    (tmp_path / "ds.json").unlink()
    kept = load_experiment(result.run_dir / "config.resolved.yaml").experiment.strategy.deepspeed
    assert kept == {"wall_clock_breakdown": False, "zero_optimization": {"sub_group_size": 9}}


def test_a_batch_larger_than_the_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.batch_size: got 64, expected at most the 60"):
        prepare(load_experiment(config(tmp_path, batch_size=64)))


def test_a_search_goes_over_stages_and_rates(tmp_path: Path) -> None:
    space = {"strategy.stage": {"choice": [1, 3]}, "strategy.optimizer.lr": {"loguniform": [1e-3, 1e-1]}}
    load_experiment({**config(tmp_path), "search": {"trials": 2, "space": space}})
    space["strategy.stage"] = {"choice": [1, 4]}
    with pytest.raises(ConfigError, match=r"strategy\.stage"):
        load_experiment({**config(tmp_path), "search": {"trials": 2, "space": space}})
