"""The federated benchmarks run, and the sides that they compare do the same work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]  # a benchmark starts each side anew


def output_of(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_plain_loop_makes_the_round_that_this_system_makes() -> None:
    sides = ("ours", "plain", "plain-tuned")
    said = output_of("federated_speed", "--work", "tiny", "--segments", "1", "--rounds", "5", "--sides", *sides)
    differences = re.findall(r"weight difference after one round (\S+)", said)
    assert len(differences) == 3
    assert max(map(float, differences)) < 1e-6
    correct = re.findall(r"correct of 1000: \[(\d+)\]", said)
    assert len(correct) == 3
    assert len(set(correct)) == 1


def test_seconds_and_memory_of_two_populations_are_measured() -> None:
    said = output_of("federated_scale", "--populations", "200", "1000", "--segments", "1", "--rounds", "4")
    table = said.split("clients     s/round")[1].splitlines()[1:]
    assert [line.split()[0] for line in table] == ["200", "1,000"]
    assert all(float(line.split()[1]) > 0 for line in table)
