"""What every rank of a gang runs: its work, step by step, with reports to the driver.

    every step         one rank, the speaker, reports what the step came to
    evaluations        those who measure report what they found; ranks that are drawn report their time line
    checkpoints        ranks that hold a part of the state report it, as Arrow bytes; or write it to storage while
                       they go on, and report the file when it is there
    a wish to stop     comes as the answer to a report, and reaches every rank with the next step's sums, or with
                       the batch that the first rank sends on

The driver is told; it decides nothing between steps. Ranks meet where their work makes them, and nowhere else: what a
rank reports of a step may come long before another's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

from torch import Tensor

from trainers import wire

Spans = Sequence[tuple[str, int, int, float, float, float]]


def since(began_s: float, spans: Spans) -> Spans:
    """Return spans in seconds since a moment of their clock."""
    return [
        (kind, chunk, microbatch, begin - began_s, ready - began_s, end - began_s)
        for kind, chunk, microbatch, begin, ready, end in spans
    ]


class Context(Protocol):
    """What a gang gives each rank."""

    rank: int
    world_size: int
    device: str

    def report(self, payload: Any) -> str:
        """Send something to the driver; return its latest word."""
        ...


class Outcome(NamedTuple):
    """What a step came to: figures by metric name, and whether it is the last, which is the same on every rank."""

    values: Mapping[str, float]
    stop: bool


class Work(Protocol):
    """One rank's part of the training, as the loop sees it."""

    def step(self, number: int, stop: bool) -> Outcome:
        """Train step `number`, from 1; `stop` is this rank's wish to stop, soon."""
        ...

    def evaluate(self, number: int) -> Mapping[str, float]:
        """Measure the model after step `number`; figures by metric name."""
        ...

    @property
    def ends(self) -> bool:
        """Whether what was measured ends the training; the same on every rank."""
        ...

    def export(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return this rank's part of the state, tree by tree."""
        ...

    def spans_since(self, began_s: float) -> Spans:
        """Return what the rank did in the last step or steps, in seconds since `began_s` or a moment all agree on."""
        ...


class File(Protocol):
    """A file with a part of a state: a name in its folder, a size and a checksum."""

    def _asdict(self) -> Mapping[str, Any]: ...


class Written(Protocol):
    """A part of the state after a step that is there, whole."""

    @property
    def step(self) -> int: ...
    @property
    def file(self) -> File: ...


class Saver(Protocol):
    """What writes a rank's part of the state in the background: `trainers.zero.saving.Saving`."""

    def begin(self, step: int) -> Sequence[Written]:
        """Copy the state and begin to write it; return what was written before."""
        ...

    def done(self) -> Sequence[Written]:
        """Return what was written since the last call, without waiting."""
        ...

    def wait(self) -> Sequence[Written]:
        """Return the same, with what is under way."""
        ...


class Plan(NamedTuple):
    """When a rank does what.

    Args:
        begin, steps: the first step is `begin + 1`, the last `steps`.
        evaluate_every, checkpoint_every: in steps; both also after the last.
        speaks: whether this rank tells what steps came to.
        drawn: its number among those whose time line is drawn; None for none.
        saves: its number among those that hold a part of the state; None for none.
        measures: whether it tells what evaluations found; None: when it speaks.
        asks: whether its wish to stop is the driver's; None: when it speaks.
    """

    begin: int
    steps: int
    evaluate_every: int
    checkpoint_every: int
    speaks: bool
    drawn: int | None
    saves: int | None
    measures: bool | None = None
    asks: bool | None = None


class When(TypedDict):
    """What the driver says of a rank's `Plan`: arguments of every gang's program."""

    begin: int
    evaluate_every: int
    checkpoint_every: int


def train(context: Context, work: Work, plan: Plan, saver: Saver | None = None) -> None:
    """Train from step `plan.begin + 1` to the last, or until the driver says `stop`.

    Args:
        saver: writes this rank's parts of states in the background, where it does; else they are reported.
    """
    word = ""
    asks = plan.speaks if plan.asks is None else plan.asks
    if plan.begin == 0:
        _evaluate(context, work, 0, plan)
    for step in range(plan.begin + 1, plan.steps + 1):
        if work.ends:
            break
        began = time.perf_counter()
        values, stop = work.step(step, stop=asks and word == "stop")
        seconds = time.perf_counter() - began
        ends = step == plan.steps or stop
        if plan.speaks:
            told = {"kind": "step", "step": step, "values": {**values, "time/step_s": seconds}, "ends": ends}
            word = context.report(told) or word
        elif asks:
            word = context.report({"kind": "asks", "step": step}) or word
        if ends or step % plan.evaluate_every == 0:
            _evaluate(context, work, step, plan)
            ends = ends or work.ends
            if plan.drawn is not None:
                spans = work.spans_since(began)
                context.report({"kind": "spans", "step": step, "part": plan.drawn, "spans": spans})
        if saver is not None:
            _tell(context, plan, saver.done())
        due = (ends or step % plan.checkpoint_every == 0) and plan.saves is not None
        if due and saver is not None:
            _tell(context, plan, saver.begin(step))
        elif due:
            trees = {tree: wire.encode(tensors) for tree, tensors in work.export().items() if tensors}
            context.report({"kind": "state", "step": step, "part": plan.saves, "trees": trees})
        if ends:
            break
    if saver is not None:
        _tell(context, plan, saver.wait())


def _tell(context: Context, plan: Plan, written: Sequence[Written]) -> None:
    for one in written:
        context.report({"kind": "state", "step": one.step, "part": plan.saves, "file": dict(one.file._asdict())})


def _evaluate(context: Context, work: Work, step: int, plan: Plan) -> None:
    began = time.perf_counter()
    values = work.evaluate(step)
    if plan.speaks:
        values = {**values, "time/evaluate_s": time.perf_counter() - began}
    if plan.speaks if plan.measures is None else plan.measures:
        context.report({"kind": "evaluation", "step": step, "values": dict(values), "ends": step > 0 and work.ends})
