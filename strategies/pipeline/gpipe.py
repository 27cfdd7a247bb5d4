"""GPipe: all forwards, then all backwards."""

from __future__ import annotations

from strategies.pipeline.actions import Action, Schedule, check_sizes


def gpipe(num_stages: int, num_microbatches: int) -> Schedule:
    r"""Return GPipe's schedule: M + K - 1 ticks of forwards, then as many of backwards.

    F2: forward of micro-batch 2; B2: its backward; a dot: the stage waits.

        tick     0  1  2  3  4  5  6  7  8  9 10 11
        stage 0 F0 F1 F2 F3  .  .  .  . B3 B2 B1 B0
        stage 1  . F0 F1 F2 F3  .  . B3 B2 B1 B0  .
        stage 2  .  . F0 F1 F2 F3 B3 B2 B1 B0  .  .

    At tick t stage s runs the forward of micro-batch t - s. Backwards run through stages and micro-batches in reverse,
    so that the activations wanted first are those made last. A stage is idle for (K-1)/(M+K-1) of the time and
    holds up to M micro-batches.

    Source: Huang et al. 2019, GPipe (arXiv:1811.06965), sections 2.2, 2.3 and figure 2c. The order of the micro-batches
    in backward is torchgpipe's (last first); torch.distributed.pipelining runs them first to last.
    """
    check_sizes(num_stages, num_microbatches)
    K, M = num_stages, num_microbatches
    return Schedule(
        [Action(s + m, s, "F", m) for m in range(M)]
        + [Action((M + K - 1) + (K - 1 - s) + (M - 1 - m), s, "B", m) for m in reversed(range(M))]
        for s in range(K)
    )
