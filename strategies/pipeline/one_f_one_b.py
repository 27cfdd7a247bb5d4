"""PipeDream-flush, called 1F1B: a backward as soon as there is one, so that few activations are alive."""

from __future__ import annotations

from strategies.pipeline.actions import Action, Schedule, check_sizes, on_grid


def one_f_one_b(num_stages: int, num_microbatches: int) -> Schedule:
    r"""Return the 1F1B schedule: a warm-up of K - s forwards on stage s, then one backward and one forward by turns.

    F2: forward of micro-batch 2; B2: its backward; a dot: the stage waits.

        tick     0  1  2  3  4  5  6  7  8  9 10 11
        stage 0 F0 F1 F2  .  . B0 F3 B1  . B2  . B3
        stage 1  . F0 F1  . B0 F2 B1 F3 B2  . B3  .
        stage 2  .  . F0 B0 F1 B1 F2 B2 F3 B3  .  .

    It is as long as GPipe's when all forwards take the same time and all backwards too, but stage s holds
    min(M, K - s) micro-batches instead of M. Fewer micro-batches than stages are allowed.

    Source: PipeDream-Flush, of Narayanan et al. 2020 (arXiv:2006.09503); drawn so in Narayanan et al. 2021
    (arXiv:2104.04473), section 2.2.1 and figure 4, top.
    """
    check_sizes(num_stages, num_microbatches)
    orders: list[list[Action]] = []
    for stage in range(num_stages):
        forwards = [Action(0, stage, "F", m) for m in range(num_microbatches)]
        backwards = [Action(0, stage, "B", m) for m in range(num_microbatches)]
        warm_up = min(num_stages - stage, num_microbatches)
        order = forwards[:warm_up]
        for m, backward in enumerate(backwards):
            order += [backward, *forwards[warm_up + m : warm_up + m + 1]]
        orders.append(order)
    return on_grid(orders)
