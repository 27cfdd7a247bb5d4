"""How long a schedule takes, how much of it is bubble, and what it holds in memory: arithmetic, no clock.

Each rank runs its list in order; an action starts when its rank is free and its input has arrived. Transfers overlap
compute: a message leaves when its action ends, and the messages of one direction between two ranks go one after
another. Left out: launch overheads, contention for memory or network between links, the optimizer step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import NamedTuple

from strategies.pipeline.actions import Action, Job, Orders, downstream, executed, job, placement_of, upstream
from strategies.pipeline.placement import Placement

Time = float | Fraction


class Costs(NamedTuple):
    """What the positions of a model cost, for one micro-batch; ints and Fractions stay exact.

    Args:
        backward_s: the backward, or, where `weight_s` is given, its part for the input gradients.
        weight_s: the backward's part for the weight gradients. A schedule that does not split runs both parts in B,
            so the same costs serve all schedules.
        transfer_s: from each position to the next, and its gradient back; empty is free.
        recompute_s: forward again before B, 0 where activations are kept; empty recomputes nowhere.
        not_recomputed: micro-batches whose activations are kept nevertheless (GPipe's "except last").
        early_recompute: recomputation starts while the rank waits for the gradient, instead of after its arrival.
        activation_bytes: everything that backward needs; where backward is split, held until W.
        gradient_bytes: what B puts aside for W besides, the gradients of the outputs of layers with weights.
        boundary_bytes: the position's input, all that is kept of a micro-batch until it is recomputed.

    Shapes: each `[num_positions]`, `transfer_s [num_positions - 1]`.
    """

    forward_s: Sequence[Time]
    backward_s: Sequence[Time]
    weight_s: Sequence[Time] = ()
    transfer_s: Sequence[Time] = ()
    recompute_s: Sequence[Time] = ()
    not_recomputed: Collection[int] = ()
    early_recompute: bool = True
    activation_bytes: Sequence[float] = ()
    boundary_bytes: Sequence[float] = ()
    gradient_bytes: Sequence[float] = ()


class Span(NamedTuple):
    """An action with the time it took."""

    start_s: Time
    end_s: Time
    action: Action


class Simulation(NamedTuple):
    """A schedule run on paper.

    Args:
        bubble: share of the ranks' time in which they wait; recomputation counts as work. A Fraction where costs are
            exact.
        spans: of each rank, in order; a B begins after its recomputation.
        recomputed: the recomputations, each with the B that it serves.
        peak_live: the most (micro-batch, chunk) pairs of a rank between their forward and their last backward action.
        peak_bytes: the most bytes of activations, kept inputs and gradients put aside that a rank holds.
    """

    makespan_s: Time
    bubble: Time
    spans: list[list[Span]]
    recomputed: list[list[Span]]
    peak_live: list[int]
    peak_bytes: list[float]


def uniform(num_positions: int, forward_s: Time = 1, backward_s: Time = 1, weight_s: Time | None = None) -> Costs:
    """Return the costs of a model all of whose positions cost the same."""
    weight = () if weight_s is None else [weight_s] * num_positions
    return Costs([forward_s] * num_positions, [backward_s] * num_positions, weight)


def simulate(schedule: Orders, costs: Costs) -> Simulation:
    """Run a schedule with given costs.

    Raises:
        ValueError: when the costs are not those of this schedule's positions, or the schedule cannot run.
    """
    placement, num_stages = placement_of(schedule), len(schedule)
    last = placement.num_positions
    split = any(action.kind == "W" for actions in schedule for action in actions)
    check(costs, last, split)
    spans: list[list[Span]] = [[] for _ in schedule]
    recomputed: list[list[Span]] = [[] for _ in schedule]
    free: list[Time] = [0] * num_stages
    link_free: dict[tuple[int, int], Time] = {}
    arrived: dict[Job, Time] = {}  # by the job whose output it is
    for action in executed(schedule):
        rank, what = action.stage, job(action, placement)
        source, target = upstream(what, last), downstream(what, last)
        start: Time = free[rank]
        arrival = start if source is None else max(start, arrived[source])
        if again := recompute_s(costs, what):
            begin = start if costs.early_recompute else arrival
            recomputed[rank].append(Span(begin, begin + again, action))
            arrival = max(begin + again, arrival)
        end = arrival + _duration(costs, what, split)
        spans[rank].append(Span(arrival, end, action))
        free[rank] = end
        if target is not None:
            link = (rank, placement.stage(target.position))
            arrived[what] = end
            if link[0] != link[1] and costs.transfer_s:
                leaves = max(end, link_free.get(link, 0))
                arrived[what] = link_free[link] = leaves + costs.transfer_s[min(what.position, target.position)]
    makespan = max(free)
    busy: Time = sum(span.end_s - span.start_s for rows in (*spans, *recomputed) for span in rows)
    room = num_stages * makespan
    exact = isinstance(room, int | Fraction) and isinstance(busy, int | Fraction)
    bubble = 0 if not room else Fraction(room - busy) / Fraction(room) if exact else (room - busy) / room
    live, held = zip(*(_peaks(actions, costs, placement, split) for actions in schedule), strict=True)
    return Simulation(makespan, bubble, spans, recomputed, list(live), list(held))


def recompute_s(costs: Costs, what: Job) -> Time:
    """Return how long the recomputation before a job takes, 0 when there is none."""
    if what.kind != "B" or not costs.recompute_s or what.microbatch in costs.not_recomputed:
        return 0
    return costs.recompute_s[what.position]


def _duration(costs: Costs, what: Job, split: bool) -> Time:
    if what.kind == "F":
        return costs.forward_s[what.position]
    if what.kind == "W":
        return costs.weight_s[what.position]
    whole = not split and len(costs.weight_s) > 0
    return costs.backward_s[what.position] + (costs.weight_s[what.position] if whole else 0)


def _peaks(actions: Sequence[Action], costs: Costs, placement: Placement, split: bool) -> tuple[int, float]:
    # a rank does one thing after another, so what it holds depends on its order alone
    live = most_live = 0
    held: float = 0
    most_held: float = 0
    for action in actions:
        what = job(action, placement)
        whole = costs.activation_bytes[what.position] if costs.activation_bytes else 0
        entry = costs.boundary_bytes[what.position] if costs.boundary_bytes else 0
        aside = costs.gradient_bytes[what.position] if split and costs.gradient_bytes else 0
        again = recompute_s(costs, what._replace(kind="B")) > 0
        if action.kind == "F":
            live += 1
            held += entry if again else whole
        elif action.kind == "B" and again:
            held += whole - entry
        if action.kind == "B":
            held += aside
        most_live, most_held = max(most_live, live), max(most_held, held)
        if action.kind == ("W" if split else "B"):
            live -= 1
            held -= whole + aside
    return most_live, most_held


def check(costs: Costs, positions: int, split: bool) -> None:
    """Raise ValueError unless these are costs of so many positions, with `weight_s` where backward is split."""
    wanted = dict.fromkeys(("forward_s", "backward_s", "weight_s", "recompute_s"), positions)
    wanted |= dict.fromkeys(("activation_bytes", "boundary_bytes", "gradient_bytes"), positions) | {
        "transfer_s": positions - 1
    }
    for name, number in wanted.items():
        values = getattr(costs, name)
        if len(values) != number and (name in ("forward_s", "backward_s") or len(values) > 0):
            raise ValueError(f"{name} needs {number} values for a model of {positions} positions, got {len(values)}")
        if wrong := [value for value in values if not value >= 0]:
            raise ValueError(f"{name} must be at least 0, got {wrong[0]}")
    if split and not costs.weight_s:
        raise ValueError("this schedule has weight gradients apart (W): give weight_s, and in backward_s only the rest")
