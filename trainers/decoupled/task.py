"""What every rank of a local-learning gang is given, whichever program it runs: `program` or `recovering`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainers import loop, wire
from trainers.data.base import Dataset
from trainers.decoupled.settings import Settings
from trainers.decoupled.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run from a state on.

    Args:
        settings: of `settings.Settings`, as a mapping. origin_s: what time lines count from, as of `time.time`.
        start: the state to begin with, tree -> Arrow bytes. begin: batches done before.
        evaluate_every, checkpoint_every: in steps; both also after the last.
    """

    settings: Mapping[str, Any]
    dataset: Dataset
    origin_s: float
    start: Mapping[str, Any]
    begin: int
    evaluate_every: int
    checkpoint_every: int

    @cached_property
    def plain(self) -> Settings:
        """The settings as values."""
        return Settings(**self.settings)

    def restore(self, worker: Worker) -> None:
        """Bring a worker to the state that the run begins with."""
        worker.restore(wire.decode_trees(self.start))

    def plan(self, rank: int) -> loop.Plan:
        """Return when a rank does what: of several replicas of a worker the first tells, is drawn and saves."""
        number, replica = self.plain.places()[rank]
        return loop.Plan(
            self.begin,
            self.plain.steps,
            self.evaluate_every,
            self.checkpoint_every,
            speaks=replica == 0 and number == self.plain.num_workers - 1,
            drawn=None if replica else number,
            saves=None if replica else number,
            measures=replica == 0,
            asks=rank == 0,
        )
