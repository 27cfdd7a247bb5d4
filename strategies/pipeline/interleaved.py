"""Interleaved 1F1B: each rank holds several pieces of the model, which divides the bubble by their number."""

from __future__ import annotations

from itertools import pairwise

from strategies.pipeline.actions import Action, Kind, Schedule, check_sizes, on_grid


def interleaved(num_stages: int, num_microbatches: int, num_chunks: int = 2) -> Schedule:
    r"""Return the interleaved 1F1B schedule: 1F1B over v = num_chunks pieces of the model on each of K ranks.

    F2: forward of micro-batch 2; B2: its backward; a dot: the stage waits. F2b: of the rank's second chunk.

        tick      0   1   2   3   4   5   6   7   8   9  10  11  12  13  14  15  16  17
        stage 0 F0a F1a F0b F1b F2a B0b F3a B1b F2b B0a F3b B1a   . B2b   . B3b B2a B3a
        stage 1   . F0a F1a F0b B0b F1b B1b F2a B0a F3a B1a F2b B2b F3b B3b B2a B3a   .

    Rank s holds the pieces s, K + s, 2K + s, ... of the model, so a micro-batch goes round the ranks v times, in v
    times as many messages. Micro-batches go in rounds: all of a round through a rank's first chunk, then all through
    its second, ...; backward the other way round. With rounds of R, rank s warms up with (v-1) R + 2 (K-1-s) + 1
    forwards, which is also the most (micro-batch, chunk) pairs it holds, then does one backward and one forward by
    turns.

    M < 2K micro-batches make one round, R = M. More make ceil(M/K) rounds of K, where K does not divide M with places
    left empty at the end of rounds. Where pieces cost the same, ranks are idle for (K-1)/(vM+K-1) of the time if
    K <= M < 2K or K divides M; empty places add a few ticks.

    Args:
        num_chunks: pieces on each rank, at least 2.

    Source: Narayanan et al. 2021 (arXiv:2104.04473), section 2.2.2 and figure 4, bottom. Deviation: the paper wants K
    to divide M. Other M could do without empty places, in rounds of more than K, as torch.distributed.pipelining has
    them for some M, but then ranks block each other for ever where a link holds one message.
    """
    check_sizes(num_stages, num_microbatches)
    if num_chunks < 2:
        raise ValueError(
            f"an interleaved schedule needs at least 2 chunks a rank, got num_chunks={num_chunks}; "
            "with one chunk use 1f1b"
        )
    rounds = _rounds(num_stages, num_microbatches)
    forwards = [(chunk, m) for group in rounds for chunk in range(num_chunks) for m in group]
    backwards = [(chunk, m) for group in rounds for chunk in reversed(range(num_chunks)) for m in group]
    orders: list[list[Action]] = []
    for stage in range(num_stages):
        warm_up = min((num_chunks - 1) * len(rounds[0]) + 2 * (num_stages - 1 - stage) + 1, len(forwards))
        order: list[tuple[Kind, tuple[int, int | None]]] = [("F", place) for place in forwards[:warm_up]]
        for i, place in enumerate(backwards):
            order += [("B", place), *(("F", later) for later in forwards[warm_up + i : warm_up + i + 1])]
        orders.append([Action(0, stage, kind, m, chunk) for kind, (chunk, m) in order if m is not None])
    return on_grid(orders)


def _rounds(num_stages: int, num_microbatches: int) -> list[list[int | None]]:
    """Return the micro-batches of each round; None is an empty place."""
    if num_microbatches < 2 * num_stages:
        return [[*range(num_microbatches)]]
    num_rounds = -(-num_microbatches // num_stages)
    size, larger = divmod(num_microbatches, num_rounds)
    starts = [index * size + min(index, larger) for index in range(num_rounds + 1)]
    return [[*range(start, end), *[None] * (num_stages - (end - start))] for start, end in pairwise(starts)]
