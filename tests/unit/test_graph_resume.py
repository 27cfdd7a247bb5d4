"""A graph pipeline's run goes on with another number of stages, or for longer, as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.errors import ResumeError


def config(root: Path, **strategy: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "data": {"name": "sbm", "vertices": 90, "classes": 3, "degree": 4, "features": 8},
        "model": {"name": "gcnii", "layers": 2, "hidden": 6},
        "strategy": {"kind": "graph-pipeline", "epochs": 2, "refresh": 1, **strategy},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        "storage": {"root": str(root)},
        "evaluate": {"every": 2},
    }


def test_a_run_that_goes_on_with_other_stages_ends_with_the_bits_of_the_whole_one(tmp_path: Path) -> None:
    whole = orchestrator.run(config(tmp_path, epochs=4), quiet=True)
    first = orchestrator.run(config(tmp_path), quiet=True)
    changes = ["strategy.epochs=4", "strategy.stages=1"]
    again = orchestrator.run(resume=first.run_dir, overrides=changes, quiet=True)
    assert (again.status, again.step) == ("FINISHED", 4)
    weights = whole.weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.weights().items())
    assert again.metrics["val/loss"] == whole.metrics["val/loss"]
    assert "chunks: 8" in (again.run_dir / "config.resolved.yaml").read_text()


def test_more_epochs_under_a_decaying_rate_are_refused(tmp_path: Path) -> None:
    first = orchestrator.run(config(tmp_path, learning_rate={"name": "cosine"}), quiet=True)
    with pytest.raises(ResumeError, match=r"strategy\.epochs would change the learning rate of epochs already done"):
        orchestrator.run(resume=first.run_dir, overrides=["strategy.epochs=3"], quiet=True)


def test_other_ways_are_refused(tmp_path: Path) -> None:
    first = orchestrator.run(config(tmp_path), quiet=True)
    with pytest.raises(ResumeError, match=r"strategy\.ways=2 would change what was already computed"):
        orchestrator.run(resume=first.run_dir, overrides=["strategy.ways=2"], quiet=True)
