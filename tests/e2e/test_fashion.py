"""The example on real images reaches the accuracy that the documentation gives."""

from __future__ import annotations

from pathlib import Path

import pytest

import orchestrator
from orchestrator.rundir import RunDirectory
from orchestrator.trial_run import history

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_two_hundred_skewed_clients_learn_fashion_mnist_within_sixty_rounds(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    result = orchestrator.run("examples/fashion_fedavg.yaml", root=tmp_path, quiet=True)
    curve = history(RunDirectory.open(result.run_dir), "test/accuracy")
    assert len(curve) == 61
    assert max(value for _, value in curve) >= 0.85
    assert result.metrics["test/accuracy"] >= 0.84
