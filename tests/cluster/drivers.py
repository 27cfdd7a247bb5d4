"""A run in a process of its own, so that a test can end it as it likes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator.rundir import RunDirectory, find_runs

ROOT = Path(__file__).parents[2]


def start_driver(root: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "exp.json"
    path.write_text(json.dumps(settings))
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "run", str(path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_step(root: Path, step: int, process: subprocess.Popen[str], limit_s: float = 120) -> RunDirectory:
    """Wait until the run under `root` has recorded a step, and return its directory."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        for directory in find_runs(root):
            if directory.manifest["step"] >= step:
                return directory
        if process.poll() is not None:
            raise AssertionError(f"the driver ended early:\n{process.communicate()[0]}")
        time.sleep(0.02)
    raise AssertionError(f"no run under {root} reached step {step} in {limit_s} s")
