"""Losses that a change must not move unless it means to.

A change that is meant is recorded with `python tests/contract/test_golden.py`, and its commit says why.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from trainers import wire

GOLDEN = Path(__file__).parents[1] / "golden" / "fedavg_digits.json"
NAMES = ("train/loss", "test/loss", "test/accuracy")
FOUR_ROUNDS: dict[str, Any] = {
    "name": "golden",
    "seed": 11,
    "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 20, "alpha": 0.5}},
    "model": {"name": "mlp", "hidden": [17], "dropout": 0.1, "dtype": "float64"},
    "strategy": {
        "algorithm": {"name": "fedavg", "rounds": 4, "cohort": 7},
        "client": {"epochs": 2, "batch_size": 9, "clip_norm": 2.0, "optimizer": {"name": "adamw", "lr": 0.01}},
    },
    "cluster": {"workers": 0},
    "tracking": {"enabled": False},
}


def losses(root: Path) -> tuple[dict[str, list[float]], str]:
    """The run's figures by name, and a fingerprint of its final weights."""
    result = orchestrator.run(FOUR_ROUNDS, root=root, quiet=True)
    rows = result.history().to_pylist()
    found = {name: [row["value"] for row in rows if f"{row['scope']}/{row['name']}" == name] for name in NAMES}
    return found, hashlib.sha256(wire.encode(result.weights())).hexdigest()


def test_losses_are_those_on_record(tmp_path: Path) -> None:
    found, _ = losses(tmp_path)
    golden = json.loads(GOLDEN.read_text())
    assert found.keys() == golden.keys()
    for name, values in golden.items():
        # Another processor rounds otherwise in the last bits, which four rounds in float64 do not make visible here.
        assert found[name] == pytest.approx(values, rel=1e-9), name


def test_the_same_run_has_the_same_bits(tmp_path: Path) -> None:
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(losses(Path(folder))[0], indent=1) + "\n")
