"""Where runs are kept."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.schema import Experiment


def storage_root(experiment: Experiment) -> Path:
    """Return the folder for run directories.

    Inside a Ray job the working folder is a copy that is deleted after the job, so there a relative root is
    taken from the home folder.
    """
    from cluster.connect import inside_job

    root = Path(experiment.storage.root).expanduser()
    return root if root.is_absolute() or not inside_job() else Path.home() / root
