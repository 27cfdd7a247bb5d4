"""What may be wrong with a schedule: found before it runs, told in words, because a wrong schedule only hangs.

A *link* carries the messages of one kind (activations or gradients) from one rank to another. Its sender stops
when `in_flight` messages are sent but not yet taken; its receiver stops until what it needs is there. A schedule
that runs with one message in flight runs with any number: more room never makes anyone wait longer.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import pairwise

from strategies.pipeline.actions import Action, Job, Orders, downstream, job, placement_of, upstream
from strategies.pipeline.placement import Placement

Link = tuple[int, int, str]


def problems(
    schedule: Orders,
    num_stages: int,
    num_microbatches: int,
    num_chunks: int = 1,
    split_backward: bool = False,
    in_flight: int | None = 1,
) -> list[str]:
    """Return all that is wrong with a schedule, in words; nothing when it can be run.

    Checked are: every action once and on its rank; F before B before W of a micro-batch; that messages are taken in
    the order they are sent; ticks that rise and respect dependencies; no deadlock.

    Args:
        split_backward: whether weight gradients are actions of their own (W).
        in_flight: messages that a link holds, None for any number; 1 is the strictest.
    """
    if len(schedule) != num_stages:
        return [f"the schedule has {len(schedule)} ranks, expected {num_stages}"]
    found = _wrong_actions(schedule, num_microbatches, num_chunks, split_backward)
    if found:
        return found  # what follows would only say the same again
    found = [*_wrong_order(schedule), *_crossing_messages(schedule), *_wrong_ticks(schedule)]
    stuck = deadlock(schedule, in_flight)
    return found if stuck is None else [*found, stuck]


def deadlock(schedule: Orders, in_flight: int | None = 1) -> str | None:
    """Run a schedule with blocking messages; return who waits for whom when it stops, or None when all ends well.

    Args:
        in_flight: how many messages a link holds before its sender blocks; None for any number.
    """
    if in_flight is not None and in_flight < 1:
        raise ValueError(f"in_flight must be at least 1, or None for no limit, got {in_flight}")
    placement, num_stages = placement_of(schedule), len(schedule)
    last = placement.num_positions
    at = [0] * num_stages
    sending: list[Job | None] = [None] * num_stages
    sent: set[Job] = set()
    load: Counter[Link] = Counter()

    def step(rank: int) -> str | None:
        """Do what a rank can do next, or say whom it waits for."""
        if (ready := sending[rank]) is not None:
            link = _link(ready, placement)
            if in_flight is not None and load[link] >= in_flight:
                return f"rank {rank} waits for rank {link[1]} to take an earlier message, to send {ready}"
            load[link] += 1
            sent.add(ready)
            sending[rank] = None
            return None
        what = job(schedule[rank][at[rank]], placement)
        source = upstream(what, last)
        if source is not None and placement.stage(source.position) != rank:
            if source not in sent:
                return f"rank {rank} waits for {source} from rank {placement.stage(source.position)}, to run {what}"
            load[_link(source, placement)] -= 1
        target = downstream(what, last)
        if target is not None and placement.stage(target.position) != rank:
            sending[rank] = what
        at[rank] += 1
        return None

    while True:
        waits: list[str] = []
        moved = False
        for rank in range(num_stages):
            while at[rank] < len(schedule[rank]) or sending[rank] is not None:
                wait = step(rank)
                if wait is not None:
                    waits.append(wait)
                    break
                moved = True
        if not waits:
            return None
        if not moved:
            limit = "any number of messages" if in_flight is None else f"{in_flight} message(s)"
            return f"deadlock with {limit} in flight: " + "; ".join(waits)


def _link(sent: Job, placement: Placement) -> Link:
    target = downstream(sent, placement.num_positions)
    assert target is not None, "only jobs with a taker are sent"
    return placement.stage(sent.position), placement.stage(target.position), sent.kind


def _wrong_actions(schedule: Orders, num_microbatches: int, num_chunks: int, split_backward: bool) -> list[str]:
    found = []
    kinds = "FBW" if split_backward else "FB"
    for rank, actions in enumerate(schedule):
        seen: Counter[tuple[str, int, int]] = Counter((x.kind, x.chunk, x.microbatch) for x in actions)
        wanted = {(k, c, m) for k in kinds for c in range(num_chunks) for m in range(num_microbatches)}
        found += [f"rank {rank} lists an action of stage {x.stage}: {_name(x)}" for x in actions if x.stage != rank]
        for kind, chunk, m in sorted(wanted | set(seen)):
            times, name = seen[kind, chunk, m], f"{kind}{m} of chunk {chunk}"
            if (kind, chunk, m) not in wanted:
                found.append(
                    f"rank {rank} has {name}, which is none of kinds {kinds}, {num_microbatches} micro-batches and "
                    f"{num_chunks} chunks"
                )
            elif times != 1:
                found.append(f"rank {rank} has {name} {times} times, expected once")
    return found


def _wrong_order(schedule: Orders) -> list[str]:
    found = []
    for rank, actions in enumerate(schedule):
        place = {(x.kind, x.chunk, x.microbatch): index for index, x in enumerate(actions)}
        for (kind, chunk, m), index in place.items():
            earlier = {"B": "F", "W": "B"}.get(kind)
            if earlier is not None and place[earlier, chunk, m] > index:  # type: ignore[index]
                found.append(f"rank {rank} runs {kind}{m} of chunk {chunk} before its {earlier}{m}")
    return found


def _crossing_messages(schedule: Orders) -> list[str]:
    placement = placement_of(schedule)
    last = placement.num_positions
    sent: dict[Link, deque[Job]] = {}
    taken: dict[Link, deque[Job]] = {}
    for action in (action for actions in schedule for action in actions):
        what = job(action, placement)
        if downstream(what, last) is not None:
            sent.setdefault(_link(what, placement), deque()).append(what)
        if (source := upstream(what, last)) is not None:
            taken.setdefault(_link(source, placement), deque()).append(source)
    found = []
    for link, messages in sent.items():
        for out, into in zip(messages, taken[link], strict=True):
            if out != into and link[0] != link[1]:
                found.append(f"rank {link[1]} takes {into} from rank {link[0]} when the next one sent is {out}")
                break
    return found


def _wrong_ticks(schedule: Orders) -> list[str]:
    placement = placement_of(schedule)
    last = placement.num_positions
    tick = {job(action, placement): action.tick for actions in schedule for action in actions}
    found = []
    for actions in schedule:
        for before, after in pairwise(actions):
            if after.tick <= before.tick:
                found.append(f"rank {after.stage} lists {_name(after)} after {_name(before)}: ticks must rise")
        for action in actions:
            source = upstream(job(action, placement), last)
            if source is not None and tick[source] >= action.tick:
                found.append(f"rank {action.stage} has {_name(action)}, but {source} is at tick {tick[source]}")
    return found


def _name(action: Action) -> str:
    return f"{action.kind}{action.microbatch} of chunk {action.chunk} at tick {action.tick}"
