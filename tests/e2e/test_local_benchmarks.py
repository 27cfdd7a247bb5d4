"""The benchmarks of local learning run, go on where they were interrupted, and check what they say they check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def output_of(module: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_of_accuracies_goes_on_where_it_was_interrupted(data_folder: Path, tmp_path: Path) -> None:
    small = ["--examples", "640", "--epochs", "1", "--out", str(tmp_path / "found"), "--rows", "mlp", "auglocal-4"]
    first = output_of("local_accuracy", *small, "--seeds", "1")
    assert [cells(line)[0] for line in first[-2:]] == ["mlp", "auglocal-4"]
    runs = [json.loads(line) for line in (tmp_path / "found").read_text().splitlines()]
    assert [run["row"] for run in runs] == ["mlp", "auglocal-4"] and runs[1]["modules"] == 6
    assert all(5 < run["accuracy"] < 90 for run in runs)

    more = output_of("local_accuracy", *small, "--seeds", "2")
    assert [line.split(":")[0] for line in more if line[0] != "|"] == ["mlp, seed 1", "auglocal-4, seed 1"]
    assert "+-" in more[-1] and cells(more[-1])[3] == "2"
    assert (tmp_path / "found").read_text().splitlines()[:2] == [json.dumps(run) for run in runs]
    assert output_of("local_accuracy", *small, "--seeds", "2", "--table") == more[-4:]


def test_both_regimes_are_measured_with_slow_workers_on_the_virtual_clock(data_folder: Path) -> None:
    rows = [cells(line) for line in output_of("local_slow", "--only", "simulated", "--steps", "8", "--seeds", "1")[3:]]
    lossless = {row[1]: float(row[6]) for row in rows if row[0] == "lossless"}
    assert lossless == {"nobody": 8, "worker 0, 2x": 16, "worker 0, 4x": 32}
    slow = [row for row in rows if row[0] == "asynchronous"]
    assert [row[1] for row in slow] == ["nobody", *(f"worker {who}, {times}x" for times in (2, 4) for who in (0, 1))]
    assert len({row[5] for row in rows if row[0] == "lossless"}) == 1  # speed does not change the end


@pytest.mark.ray
def test_recovery_is_measured_and_its_bits_are_compared(tmp_path: Path) -> None:
    rows = [
        cells(line) for line in output_of("local_recovery", "--every", "5", "--steps", "40", "--kill", "13")
        if line.startswith("| 5 ")
    ]  # fmt: skip
    assert {row[1] for row in rows} == {"together", "alone"}
    for row in rows:
        assert row[-1] == "equal" and float(row[3]) <= float(row[4]) <= float(row[5])  # noticed, started, further
