"""A band: a gang whose ranks are in no common group, so that one of them can be lost and started again alone.

Ranks are actors of one placement group, without Ray Train, and find each other through the hub (`band_rank.Line`). When
one is gone, `run` yields a `Missing`, and the caller replaces it or leaves the iteration, which ends all. Whatever else
goes wrong is as in a gang.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cluster.band_hub import BandHub
from cluster.errors import RemoteFailure
from cluster.gang import Gang, _references
from cluster.gang_hub import Hub
from cluster.gang_plan import Event, Member


class Band(Gang):
    """As `Gang`; `backend` is of no use, since ranks join no group."""

    _starting: dict[int, float]

    def replace(self, rank: int, settings: Mapping[str, Any]) -> None:
        """Start a rank again that is missing, in its own place, with other settings.

        `run` raises a RemoteFailure when its program has not begun within the gang's `start_timeout_s`.
        """
        import ray

        self._starting[rank] = time.monotonic() + self._start_timeout_s
        shared = ray.put({name: _references(value) for name, value in settings.items()})
        self._ask("replace", rank, [shared])

    def keep(self, whole: int, known: int) -> None:
        """Tell ranks that nobody will begin before step `whole` any more, and of which steps all is known."""
        self._hub.keep.remote(self._number, whole, known)

    def _launch(self, program: str, settings: Mapping[str, Any]) -> None:
        self._starting = {}
        super()._launch(program, settings)

    def _take(self, wait_s: float) -> list[Event]:
        events = super()._take(wait_s)
        for event in events:
            if event.kind == "began":
                self._starting.pop(event.rank, None)
            elif event.kind == "replaced":
                member: Member = event.value
                self._members[member.rank] = member
                fields = {"worker": f"rank {member.rank}", "node": member.node, "pid": member.pid}
                self._notify("worker_replaced", fields)
        for rank, deadline in self._starting.items():
            if time.monotonic() > deadline:
                reason = f"was not there again within {self._start_timeout_s:g} s"
                raise RemoteFailure(reason, f"rank {rank}", "", rank, lost=True)
        return events

    def _hub_class(self) -> type[Hub]:
        return BandHub
