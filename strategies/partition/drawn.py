"""A partition that is computed and not stored: each client's examples are drawn anew whenever they are asked for.

A million clients cost what one does. Unlike in other partitions, examples may belong to several clients, as when one
table stands for the data of a population much larger than itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.partition.base import Integers
from strategies.seeds import generator


class Drawn(NamedTuple):
    """Each of `num_clients` clients holds `per_client` different examples out of `num_examples`, drawn uniformly."""

    num_examples: int
    num_clients: int
    per_client: int
    run_seed: int

    def rows(self, client: int) -> Integers:
        """Return the examples of one client, ascending."""
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} of {self.num_clients}: clients count from 0")
        rng = generator(self.run_seed, "drawn partition", client)
        return np.sort(rng.choice(self.num_examples, self.per_client, replace=False, shuffle=False)).astype(np.int64)

    def sizes(self) -> Integers:
        """Return the number of examples of every client, as a view of one number."""
        return np.broadcast_to(np.int64(self.per_client), (self.num_clients,))

    def sizes_of(self, clients: NDArray[np.int64]) -> Integers:
        """Return the number of examples of some clients."""
        return np.full(len(clients), self.per_client, np.int64)


def drawn(num_examples: int, num_clients: int, per_client: int, run_seed: int) -> Drawn:
    """Give each client examples of its own drawing.

    Raises:
        ValueError: when a client would hold more examples than there are.
    """
    if per_client > num_examples:
        raise ValueError(f"each client is to hold {per_client} examples, but there are {num_examples}")
    return Drawn(num_examples, num_clients, per_client, run_seed)
