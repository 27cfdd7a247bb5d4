"""From a `cluster:` section to workers that are ready to be started, with failures in a user's words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import PlacementFailed, Unreachable
from cluster.executor import Executor, Notify
from cluster.inline import InlineExecutor
from orchestrator.config.schema import Cluster, Experiment, GangSection
from orchestrator.errors import PlacementError

if TYPE_CHECKING:
    from cluster.gang import Gang


@contextmanager
def open_executor(experiment: Experiment, notify: Notify) -> Iterator[Executor]:
    """Connect as the experiment says and yield an executor with every worker's place known, none started.

    Raises:
        PlacementError: when the cluster cannot be reached, or cannot hold the workers: need versus have.
    """
    section = experiment.cluster
    with placement_errors(section):
        if section.workers == 0:
            with InlineExecutor() as executor:
                yield executor
            return
        from cluster.connect import connect
        from cluster.pool import RayExecutor

        with (
            connect(section.address, notify=notify, runtime_env=code_to_send(experiment)) as connection,
            RayExecutor(
                num_workers=section.workers,
                resources=dict(section.resources_per_worker),
                strategy=section.placement,
                threads=section.threads_per_worker,
                start_timeout_s=section.start_timeout_s,
                stall_timeout_s=section.stall_timeout_s,
                notify=notify,
                direct_bytes=connection.direct_bytes,
            ) as executor,
        ):
            yield executor


@contextmanager
def open_gang(experiment: Experiment, notify: Notify, sys_path: tuple[str, ...]) -> Iterator[Gang | None]:
    """Connect as the experiment says and yield a gang of as many ranks as its strategy has; None without workers.

    Raises:
        PlacementError: when the cluster cannot be reached, or cannot hold the ranks: need versus have.
    """
    section, strategy = experiment.cluster, experiment.strategy
    assert isinstance(strategy, GangSection)
    if section.workers == 0:
        yield None
        return
    from cluster.band import Band
    from cluster.connect import connect
    from cluster.gang import Gang

    kind = Band if strategy.replaces else Gang
    with (
        placement_errors(section),
        connect(section.address, notify=notify, runtime_env=code_to_send(experiment)),
        kind(
            strategy.num_ranks,
            section.resources_per_worker,
            section.placement,
            backend="nccl" if section.device == "cuda" else "gloo",
            threads=section.threads_per_worker,
            start_timeout_s=section.start_timeout_s,
            stall_timeout_s=section.stall_timeout_s,
            notify=notify,
            paths=sys_path,
        ) as gang,
    ):
        yield gang


def code_to_send(experiment: Experiment) -> dict[str, Any]:
    """Return the runtime environment that brings a user's own modules to the nodes of a cluster that is joined.

    A local cluster's workers read the folder itself, and a job's cluster has the folder that was submitted.
    """
    from cluster.connect import inside_job

    sections = (experiment.data, experiment.model, getattr(experiment.strategy, "loss", None))
    own = any(getattr(section, "target", None) is not None for section in sections)
    if not own or experiment.cluster.address == "local" or inside_job():
        return {}
    return {"working_dir": ".", "excludes": not_sent(experiment)}


def not_sent(experiment: Experiment, folder: str = ".") -> list[str]:
    """Return what of a working folder stays here when it is sent to a cluster, as patterns of .gitignore."""
    patterns = ["/.git/", "/.venv/", "__pycache__/", "*.egg-info/"]
    here = Path(folder).resolve()
    runs = Path(os.path.normpath(here / Path(experiment.storage.root).expanduser()))
    if runs != here and runs.is_relative_to(here):
        patterns.append(f"/{runs.relative_to(here).as_posix()}/")
    return patterns


@contextmanager
def placement_errors(section: Cluster) -> Iterator[None]:
    """Turn what the cluster raises into PlacementErrors that say what to type."""
    try:
        yield
    except Unreachable as error:
        raise PlacementError(
            f"no Ray cluster answers at {error.address!r}: {error.reason}",
            "start one with `ray start --head`, mend cluster.address, or use cluster.address=local",
        ) from error
    except PlacementFailed as error:
        raise PlacementError(
            f"{error.reason}\n{error.table}".rstrip(),
            "ask for less: cluster.workers=N, cluster.resources_per_worker.CPU=0.5, or cluster.workers=0 for none",
        ) from error


def describe(fields: Mapping[str, Any]) -> str:
    """Return an event's fields as `key value` pairs for one line of progress; `worker 1` says its key itself."""
    return "  ".join(
        str(value) if str(value).startswith(f"{key} ") else f"{key} {value}" for key, value in fields.items()
    )
