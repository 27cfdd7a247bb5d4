"""Zero bubble on a V (ZB-V): each rank holds a piece from the front of the model and one from its back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

from strategies.pipeline.actions import Action, Job, Kind, Schedule, check_sizes, inputs, job, on_grid
from strategies.pipeline.placement import Placement
from strategies.pipeline.validate import deadlock

Step = tuple[Kind, int]  # of which chunk; the micro-batch is the next one

FIRST_BACK: tuple[Sequence[Step], ...] = (
    (("B", 0), ("B", 1), ("F", 1), ("F", 0), ("W", 1), ("W", 0)),
    (("B", 0), ("F", 1), ("F", 0), ("B", 1), ("W", 1), ("W", 0)),
)
"""What a rank prefers, in the two ways that are tried: what shortens the way of those behind, weights when idle."""


def zero_bubble_v(num_stages: int, num_microbatches: int) -> Schedule:
    r"""Return ZB-V: 2K pieces folded over K ranks, so that a micro-batch turns at the last rank and ends on the first.

    F2: forward of micro-batch 2; B2: its input gradients; W2: its weight gradients; a dot: the stage waits.
    F2b: of the rank's second chunk.

        tick      0   1   2   3   4   5   6   7   8   9  10  11  12  13  14  15  16  17  18  19
        stage 0 F0a F1a F2a   .   . F0b B0b F1b B1b F2b B2b B0a W0b B1a W1b B2a W2b W0a W1a W2a
        stage 1   . F0a F1a F2a F0b   . F1b B0b F2b B1b B0a B2b B1a W0b B2a W1b W2b W0a W1a W2a
        stage 2   .   . F0a F0b F1a F1b F2a F2b B0b B0a B1b B1a B2b B2a W0b W1b W2b W0a W1a W2a

    Rank s holds the pieces s and 2K - 1 - s. The first rank begins both the forwards and, on its second piece, the
    backwards, so no rank waits for a gradient to come up through the others; the turn on the last rank sends nothing.
    Every rank holds at most min(2M, 2K) pairs of micro-batch and piece, each half as large as a stage's: what 1F1B
    holds on stage 0.

    Where F, B and W of each piece take a tick, it takes 6M + K - 1 ticks if M >= 2K - 1, and no schedule can be
    shorter, for the last rank starts at tick K - 1 and has 6M to do. With M of at most K it takes fewer ticks than the
    paper's rule does, and than ZB-H1 in pieces of half the size: 4K + 1 for one micro-batch.

    Source: Qi et al. 2023, Zero Bubble Pipeline Parallelism (arXiv:2401.10241), section 6 and figure 9; the order of
    the actions of each rank for M >= 2K - 1 is as in torch.distributed.pipelining's ZBVZeroBubble. Deviation: for
    smaller M the paper has no rule, and torch leaves the micro-batches that do not exist out of the schedule of
    2K - 1. Here that one competes with two lists in which each rank does at every tick the first thing that it can, in
    a fixed order of preference, and the shortest is taken; so it is never longer than torch's, which is never longer
    than ZB-H1.
    """
    check_sizes(num_stages, num_microbatches)
    placement = Placement(num_stages, 2, folded=True)
    found = [on_grid([_by_rule(num_stages, num_microbatches, s) for s in range(num_stages)], placement)]
    if num_microbatches < 2 * num_stages - 1:
        listed = (on_grid(_by_preference(placement, num_microbatches, steps), placement) for steps in FIRST_BACK)
        found += [made for made in listed if deadlock(made) is None]
    return min(found, key=_num_ticks)


def _num_ticks(made: Schedule) -> int:
    return 1 + max(actions[-1].tick for actions in made)


def _by_rule(num_stages: int, num_microbatches: int, stage: int) -> list[Action]:
    """Return the paper's order of one rank's actions, without the micro-batches that there are not."""
    most, taken = max(num_microbatches, 2 * num_stages - 1), Counter[Step]()
    order = []
    for step in _steps(num_stages, most, stage):
        kind, chunk = step
        order.append(Action(0, stage, kind, taken[step], chunk))
        taken[step] += 1
    return [action for action in order if action.microbatch < num_microbatches]


def _steps(K: int, M: int, s: int) -> Iterator[Step]:
    """Yield the steps of rank s for M >= 2K - 1 micro-batches."""
    front: tuple[Step, ...] = (("F", 0), ("B", 0), ("W", 0))
    back: tuple[Step, ...] = (("F", 1), ("B", 1), ("W", 1))
    warm_up = 2 * (K - s) - 1
    yield from repeat(front[0], warm_up)
    yield from chain.from_iterable(repeat((back[0], front[0]), s))
    yield from chain.from_iterable(repeat(back, K - s))
    for m in range(M - K):  # steady: the front's forward runs 2K - 1 - s ahead of its backward
        if m + warm_up + s < M:
            yield front[0]
        yield from front[1:]
        yield from back
    yield from chain.from_iterable(repeat((front[1], back[1]), s))
    yield from chain.from_iterable(repeat(front[1:], K - s))
    yield from chain(repeat(back[2], s), repeat(front[2], s))


def _by_preference(placement: Placement, num_microbatches: int, steps: Sequence[Step]) -> list[list[Action]]:
    """Return the order in which ranks act that do, tick by tick, the first of `steps` that they can.

    A rank begins a micro-batch only if it then has room for one that comes back, so that there is always a way on.
    """
    most_live = placement.num_positions
    orders: list[list[Action]] = [[] for _ in range(placement.num_stages)]
    taken = [Counter[Step]() for _ in orders]
    done: set[Job] = set()

    def possible(stage: int, step: Step) -> Action | None:
        (kind, chunk), counts = step, taken[stage]
        action = Action(0, stage, kind, counts[step], chunk)
        live = sum(counts["F", c] - counts["W", c] for c in range(placement.num_chunks))
        if action.microbatch == num_microbatches or (kind == "F" and live >= most_live - (chunk == 0)):
            return None
        what = job(action, placement)
        return action if all(needed in done for needed in inputs(what, placement.num_positions)) else None

    while len(done) < 3 * placement.num_positions * num_microbatches:
        found = (next(filter(None, (possible(s, step) for step in steps)), None) for s in range(placement.num_stages))
        now = [action for action in found if action is not None]
        for action in now:
            orders[action.stage].append(action)
            taken[action.stage][action.kind, action.chunk] += 1
        done.update(job(action, placement) for action in now)
    return orders
