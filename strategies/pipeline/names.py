"""Schedules by the name that an experiment file gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from strategies.pipeline.actions import Schedule
from strategies.pipeline.gpipe import gpipe
from strategies.pipeline.interleaved import interleaved
from strategies.pipeline.one_f_one_b import one_f_one_b
from strategies.pipeline.placement import Placement
from strategies.pipeline.zero_bubble import zero_bubble
from strategies.pipeline.zero_bubble_v import zero_bubble_v

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zero-bubble": zero_bubble,
    "zero-bubble-v": zero_bubble_v,
}
"""Name in an experiment file -> function of the numbers of stages and micro-batches (and chunks, if interleaved)."""


_SPLIT = ("zero-bubble", "zero-bubble-v")


def splits_backward(name: str) -> bool:
    """Return whether a schedule has weight gradients as actions of their own."""
    return name in _SPLIT


def chunks_of(name: str, num_chunks: int) -> int:
    """Return the pieces of the model that a rank holds under a schedule, of which an interleaved one takes so many."""
    return num_chunks if name == "interleaved" else 2 if name == "zero-bubble-v" else 1


def placement(name: str, num_stages: int, num_chunks: int = 1) -> Placement:
    """Return where a schedule of `num_chunks` pieces a rank has the positions of the model."""
    return Placement(num_stages, num_chunks, folded=name == "zero-bubble-v")


def schedule(name: str, num_stages: int, num_microbatches: int, num_chunks: int = 1) -> Schedule:
    """Return a schedule by name.

    Args:
        num_chunks: pieces of the model a rank holds: at least 2 for `interleaved`, 2 for `zero-bubble-v`, else 1.

    Raises:
        ValueError: for an unknown name, naming the nearest valid one, or numbers that the schedule cannot have.
    """
    if name not in SCHEDULES:
        nearest = get_close_matches(name.lower().replace("_", "-"), SCHEDULES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown schedule {name!r}; the nearest is {nearest!r}, all are {', '.join(SCHEDULES)}")
    if name == "interleaved":
        return interleaved(num_stages, num_microbatches, num_chunks)
    if name == "zero-bubble-v" and num_chunks != 2:
        raise ValueError(f"schedule {name!r} has 2 chunks a rank, got num_chunks={num_chunks}")
    if num_chunks != chunks_of(name, num_chunks):
        raise ValueError(f"schedule {name!r} has 1 chunk a rank, got num_chunks={num_chunks}; for more use interleaved")
    return SCHEDULES[name](num_stages, num_microbatches)
