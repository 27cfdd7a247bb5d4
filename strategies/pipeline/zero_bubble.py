"""Zero bubble (ZB-H1): weight gradients wait for the gaps, because nobody waits for them."""

from __future__ import annotations

from strategies.pipeline.actions import Action, Job, Schedule, check_sizes, job, on_grid, upstream
from strategies.pipeline.one_f_one_b import one_f_one_b
from strategies.pipeline.simulate import Costs, Time, check, simulate, uniform

NEVER: Time = float("inf")


def zero_bubble(num_stages: int, num_microbatches: int, costs: Costs | None = None) -> Schedule:
    r"""Return ZB-H1: 1F1B with each backward split, B for the input gradients and W, later, for the weight gradients.

    F2: forward of micro-batch 2; B2: its input gradients; W2: its weight gradients; a dot: the stage waits.

        tick     0  1  2  3  4  5  6  7  8  9 10 11 12 13
        stage 0 F0 F1 F2  .  . B0 W0 F3 B1 W1 B2 W2 B3 W3
        stage 1  . F0 F1  . B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
        stage 2  .  . F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3

    Forwards and input gradients keep 1F1B's order. A stage does W where it would otherwise wait at least as long as W
    takes, when it holds min(M, K) micro-batches, and at the end. Activations are held until W: at most min(M, K)
    micro-batches on every stage, which is what 1F1B holds on stage 0. With F = B = W and M >= K it takes
    3M + K - 1 ticks: a third of the bubble of 1F1B, whose backward (B and W in one) takes two.

    Args:
        costs: of each stage; used are `forward_s`, `backward_s` (input gradients), `weight_s` and `transfer_s`. None is
            one tick for each of F, B and W.

    Raises:
        ValueError: when costs are not those of `num_stages` stages with `weight_s`.

    Source: Qi et al. 2023, Zero Bubble Pipeline Parallelism (arXiv:2401.10241), section 2.1. Deviation: the paper draws
    the schedule by hand for equal costs and delays W by a fixed number of micro-batches; here W is placed greedily,
    in the order of simulated time, so that any costs will do; where greed errs and doing each W at once is faster, W
    is done at once, so that with the given costs it is never slower than 1F1B.
    """
    check_sizes(num_stages, num_microbatches)
    used = uniform(num_stages, 1, 1, 1) if costs is None else costs
    check(used, num_stages, split=True)
    pairs, most_live = one_f_one_b(num_stages, num_microbatches), min(num_stages, num_microbatches)
    placement = pairs.placement
    orders: list[list[Action]] = [[] for _ in range(num_stages)]
    done = [{"F": 0, "B": 0, "W": 0} for _ in range(num_stages)]
    clock: list[Time] = [0] * num_stages
    arrived: dict[Job, Time] = {}

    def choice(stage: int) -> tuple[Time, bool, Action]:
        """What this stage does next and from when, in the order in which decisions are to be made."""
        counts = done[stage]
        weigh = Action(0, stage, "W", counts["W"])
        at = counts["F"] + counts["B"]
        action, start = weigh, NEVER
        if at < len(pairs[stage]):
            action = pairs[stage][at]
            source = upstream(job(action, placement), num_stages)
            if action.kind == "B" or counts["F"] - counts["W"] < most_live:
                start = max(clock[stage], 0 if source is None else arrived.get(source, NEVER))
        if counts["W"] < counts["B"] and start >= clock[stage] + used.weight_s[stage]:
            return clock[stage], True, weigh
        return start, False, action

    for _ in range(3 * num_stages * num_microbatches):
        start, _, action = min(choice(s) for s in range(num_stages) if len(orders[s]) < 3 * num_microbatches)
        stage = action.stage
        clock[stage] = start + {"F": used.forward_s, "B": used.backward_s, "W": used.weight_s}[action.kind][stage]
        towards = stage if action.kind == "F" else stage - 1
        late = used.transfer_s[towards] if used.transfer_s and 0 <= towards < num_stages - 1 else 0
        arrived[job(action, placement)] = clock[stage] + late
        done[stage][action.kind] += 1
        orders[stage].append(action)
    if costs is None:
        return on_grid(orders)
    at_once = [
        [step for action in row for step in ([action] if action.kind == "F" else [action, action._replace(kind="W")])]
        for row in pairs
    ]
    return min((on_grid(orders), on_grid(at_once)), key=lambda made: simulate(made, costs).makespan_s)
