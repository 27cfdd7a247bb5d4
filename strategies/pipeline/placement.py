"""Which pieces of a model each rank holds: the one place that knows how positions and ranks belong together.

A model cut for K ranks with v chunks each has v K pieces, its *positions*. Two ways to place them, here for K = 3 and
v = 2, the position of each rank's chunks a and b:

    looped           rank 0  rank 1  rank 2        folded           rank 0  rank 1  rank 2
        chunk a         0       1       2              chunk a         0       1       2
        chunk b         3       4       5              chunk b         5       4       3

Looped, a micro-batch goes round the ranks once for each chunk. Folded, it turns at the last rank and comes back, so
that position K - 1 hands over to position K on the same rank, and rank 0 holds both ends of the model.

Source: looped is Narayanan et al. 2021 (arXiv:2104.04473), section 2.2.2; folded, the "V", is Qi et al. 2023
(arXiv:2401.10241), section 6.
"""

from __future__ import annotations

from typing import NamedTuple


class Placement(NamedTuple):
    """Where the positions of a model are.

    Args:
        num_chunks: pieces of each rank.
        folded: whether every second chunk goes through the ranks backwards.
    """

    num_stages: int
    num_chunks: int = 1
    folded: bool = False

    @property
    def num_positions(self) -> int:
        """Pieces that the model is cut into."""
        return self.num_stages * self.num_chunks

    def position(self, stage: int, chunk: int) -> int:
        """Return the position that a rank holds as one of its chunks."""
        back = self.folded and chunk % 2 == 1
        return chunk * self.num_stages + (self.num_stages - 1 - stage if back else stage)

    def stage(self, position: int) -> int:
        """Return the rank that holds a position."""
        chunk, place = divmod(position, self.num_stages)
        return self.num_stages - 1 - place if self.folded and chunk % 2 == 1 else place

    def positions(self, stage: int) -> list[int]:
        """Return the positions that a rank holds, by chunk, which is also the model's order."""
        return [self.position(stage, chunk) for chunk in range(self.num_chunks)]
