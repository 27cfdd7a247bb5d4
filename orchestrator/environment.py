"""What a run ran with: versions, git state and machine, for the manifest and the tags of the tracking server.

Left out on purpose: host name, user, environment variables; a report may be published.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("ray", "torch", "numpy", "scipy", "pyarrow", "mlflow", "deepspeed", "pydantic", "scikit-learn")
_OURS = "orchestrator"


def environment(folder: Path | None = None) -> dict[str, Any]:
    """Return `{"versions": {...}, "git": {...}, "machine": {...}}`; `git` is empty outside a repository.

    Args:
        folder: whose repository; default the present folder.
    """
    return {"versions": versions(), "git": git(folder), "machine": machine()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in (_OURS, *_PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git(folder: Path | None = None) -> dict[str, Any]:
    """Return `{"commit": str, "dirty": bool}` of a folder's repository, or `{}` when there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status)}


def machine() -> dict[str, Any]:
    """Return the number of usable processors, the memory in bytes and the platform."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpus": usable, "memory_bytes": memory_bytes, "platform": platform.platform()}


def _git(folder: Path | None, *arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
