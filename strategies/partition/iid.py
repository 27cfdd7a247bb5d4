"""Every client gets an equal, uniformly random share: the control in every study of heterogeneity."""

from __future__ import annotations

import numpy as np

from strategies.partition.base import Partition, from_assignment, require_examples


def iid(num_examples: int, num_clients: int, rng: np.random.Generator) -> Partition:
    """Deal shuffled examples to the clients in turn; sizes differ by one at most.

    Raises:
        ValueError: when a client would stay empty.

    Source: McMahan et al. 2017, arXiv:1602.05629, section 3, "IID" ("the data is shuffled, and then
    partitioned").
    """
    require_examples("iid", num_examples, num_clients)
    client_of = np.empty(num_examples, np.int64)
    client_of[rng.permutation(num_examples)] = np.arange(num_examples) % num_clients
    return from_assignment(client_of, num_clients)
