"""What a page shows, read from one run directory: no live object, no server, nothing that is not on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import ResumeError
from orchestrator.rundir import RunDirectory

UNITS = ("step", "iteration", "epoch")
"""What steps are called that are no rounds."""

ROUTINE = {"round", "timeline", "metrics", "metrics_truncated", "checkpoint", "worker_started"}


class Series(NamedTuple):
    """One metric over the steps, in the order of the steps; a step logged twice keeps its last value."""

    step: list[int]
    wall_s: list[float]
    virtual_s: list[float]
    value: list[float]


class Facts(NamedTuple):
    """Everything known about one run.

    Args:
        rounds: who took part, by round. staleness: of each of them, where it was recorded.
        unit: what a step is called, `round` or one of `UNITS`. timeline: the last event of that kind, as recorded.
    """

    path: Path
    manifest: dict[str, Any]
    status: str
    config: str
    series: dict[str, Series]
    rounds: dict[int, list[int]]
    num_clients: int
    partition: dict[str, Any] | None
    events: list[dict[str, Any]]
    num_checkpoints: int
    busy_s: float
    unit: str = "round"
    timeline: dict[str, Any] | None = None
    num_timelines: int = 0
    staleness: Mapping[int, list[int]] = {}

    @property
    def serverless(self) -> bool:
        """Whether peers learn from each other, without a server."""
        return self.unit == "iteration"

    @property
    def member(self) -> str:
        """What those who learn are called."""
        return "peer" if self.serverless else "client"

    @property
    def strategy(self) -> Mapping[str, Any]:
        """The strategy section of the run's configuration; empty when there is none."""
        return _section(self.config, "strategy")

    @property
    def in_one_process(self) -> bool:
        """Whether the run had no workers."""
        return _section(self.config, "cluster").get("workers") == 0


def read(run: RunDirectory) -> Facts:
    """Return the facts of a run.

    Raises:
        ResumeError: when a file of the run is damaged.
    """
    manifest = run.manifest
    rounds: dict[int, list[int]] = {}
    staleness: dict[int, list[int]] = {}
    timelines: list[dict[str, Any]] = []
    notable: list[dict[str, Any]] = []
    num_checkpoints = 0
    times: list[tuple[float, str]] = []
    for event in run.events():
        times.append((float(event["time"]), event["kind"]))
        if event["kind"] == "round":
            step = int(event["step"])
            rounds[step] = [int(client) for client in event.get("clients", ())]
            staleness[step] = [int(late) for late in event.get("staleness", ())]
        elif event["kind"] == "metrics_truncated":
            rounds = {step: clients for step, clients in rounds.items() if step <= event["step"]}
            staleness = {step: late for step, late in staleness.items() if step <= event["step"]}
            timelines = [told for told in timelines if not _after(told.get("step"), event["step"])]
        elif event["kind"] == "timeline":
            timelines.append(event)
        num_checkpoints += event["kind"] == "checkpoint"
        if event["kind"] not in ROUTINE:
            notable.append(event)
    partition = _partition(run.path / "partition.json")
    highest = max((client for clients in rounds.values() for client in clients), default=-1) + 1
    num_clients = max(int(partition.get("num_clients", 0)) if partition else 0, highest)
    config = run.path / "config.resolved.yaml"
    return Facts(
        path=run.path,
        manifest=manifest,
        status=status(run, manifest),
        config=config.read_text(errors="replace") if config.exists() else "",
        series=series(run),
        rounds=dict(sorted(rounds.items())),
        num_clients=num_clients,
        partition=partition,
        events=notable,
        num_checkpoints=num_checkpoints,
        busy_s=busy_s(times),
        unit=str(manifest["unit"]) if manifest.get("unit") in UNITS else "round",
        timeline=timelines[-1] if timelines else None,
        num_timelines=len(timelines),
        staleness={step: late for step, late in sorted(staleness.items()) if late},
    )


def part(told: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """Return a mapping in a mapping; empty when there is none."""
    found = (told or {}).get(name)
    return found if isinstance(found, Mapping) else {}


def status(run: RunDirectory, manifest: Mapping[str, Any]) -> str:
    """Return the status; `INTERRUPTED?` for a run that says RUNNING while no process holds its lock."""
    stated = str(manifest.get("status", "UNKNOWN"))
    return "INTERRUPTED?" if stated == "RUNNING" and not run.locked() else stated


def busy_s(times: Iterable[tuple[float, str]]) -> float:
    """Return the seconds between events `(time, kind)`, without the gaps that end in `resumed`."""
    total, before = 0.0, None
    for time, kind in times:
        if before is not None and kind != "resumed":
            total += max(0.0, time - before)
        before = time
    return total


def series(run: RunDirectory) -> dict[str, Series]:
    """Return the metrics of a run by full name, such as `test/accuracy`."""
    table = run.metrics().to_pydict()
    found: dict[str, dict[int, tuple[float, float, float]]] = {}
    columns = (table[column] for column in ("step", "wall_s", "virtual_s", "scope", "name", "value"))
    for step, wall_s, virtual_s, scope, name, value in zip(*columns, strict=True):
        found.setdefault(f"{scope}/{name}", {})[step] = (wall_s, virtual_s, value)
    result = {}
    for name, values in found.items():
        steps = sorted(values)
        result[name] = Series(steps, *([values[step][part] for step in steps] for part in range(3)))
    return result


@lru_cache(maxsize=8)
def _section(config: str, name: str) -> Mapping[str, Any]:
    from orchestrator.config.document import parse

    told = parse(config, "config.resolved.yaml")[0].value
    section = told.get(name) if isinstance(told, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _after(step: Any, last: int) -> bool:
    return isinstance(step, int) and step > last


def _partition(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        partition = json.loads(path.read_bytes())
    except ValueError as error:
        raise ResumeError(
            f"{path} is damaged: {error}", f"the report does without it when you remove it: rm {path}"
        ) from error
    return partition if isinstance(partition, dict) else None


def finite(facts: Facts, metric: str) -> list[float]:
    """Return the values of a metric over steps, those that are numbers; empty where it was not recorded."""
    series = facts.series.get(metric)
    return list(filter(math.isfinite, series.value)) if series else []
