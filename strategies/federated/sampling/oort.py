"""Oort: clients whose data the model is still wrong about, unless they are too slow, and some never tried before.

Source: Lai, Zhu, Madhyastha and Chowdhury 2021, "Oort: Efficient federated learning via guided participant
selection", OSDI, section 4 and Algorithm 1. Score of a client `i` that was heard last at round `L(i)`, in round `R`:

    U(i)     = |B_i| * sqrt(mean over its examples of loss^2)              statistical utility, equation 1
    Util(i)  = U(i) + sqrt(0.1 * log(R) / L(i))                            staleness bonus, line 9
    Util(i) *= (T / t_i)^alpha   where t_i > T                             system utility, equation 2

(1 - epsilon) of a cohort is drawn in proportion to `Util` among those above 95 % of the last admitted client's; the
rest is new. `T` grows by the pacer when utility falls.

Deviations. A client reports its mean loss, so `U = |B_i| * mean loss`, at most equation 1. Utilities are clipped at a
percentile and scaled to [0, 1] before the bonus is added, as the authors' code does and without which the bonus
vanishes beside them. As in that code `T` is a percentile of the durations seen, which the pacer raises. New clients
are drawn uniformly, since their speeds are unknown. The exploited part of a cohort is rounded at random, so that it
works for cohorts of one too. Clients are not blacklisted after many participations, and no noise is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.base import Tree
from strategies.federated.sampling import table
from strategies.federated.sampling.base import Candidates, Feedback, Sampler, heaviest
from strategies.federated.sampling.uniform import uniformly


def oort_sampler(
    *,
    exploration: float = 0.9,
    exploration_decay: float = 0.98,
    exploration_min: float = 0.2,
    penalty: float = 2.0,
    cut_off: float = 0.95,
    clip: float = 0.95,
    percentile: float = 50.0,
    pacer_window: int = 20,
    pacer_delta: float = 5.0,
) -> Sampler:
    """Return Oort's sampler.

    Args:
        exploration, exploration_decay, exploration_min: the new part of a cohort is
            `max(exploration_min, exploration * exploration_decay ** step)`.
        penalty: alpha. cut_off: c. clip: quantile of utilities above which they count no more.
        percentile: of durations that is the preferred one at first; 100: no client is too slow.
        pacer_window, pacer_delta: steps compared, and what the percentile grows by when utility fell.
    """

    def init() -> Tree:
        memory = dict(table.empty(utility=torch.float64, duration_s=torch.float64, heard=torch.int64))
        memory["percentile"] = torch.tensor([percentile], dtype=torch.float64)
        memory["history"] = torch.zeros(0, dtype=torch.float64)
        return memory

    def scores(memory: Tree, step: int) -> NDArray[np.float64]:
        utility, duration_s = table.column(memory, "utility"), table.column(memory, "duration_s")
        capped = np.minimum(utility, np.quantile(utility, clip))
        span = max(float(capped.max() - capped.min()), 1e-4)
        heard = table.column(memory, "heard")
        score = (capped - capped.min()) / span + np.sqrt(0.1 * np.log(step + 1) / heard)
        share = float(table.column(memory, "percentile")[0])
        if share < 100:
            preferred = np.quantile(duration_s, share / 100)
            slow = duration_s > preferred
            score[slow] *= (preferred / duration_s[slow]) ** penalty
        found: NDArray[np.float64] = np.maximum(score, 1e-12)
        return found

    def draw(memory: Tree, candidates: Candidates, count: int, step: int, rng: np.random.Generator) -> tuple[int, ...]:
        known = table.column(memory, "client")
        new_part = max(exploration_min, exploration * exploration_decay**step)
        wanted = min(int(count * (1 - new_part) + rng.random()), len(known))
        seen = set(known.tolist())
        score = scores(memory, step) if len(known) else np.zeros(0)
        best = (row for row in np.argsort(-score, kind="stable").tolist() if candidates.has(int(known[row])))
        pool: list[int] = []
        for row in best if wanted else ():
            pool.append(row)
            if len(pool) > wanted and score[row] < cut_off * score[pool[wanted - 1]]:
                break
        if len(pool) > wanted and score[pool[-1]] < cut_off * score[pool[wanted - 1]]:
            pool.pop()
        rows = np.asarray(pool, np.int64)
        chosen = known[rows[heaviest(score[rows], wanted, rng)]].tolist()
        if len(seen) < candidates.num_clients:
            chosen += uniformly(candidates, count - len(chosen), rng, excluded=seen)
        if len(chosen) < count:  # nobody new is left: more of those known
            chosen += _more_known(known, score, candidates, count - len(chosen), rng, set(chosen))
        return tuple(sorted(chosen))

    def learn(memory: Tree, feedback: Sequence[Feedback], step: int) -> Tree:
        last = {one.client: one for one in feedback if np.isfinite(one.loss)}
        if not last:
            return memory
        told = list(last.values())
        utility = np.array([one.num_examples * one.loss for one in told], np.float64)
        after = table.write(
            memory,
            np.fromiter(last, np.int64),
            utility=utility,
            duration_s=np.array([one.duration_s for one in told], np.float64),
            heard=np.full(len(told), step + 1, np.int64),
        )
        history = np.append(table.column(memory, "history"), utility.mean())[-2 * pacer_window :]
        after["history"] = torch.from_numpy(history)
        if len(history) == 2 * pacer_window and (step + 1) % pacer_window == 0:
            before, now = history[:pacer_window].sum(), history[pacer_window:].sum()
            if before > now:
                after["percentile"] = (memory["percentile"] + pacer_delta).clamp(max=100.0)
        return after

    return Sampler("oort", draw, init, learn)


def _more_known(
    known: NDArray[np.int64],
    score: NDArray[np.float64],
    candidates: Candidates,
    count: int,
    rng: np.random.Generator,
    chosen: set[int],
) -> list[int]:
    """Draw up to `count` further known clients in proportion to their scores."""
    rows = np.array(
        [row for row, client in enumerate(known.tolist()) if client not in chosen and candidates.has(client)], np.int64
    )
    picked: list[int] = known[rows[heaviest(score[rows], count, rng)]].tolist()
    return picked
