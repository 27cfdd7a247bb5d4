"""Schedules by the name that an experiment file gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from strategies.pipeline.actions import Schedule
from strategies.pipeline.gpipe import gpipe
from strategies.pipeline.interleaved import interleaved
from strategies.pipeline.one_f_one_b import one_f_one_b
from strategies.pipeline.zero_bubble import zero_bubble

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zero-bubble": zero_bubble,
}
"""Name in an experiment file -> function of the numbers of stages and micro-batches (and chunks, if interleaved)."""


def schedule(name: str, num_stages: int, num_microbatches: int, num_chunks: int = 1) -> Schedule:
    """Return a schedule by name.

    Args:
        num_chunks: pieces of the model a rank holds; more than one needs `interleaved`, which needs more than one.

    Raises:
        ValueError: for an unknown name, naming the nearest valid one, or numbers that the schedule cannot have.
    """
    if name not in SCHEDULES:
        nearest = get_close_matches(name.lower().replace("_", "-"), SCHEDULES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown schedule {name!r}; the nearest is {nearest!r}, all are {', '.join(SCHEDULES)}")
    if name == "interleaved":
        return interleaved(num_stages, num_microbatches, num_chunks)
    if num_chunks != 1:
        raise ValueError(f"schedule {name!r} has 1 chunk a rank, got num_chunks={num_chunks}; for more use interleaved")
    return SCHEDULES[name](num_stages, num_microbatches)
