"""Activations in 8 bits on a gang of processes: the bits of one process, also with replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import orchestrator
from tests.cluster.pipeline_runs import config, same

pytestmark = [pytest.mark.ray, pytest.mark.slow]
MEMORY = {"activations": "int8", "min_elements": 32}


@pytest.mark.parametrize("options", [{}, {"replicas": 2}, {"schedule": "zero-bubble"}, {"recompute": "always"}])
def test_processes_have_the_bits_of_one(options: dict[str, Any], tmp_path: Path) -> None:
    workers = 2 * options.get("replicas", 1)
    here, there = (
        orchestrator.run(config(tmp_path, cluster={"workers": count}, memory=MEMORY, **options), quiet=True)
        for count in (0, workers)
    )
    same(here, there)
