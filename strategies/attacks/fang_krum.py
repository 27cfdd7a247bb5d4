"""Fang's attack on Krum: the one vector that Krum will choose, as far against the honest change as it will bear.

Source: Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security
2020, section 4.2. With r the received model and s the signs (+-1) of the change without attack, c attackers send

    w = r - lambda s

for the largest lambda that lets Krum choose it, looked for by halving from an upper bound. The bound follows from
Krum's scores over k neighbours. Beside c - 1 copies of itself w counts its k-c+1 nearest honest vectors, none nearer
than lambda sqrt(d) - D(x_i, r), and may not exceed the best score that an honest vector has among the honest:

    lambda <= sqrt(min_i sum_(k nearest) D(x_i, x_j)^2 / ((k-c+1) d)) + max_i D(x_i, r) / sqrt(d)

which is the paper's theorem 1 for its k = m-c-2. Below `threshold` the search ends and the last, tiny lambda is sent.

Knowledge. "full": rows are all honest vectors. "partial": rows are the attackers' own; Krum is played among them, with
one crafted copy first and one more each time no lambda is found. In both s comes from the mean of the rows; the paper's
full-knowledge attacker takes Krum's own result for it, which needs the attackers' honest vectors beside.
Other deviations: where k-c+1 is not positive the first term has no bound and is left out. Ties count as not chosen.
Where squared distances overflow, what was received is sent.
`radius` 0 sends copies; the paper moves all but the first by at most 0.01. At least one neighbour counts.

`variant="bristle"` is what the authors of Bristle run (their commit a505112b): the first row is the victim's own
vector, the others those it has received; no root and plain distances to all others in the bound; a Krum that adds plain
distances to n-b-3 others with b=2; copies; when a coordinate of the result is beyond 10, or there are fewer than four
rows, r itself is sent (with fewer than four rows theirs sends nothing). Its s is the sign of `r - own`, the opposite of
the paper's: it pushes along the victim's own change, far beyond it. Deviations from their code: d is the number of
weights, where a later state of it takes the number of rows of the matrix; where the bound's first term is negative or
infinite, with attackers in the majority, it is left out.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from strategies.attacks.base import check, check_choice, copies, normal, origin, uniform
from strategies.attacks.krum_game import game

_BRISTLE_RANGE, _BRISTLE_LIMIT = 2, 10.0


def fang_krum(
    honest: Tensor,
    num_byzantine: int,
    knowledge: Literal["full", "partial"] = "full",
    variant: Literal["paper", "bristle"] = "paper",
    neighbors: Literal["blanchard", "byzfl"] = "blanchard",
    threshold: float = 1e-5,
    radius: float = 0.0,
    *,
    received: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Return `received - lambda * signs`, once for each attacker.

    Args:
        neighbors: the Krum that is played: n-f-2 neighbours (Blanchard et al.) or n-f-1 (ByzFL).
        threshold: the lambda below which the search gives up, above 0.
        radius: how far all but the first attacker's vectors are moved at most, in a random direction.
    """
    check(honest, num_byzantine)
    check_choice("knowledge", knowledge, ("full", "partial"))
    check_choice("variant", variant, ("paper", "bristle"))
    check_choice("neighbors", neighbors, ("blanchard", "byzfl"))
    if not (threshold > 0 and radius >= 0):
        raise ValueError(f"threshold={threshold}, radius={radius}: a threshold above 0, a radius of at least 0")
    start = origin(honest, received)
    if num_byzantine == 0:
        return honest.new_empty(0, honest.shape[1])
    if variant == "bristle":
        return _bristle(honest, num_byzantine, start, threshold)
    direction = signs(honest.mean(0) - start)
    board = game(honest, start, direction)
    num_neighbors = max(1, honest.shape[0] - (2 if neighbors == "blanchard" else 1))
    best = float(board.others.sort(dim=1).values[:, :num_neighbors].sum(1).min())
    factor = 0.0
    for num_copies in [num_byzantine] if knowledge == "full" else range(1, num_byzantine + 1):
        counted = num_neighbors - num_copies + 1
        bound = board.reach() + (math.sqrt(best / (counted * max(1, board.size))) if counted > 0 else 0.0)
        factor = board.halved(bound, num_copies, num_neighbors, threshold)
        if factor >= threshold:
            break
    crafted = copies(start - factor * direction, num_byzantine)
    if radius:
        crafted[1:] += radius * _ball(honest, num_byzantine, seed)[1:]
    return crafted


def signs(change: Tensor) -> Tensor:
    """Return -1 where the change is negative and 1 elsewhere."""
    return torch.where(change < 0, -1.0, 1.0).to(change)


def _ball(honest: Tensor, num: int, seed: int) -> Tensor:
    """Draw [num, d] of length at most 1, directions uniform."""
    directions = torch.nn.functional.normalize(normal(honest, num, seed, "fang_krum/direction"), dim=1)
    return directions * uniform(honest[:, :1], num, seed, "fang_krum/length")


def _bristle(models: Tensor, num_copies: int, start: Tensor, threshold: float) -> Tensor:
    num = models.shape[0]
    if num < 4:
        return copies(start, num_copies)
    direction = signs(start - models[0])
    board, received = game(models, start, direction, plain=True), game(models[1:], start, direction)
    counted = num - num_copies - 2  # m - 2c - 1, where m counts the others and the attackers
    least = float(received.others.sqrt().sum(1).min())
    near = least / (counted * math.sqrt(max(1, board.size))) if counted > 0 else 0.0
    num_neighbors = max(1, num + num_copies - _BRISTLE_RANGE - 3)
    factor = board.halved(near + received.reach(), num_copies, num_neighbors, threshold)
    crafted = start - factor * direction
    beyond = factor >= threshold and float(crafted.abs().max()) > _BRISTLE_LIMIT
    return copies(start if beyond else crafted, num_copies)
