"""What the stages of a pipeline did in a step, and were to do, read from their record and checked.

`measured` reads a `timeline` event, `predicted` reads partition.json; both give a `Timeline` that begins at zero.
Left out: drawing (`gantt.py`) and export (`trace.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_lowercase
from typing import Any, NamedTuple

KINDS = {"F": "forward", "R": "recomputation", "B": "backward", "W": "weight gradients", "U": "update"}


class Span(NamedTuple):
    """One action of a stage: it waits from `begin_s` to `ready_s` and computes from there to `end_s`."""

    kind: str
    chunk: int
    microbatch: int
    begin_s: float
    ready_s: float
    end_s: float


class Deviation(NamedTuple):
    """The action whose end differs most from its prediction; positive is later."""

    stage: int
    span: Span
    late_s: float


class Timeline(NamedTuple):
    """The spans of each stage, in seconds since the first of them began; of a graph pipeline, of each of its ranks.

    Args:
        names: of the stages, where they are not just numbered. item: what goes through the stages.
        step: whose it is, None on paper. begun_s: when the first span began, in seconds since the step did.
        known_bubble: on paper, as simulated; where a stage recomputes, spans alone do not tell.
    """

    stages: list[list[Span]]
    step: int | None = None
    begun_s: float = 0.0
    known_bubble: float | None = None
    names: tuple[str, ...] = ()
    item: str = "micro-batch"

    def lane(self, stage: int) -> str:
        """Return what a stage is called."""
        return self.names[stage] if self.names else f"stage {stage}"

    @property
    def num_spans(self) -> int:
        return sum(map(len, self.stages))

    @property
    def num_chunks(self) -> int:
        return 1 + max(span.chunk for spans in self.stages for span in spans)

    @property
    def kinds(self) -> list[str]:
        """The kinds of actions there are, in the order of `KINDS`."""
        present = {span.kind for spans in self.stages for span in spans}
        return [kind for kind in KINDS if kind in present]

    @property
    def length_s(self) -> float:
        """The time from the first begin to the last end."""
        return max(span.end_s for spans in self.stages for span in spans)

    @property
    def computing_s(self) -> float:
        """The time that all stages together compute."""
        return sum(span.end_s - span.ready_s for spans in self.stages for span in spans)

    @property
    def bubble(self) -> float:
        """The share of the stages' time in which they do not compute."""
        if self.known_bubble is not None:
            return self.known_bubble
        room = len(self.stages) * self.length_s
        return 1 - self.computing_s / room if room > 0 else 0.0

    @property
    def in_turns(self) -> bool:
        """Whether hardly ever two stages compute at the same time."""
        both, until = 0.0, -math.inf
        for ready_s, end_s in sorted((span.ready_s, span.end_s) for spans in self.stages for span in spans):
            both += max(0.0, min(until, end_s) - ready_s)
            until = max(until, end_s)
        return len(self.stages) > 1 and both <= 0.01 * self.computing_s


def measured(event: Mapping[str, Any], ways: int | None = None) -> Timeline:
    """Return what a `timeline` event tells.

    Args:
        ways: of a graph pipeline, whose ranks are `ways * stage + way`; None of others.

    Raises:
        ValueError: when it tells no timeline, with what is wrong with it.
    """
    step = event.get("step")
    if not isinstance(step, int):
        raise ValueError(f"its step is {step!r}")
    found = _timeline(event.get("stages"))._replace(step=step)
    if ways is None:
        return found
    return found._replace(names=tuple(_rank_names(len(found.stages), ways)), item="chunk")


def predicted(partition: Mapping[str, Any], times: int = 1) -> Timeline:
    """Return the prediction of partition.json, put end to end as often as a step has batches.

    Raises:
        ValueError: when there is none that can be read, with what is wrong with it.
    """
    once = _timeline(partition.get("predicted"))
    length_s, bubble = once.length_s, partition.get("predicted_bubble")
    known = float(bubble) if isinstance(bubble, int | float) and 0 <= bubble <= 1 else None
    stages = [[_moved(span, index * length_s) for index in range(times) for span in spans] for spans in once.stages]
    return once._replace(stages=stages, known_bubble=known)


def num_batches(timeline: Timeline) -> int:
    """Return how many batches a step has: how often the first stage did the first micro-batch's forward."""
    return max(1, sum(span[:3] == ("F", 0, 0) for span in timeline.stages[0]))


def deviation(done: Timeline, paper: Timeline) -> Deviation | None:
    """Return the action whose end is furthest from its prediction, or None when they have no action in common."""
    expected = {key: span.end_s for key, span in _keyed(paper)}
    common = [Deviation(key[0], span, span.end_s - expected[key]) for key, span in _keyed(done) if key in expected]
    return max(common, key=lambda found: abs(found.late_s), default=None)


def name(span: Span, chunked: bool) -> str:
    """Return `F3`, or `F3b` for a stage's second chunk."""
    return f"{span.kind}{place(span, chunked)}"


def place(span: Span, chunked: bool) -> str:
    """Return the micro-batch's number, with the chunk's letter when stages have several."""
    return f"{span.microbatch}{ascii_lowercase[span.chunk % 26]}" if chunked else str(span.microbatch)


def _rank_names(num_ranks: int, ways: int) -> Iterator[str]:
    for rank in range(num_ranks):
        stage, way = divmod(rank, ways)
        if ways == 1:
            yield f"stage {stage}"
        else:
            yield f"stage {stage}, way {way}" if num_ranks > ways else f"way {way}"


def _keyed(timeline: Timeline) -> Iterator[tuple[tuple[int, str, int, int, int], Span]]:
    """Yield each span with what it does: with several batches in a step, the same action comes several times."""
    for stage, spans in enumerate(timeline.stages):
        seen: Counter[tuple[str, int, int]] = Counter()
        for span in spans:
            what = (span.kind, span.chunk, span.microbatch)
            yield (stage, *what, seen[what]), span
            seen[what] += 1


def _timeline(raw: Any) -> Timeline:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
        raise ValueError("it has no stages")
    stages = []
    for stage, spans in enumerate(raw):
        if not isinstance(spans, Sequence) or isinstance(spans, str):
            raise ValueError(f"stage {stage} is no list of spans")
        stages.append([_span(span, f"span {index} of stage {stage}") for index, span in enumerate(spans)])
    if not any(stages):
        raise ValueError("no stage has a span")
    begun_s = min(span.begin_s for spans in stages for span in spans)
    moved = [sorted((_moved(span, -begun_s) for span in spans), key=lambda span: span.ready_s) for spans in stages]
    return Timeline(moved, begun_s=begun_s)


def _span(raw: Any, where: str) -> Span:
    try:
        kind, chunk, microbatch, *times = raw
        begin_s, ready_s, end_s = map(float, times)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where} is not kind, chunk, micro-batch and three times") from error
    if not isinstance(kind, str) or kind not in KINDS or not _counts(chunk) or not _counts(microbatch):
        raise ValueError(f"{where} is not of a kind F, R, B or W with a chunk and a micro-batch")
    if not (all(map(math.isfinite, (begin_s, ready_s, end_s))) and begin_s <= ready_s <= end_s):
        raise ValueError(f"the times of {where} are not finite and in order")
    return Span(kind, chunk, microbatch, begin_s, ready_s, end_s)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _moved(span: Span, by_s: float) -> Span:
    return span._replace(begin_s=span.begin_s + by_s, ready_s=span.ready_s + by_s, end_s=span.end_s + by_s)
