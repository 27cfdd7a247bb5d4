"""Recorded behaviour: when real devices were available and how fast they were, as arrays.

Reading files is `trainers.data.traces`. Client `i` of a run behaves as device `i mod n` of a trace of `n` devices, in
ascending order of their ids; with a period the trace starts again from time 0 whenever it has passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Trace(NamedTuple):
    """Intervals of availability, device by device.

    Args:
        devices: their ids, ascending. offsets: device `k` has intervals `offsets[k]` to `offsets[k + 1]`.
        start_s, end_s: the intervals, ascending and apart. speed: of each device; None when unknown.
    """

    devices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    speed: NDArray[np.float64] | None = None


class TraceError(ValueError):
    """A trace's row cannot be used.

    Args:
        row: the row. reason: what is wrong with it.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)
        self.row = row
        self.reason = reason

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"


def trace(client: Any, start_s: Any, end_s: Any, speed: Any = None) -> Trace:
    """Return a trace from columns in any order of rows. Intervals that touch or overlap become one.

    Args:
        client: the device of each row. start_s, end_s: when it is available. speed: the device's, alike in its rows.

    Raises:
        TraceError: for the first row that is no interval, or whose speed is not above 0 or unlike its device's others.
    """
    ids, start, end = np.asarray(client, np.int64), np.asarray(start_s, np.float64), np.asarray(end_s, np.float64)
    if len(ids) == 0:
        raise TraceError(0, "there is none; a trace has at least one interval")
    _refuse(~(np.isfinite(start) & (start >= 0)), lambda row: f"start_s is {start[row]}, expected at least 0")
    _refuse(~(np.isfinite(end) & (end > start)), lambda row: f"end_s is {end[row]}, expected above {start[row]}")
    order = np.lexsort((end, start, ids))
    devices, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    speeds = None
    if speed is not None:
        given = np.asarray(speed, np.float64)
        _refuse(~(np.isfinite(given) & (given > 0)), lambda row: f"speed is {given[row]}, expected above 0")
        speeds = given[first]
        _refuse(
            given != speeds[inverse],
            lambda row: f"speed is {given[row]}, but {speeds[inverse[row]]} in another row of its client",
        )
    ids, start, end = ids[order], start[order], end[order]
    # An interval begins a new one when it starts after all earlier ones of its device have ended.
    new = np.ones(len(ids), bool)
    bounds = np.append(np.searchsorted(ids, devices), len(ids))
    touching = np.flatnonzero((ids[1:] == ids[:-1]) & (start[1:] <= end[:-1])) + 1
    for device in np.unique(np.searchsorted(devices, ids[touching])):
        low, high = bounds[device], bounds[device + 1]
        new[low + 1 : high] = start[low + 1 : high] > np.maximum.accumulate(end[low:high])[:-1]
    kept = np.flatnonzero(new)
    offsets = np.searchsorted(ids[kept], devices)
    return Trace(devices, np.append(offsets, len(kept)), start[kept], np.maximum.reduceat(end, kept), speeds)


def traced_waits(table: Trace, *, period_s: float | None = None) -> Callable[[int, float], float]:
    """Return the availability that a trace recorded.

    Args:
        period_s: the trace begins again after this long; None: when it has ended, its devices never come back.

    Raises:
        ValueError: when an interval ends after the period.
    """
    if period_s is not None and table.end_s.max() > period_s:
        raise ValueError(f"the trace goes on until {table.end_s.max()} s, expected at most its period, {period_s} s")

    def waits_s(client: int, now_s: float) -> float:
        device = client % len(table.devices)
        low, high = int(table.offsets[device]), int(table.offsets[device + 1])
        turn = math.floor(now_s / period_s) if period_s is not None else 0
        shift = turn * (period_s or 0.0)
        index = low + int(np.searchsorted(table.end_s[low:high], now_s - shift, side="right"))
        while index < high and shift + float(table.end_s[index]) <= now_s:
            index += 1  # the sum may round to what the difference did not
        if index < high:
            return until(shift + float(table.start_s[index]), now_s)
        return until((turn + 1) * period_s + float(table.start_s[low]), now_s) if period_s is not None else math.inf

    return waits_s


def until(start_s: float, now_s: float) -> float:
    """Return a wait that really leads from `now_s` to `start_s` or past it, whatever the rounding; 0 when past."""
    if start_s <= now_s:
        return 0.0
    wait = start_s - now_s
    while now_s + wait < start_s:
        wait = math.nextafter(wait, math.inf)
    return wait


def _refuse(bad: NDArray[np.bool_], reason: Callable[[int], str]) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise TraceError(row, reason(row))
