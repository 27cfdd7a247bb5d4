"""One iteration of a Bristle peer: the loop of CWR*, with other peers' classes in the place of earlier sessions.

A peer keeps two output matrices, whose columns are classes. `cw`, the consolidated one, is what it knows, sends and is
evaluated with; `tw`, the live one, is what a minibatch trains. Only the columns of classes that the peer owns go from
`tw` to `cw`: training without examples of a class pushes its column down, and that is not knowledge.

Source: Lomonaco, Maltoni, Pellegrini 2020, "Rehearsal-Free Continual Learning over Small Non-I.I.D. Batches", CWR*
(consolidated weights, mean-centred); its use for peers in Verbraeken et al. 2021 (arXiv:2110.11006), order of steps as
in the authors' simulator (`Node.kt`). CWR* weighs a consolidated column by how often its class was seen; here the
integrator weighs it, and an owned column replaces it.

Decision: which own matrix takes part in the integration and is measured from in the prioritizer's distances. The
simulator takes `tw` of the last step, so that what the last minibatch did to foreign columns leaks into `cw`, and `cw`
in the iterations after an evaluation, which copies it over. Here it is `cw` unless `integrated="trained"` asks for
`tw`; accuracies differ by less than 0.01. When nothing has arrived, nothing is integrated and nothing is centred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

M = TypeVar("M")
"""What an optimizer remembers."""


class Peer(NamedTuple, Generic[M]):
    """What a peer carries from one iteration to the next: `cw` and `tw`, both `[F, C]`, and its optimizer's memory."""

    cw: Tensor
    tw: Tensor
    moments: M


Integrate = Callable[[Tensor], Tensor]
"""From the own matrix to the one that holds what arrived, too."""
Train = Callable[[Tensor, M], tuple[Tensor, M]]
"""One minibatch step on the live matrix."""


def centered(matrix: Tensor) -> Tensor:
    """Return the matrix with the mean of each column, over its features, subtracted from that column."""
    return matrix - matrix.mean(dim=-2, keepdim=True)


def iteration(
    peer: Peer[M],
    owned: Tensor,
    train: Train[M],
    integrate: Integrate | None = None,
    integrated: Literal["consolidated", "trained"] = "consolidated",
) -> Peer[M]:
    """Return the peer after one iteration; the result's `cw` is what it sends to its neighbours.

    Args:
        owned: `[C]`, True where the peer owns the class.
        integrate: merges what has arrived since the last iteration; None when nothing has.

    Raises:
        ValueError: when `integrated` is unknown.
    """
    if integrated not in ("consolidated", "trained"):
        raise ValueError(f"integrated={integrated!r}: consolidated or trained")
    cw, tw, moments = peer
    if integrate is not None:
        cw = centered(integrate(cw if integrated == "consolidated" else tw))
    tw = cw
    tw, moments = train(tw, moments)
    cw = torch.where(owned, tw, cw)
    return Peer(cw, tw, moments)
