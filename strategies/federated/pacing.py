"""When clients start and when the server acts: what tells one kind of federated round from another.

Three paces, each a value: synchronous rounds with a barrier, buffered rounds in which the server keeps clients in
flight, and anarchic ones in which clients come as they like. `strategies.federated.timeline` plays them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Synchronous(NamedTuple):
    """A cohort starts together, and the server waits for it.

    Args:
        cohort: participations the server acts on. starts: clients that start, at least as many; the late are
            discarded. Source: over-selection and deadline of Bonawitz et al. 2019, "Towards federated learning at
            scale: system design", section 2.2.
        deadline_s: after this long the server acts on those that arrived; None: it waits.
        min_clients: arrivals that the deadline waits for, and clients that have to be available before a round starts.
    """

    cohort: int
    starts: int
    deadline_s: float | None = None
    min_clients: int = 1


class Buffered(NamedTuple):
    """The server keeps clients in flight, and acts when a buffer is full.

    Args:
        buffer: arrivals the server acts on. concurrency: clients in flight.
        max_staleness: server steps after which an arrival is stale and does not count; None: no arrival is.

    Source: Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation" (FedBuff), Algorithm 1.
    """

    buffer: int
    concurrency: int
    max_staleness: int | None = None


class Anarchic(NamedTuple):
    """Clients take part when they like; the server acts when a buffer is full. A client may be in it twice.

    Args:
        buffer, max_staleness: as for `Buffered`.

    Source: Yang et al. 2022, "Anarchic federated learning", Algorithms 1 and 2 (AFA-CD, AFA-CS).
    """

    buffer: int
    max_staleness: int | None = None


Pace = Synchronous | Buffered | Anarchic
Kind = Literal["synchronous", "buffered", "anarchic"]


def pacing(
    section: Mapping[str, Any],
    *,
    num_clients: int,
    cohort: int,
    made_for: Kind = "synchronous",
    buffer: int | None = None,
) -> Pace:
    """Build the pace that an experiment file's section describes.

    Args:
        section: one of `orchestrator.config.behaviours.Pacing` as a plain dict.
        cohort: clients that take part in a synchronous round, and by default those in flight in a buffered one.
        made_for: what `kind: auto` stands for. buffer: the algorithm's own, where the section has none; else 10.

    Raises:
        ValueError: when the numbers cannot be met by the clients there are.
    """
    kind = section.get("kind", "auto")
    kind = made_for if kind == "auto" else kind
    if not 1 <= cohort <= num_clients:
        raise ValueError(f"a cohort of {cohort} cannot be drawn from {num_clients} clients")
    if kind == "synchronous":
        starts = min(num_clients, math.ceil(round(section.get("over_selection", 1.0) * cohort, 9)))
        least = section.get("min_clients", 1)
        if least > cohort:
            raise ValueError(f"min_clients is {least}, expected at most the cohort of {cohort}")
        return Synchronous(cohort, starts, section.get("deadline_s"), least)
    size = section.get("buffer") or buffer or min(10, num_clients)
    limit = section.get("max_staleness") if section.get("stale", "drop") == "drop" else None
    if kind == "buffered":
        concurrency = section.get("concurrency") or cohort
        if concurrency > num_clients:
            raise ValueError(f"a concurrency of {concurrency} is more than the {num_clients} clients")
        return Buffered(size, concurrency, limit)
    if kind == "anarchic":
        return Anarchic(size, limit)
    raise ValueError(f"no pacing is called {kind!r}")
