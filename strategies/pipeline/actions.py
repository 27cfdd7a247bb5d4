"""What a pipeline schedule is made of, and the one law that all schedules obey.

A schedule is data: for each rank the list of actions it runs, in order. Everything else about pipelines is a function
of such lists: who waits for whom (`inputs`), whether they can run at all (`executed`), when (`simulate`), and how
they look (`timeline`). Devices, tensors and transports are left to the interpreter in `trainers`.

The model is cut into pieces, its *positions*; which of them a rank holds is said by the schedule's `placement`. With
one chunk a rank is a stage, as in GPipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from strategies.pipeline.placement import Placement

Kind = Literal["F", "B", "W"]


class Action(NamedTuple):
    """One thing a rank does: F forward, B backward, W weight gradients apart (then B is the input gradients only).

    Args:
        tick: its slot in a grid where every action takes one tick and each starts as soon as it can.
        stage: the rank that does it.
        chunk: which of the rank's pieces of the model it is done with.
    """

    tick: int
    stage: int
    kind: Kind
    microbatch: int
    chunk: int = 0


Orders = Sequence[Sequence[Action]]
"""For each rank its actions, in order."""


class Schedule(list[list[Action]]):
    """For each rank its actions, in order, and where the model's positions are.

    Args:
        placement: None goes round the ranks once for each chunk, as it does for orders that are plain lists.
    """

    def __init__(self, orders: Iterable[list[Action]] = (), placement: Placement | None = None) -> None:
        super().__init__(orders)
        self.placement = _looped(self) if placement is None else placement


class Job(NamedTuple):
    """What an action does, told apart from who does it and when: the node of the dependency graph."""

    kind: Kind
    position: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch} of position {self.position}"


def job(action: Action, placement: Placement) -> Job:
    """Return what an action does."""
    return Job(action.kind, placement.position(action.stage, action.chunk), action.microbatch)


def placement_of(schedule: Orders) -> Placement:
    """Return where the positions of a schedule are; those of plain lists go round the ranks."""
    return schedule.placement if isinstance(schedule, Schedule) else _looped(schedule)


def _looped(orders: Orders) -> Placement:
    chunks = 1 + max((action.chunk for actions in orders for action in actions), default=0)
    return Placement(len(orders), chunks)


def num_positions(schedule: Orders) -> int:
    """Return the number of pieces that the model is cut into."""
    return placement_of(schedule).num_positions


def upstream(what: Job, num_positions: int) -> Job | None:
    """Return the job of the neighbouring position whose output this one takes in, or None at the model's ends."""
    if what.kind == "F" and what.position > 0:
        return what._replace(position=what.position - 1)
    if what.kind == "B" and what.position < num_positions - 1:
        return what._replace(position=what.position + 1)
    return None


def downstream(what: Job, num_positions: int) -> Job | None:
    """Return the job of the neighbouring position that takes in the output of this one, or None."""
    if what.kind == "F" and what.position < num_positions - 1:
        return what._replace(position=what.position + 1)
    if what.kind == "B" and what.position > 0:
        return what._replace(position=what.position - 1)
    return None


def inputs(what: Job, num_positions: int) -> list[Job]:
    """Return all jobs that must be done before this one: its neighbour's, and F before B before W of its own."""
    taken = upstream(what, num_positions)
    found = [] if taken is None else [taken]
    if what.kind != "F":
        found.append(what._replace(kind="F" if what.kind == "B" else "B"))
    return found


def executed(schedule: Orders) -> Iterator[Action]:
    """Yield all actions as they can run: those of a rank in its order, none before its inputs.

    Raises:
        ValueError: when all ranks wait, naming what each waits for.
    """
    placement, done, at = placement_of(schedule), set[Job](), [0] * len(schedule)
    last = placement.num_positions
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule):
            while at[rank] < len(actions):
                what = job(actions[at[rank]], placement)
                if any(needed not in done for needed in inputs(what, last)):
                    break
                yield actions[at[rank]]
                done.add(what)
                at[rank] += 1
                moved = True
    waits = []
    for rank, actions in enumerate(schedule):
        if at[rank] < len(actions):
            what = job(actions[at[rank]], placement)
            waits.append(f"rank {rank} at {what} waits for {[str(x) for x in inputs(what, last) if x not in done]}")
    if waits:
        raise ValueError("this schedule cannot run: " + "; ".join(waits))


def on_grid(orders: Orders, placement: Placement | None = None) -> Schedule:
    """Give actions their ticks: every action takes one tick, and starts as soon as its rank and inputs allow.

    Args:
        placement: where the positions are; None as `placement_of` says.
    """
    placed = Schedule([list(actions) for actions in orders], placement or placement_of(orders))
    last, ended, made = placed.placement.num_positions, dict[Job, int](), [list[Action]() for _ in orders]
    for action in executed(placed):
        what, own = job(action, placed.placement), made[action.stage]
        free = own[-1].tick + 1 if own else 0
        tick = max([free, *(ended[needed] for needed in inputs(what, last))])
        ended[what] = tick + 1
        own.append(action._replace(tick=tick))
    return Schedule(made, placed.placement)


def check_sizes(num_stages: int, num_microbatches: int) -> None:
    """Raise ValueError unless there is at least one stage and one micro-batch."""
    if num_stages < 1 or num_microbatches < 1:
        raise ValueError(
            f"a pipeline needs at least 1 stage and 1 micro-batch, got num_stages={num_stages} and "
            f"num_microbatches={num_microbatches}"
        )
