"""A gang whose ranks are replaced one by one when they are lost, where what they do allows it (`cluster.band`).

lost      the rank begins again at the last whole state, in its own place, while the others go on or wait for it
held      ranks hold what they sent behind the last state that any rank may still have to begin with; they are told
          of a later one when no rank is on its way from an earlier one
again     what a rank does again it reports again; of steps that are known already nothing is heard twice
not so    where it cannot be replaced in time, or the run is about to end, all start again, as in any gang
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cluster.band import Band
from cluster.errors import RemoteFailure
from cluster.gang import Gang, Missing
from orchestrator.engines.base import RunState, StepReport
from orchestrator.engines.gang import GangEngine, PendingStep


class ReplacingEngine(GangEngine):
    """As `GangEngine`; `notify` is told `rank_restarted`, and `rank_recovered` when it is where the lost one was."""

    _whole: RunState
    _known: int

    def _attempt(self, gang: Gang, state: RunState) -> Iterator[StepReport]:
        assert isinstance(gang, Band)
        self._whole, self._known = state, state.step if state.step else -1
        self._on_their_way: dict[int, _Way] = {}
        for report in super()._attempt(gang, state):
            self._known = report.state.step
            if report.state.whole and report.state.step:
                self._whole = report.state
            if report.state.whole or self._known % self._experiment.evaluate_every == 0:
                self._keep(gang)
            yield report

    def _take(self, pending: dict[int, PendingStep], report: Any) -> None:
        gang = self._gang
        assert isinstance(gang, Band)
        if isinstance(report, Missing):
            self._replace(gang, report, pending)
        elif report.payload["kind"] == "caught_up":
            began = self._on_their_way.pop(report.rank, None)
            if began is not None:
                seconds = round(time.monotonic() - began.since_s, 1)
                fields = {"worker": f"rank {report.rank}", "seconds": seconds, "replayed": report.payload["replayed"]}
                self._notify("rank_recovered", fields)
                self._keep(gang)
        elif report.payload["kind"] == "asks" or report.payload["step"] > self._known:
            super()._take(pending, report)

    def _replace(self, gang: Band, lost: Missing, pending: Mapping[int, PendingStep]) -> None:
        if self._restarts == self._strategy.restarts or self._ends:
            raise RemoteFailure(lost.reason, lost.worker, lost.node, lost.rank, lost=True)
        self._restarts += 1
        self._on_their_way.pop(lost.rank, None)
        whole, known = self._kept()
        self._on_their_way[lost.rank] = _Way(whole, known, time.monotonic())
        fields = {"worker": lost.worker, "reason": lost.reason, "from_step": whole.step}
        self._notify("rank_restarted", {**fields, "restart": self._restarts, "of": self._strategy.restarts})
        reached = max([self._known, *(number for number, step in pending.items() if step.told)])
        gang.replace(lost.rank, {**self._from(gang, whole), "known": known, "reached": reached})

    def _keep(self, gang: Band) -> None:
        """Tell ranks from where on to hold what they sent."""
        whole, known = self._kept()
        gang.keep(whole.step, known)

    def _kept(self) -> tuple[RunState, int]:
        """Return the state that a lost rank begins with, and the last step whose evaluation it need not do again.

        A rank on its way may still want from this one what was sent behind the state that it began with itself.
        """
        ways = [_Way(self._whole, self._known, 0.0), *self._on_their_way.values()]
        return min((way.whole for way in ways), key=lambda state: state.step), min(way.known for way in ways)


class _Way(NamedTuple):
    """What a rank began with that is not yet as far as the lost one was, and since when."""

    whole: RunState
    known: int
    since_s: float
