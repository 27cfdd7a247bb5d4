"""A pipeline's timeline as a file that Perfetto and chrome://tracing open.

Source: Trace Event Format, "Complete events" and "Metadata events", in its JSON object form. Times are microseconds
since the first action of the step began; what was measured and what was predicted are two processes, stages are
their threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.report.timeline import KINDS, Timeline, name

FILE = "timeline.trace.json"


def render(done: Timeline, paper: Timeline | None, run: str) -> str:
    """Return the trace of a measured timeline and, where there is one, of its prediction."""
    unit = "epoch" if done.item == "chunk" else "step"
    events = list(_process(1, f"measured, {unit} {done.step}", done))
    if paper is not None:
        events += _process(2, "predicted", paper)
    other = {"run": run, "step": done.step, "begun_s": done.begun_s}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}, allow_nan=False) + "\n"


def _process(pid: int, title: str, timeline: Timeline) -> Iterator[Mapping[str, Any]]:
    chunked = timeline.num_chunks > 1
    yield _metadata("process_name", pid, 0, name=title)
    yield _metadata("process_sort_index", pid, 0, sort_index=pid)
    for stage, spans in enumerate(timeline.stages):
        yield _metadata("thread_name", pid, stage, name=timeline.lane(stage))
        yield _metadata("thread_sort_index", pid, stage, sort_index=stage)
        for span in spans:
            yield {
                "name": name(span, chunked),
                "cat": KINDS[span.kind],
                "ph": "X",
                "ts": _microseconds(span.ready_s),
                "dur": _microseconds(span.end_s - span.ready_s),
                "pid": pid,
                "tid": stage,
                "args": {
                    timeline.item.replace("-", ""): span.microbatch,
                    **({} if timeline.item == "chunk" else {"chunk": span.chunk}),
                    "wait": _microseconds(span.ready_s - span.begin_s),
                },
            }


def _metadata(kind: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": args}


def _microseconds(seconds: float) -> float:
    return round(1e6 * seconds, 3)
