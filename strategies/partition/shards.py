"""Clients that see few classes each: the "pathological" partition of the paper that introduced FedAvg."""

from __future__ import annotations

import numpy as np

from strategies.partition.base import Labels, Partition, from_assignment, require_examples


def shards(labels: Labels, num_clients: int, shards_per_client: int, rng: np.random.Generator) -> Partition:
    """Sort examples by label, cut them into equal shards, and give each client the same number of shards.

    With `s` shards a client sees at most about `s` classes, or `2 s` where shards straddle two classes.

    Raises:
        ValueError: when a shard would stay empty.

    Source: McMahan et al. 2017, arXiv:1602.05629, section 3, "Non-IID": 60,000 examples sorted by label, 200
    shards of 300, two for each of 100 clients. Deviations: examples of one class are shuffled before cutting, so
    that the order of the file plays no part; where the numbers do not divide, shard sizes differ by one.
    """
    if shards_per_client < 1:
        raise ValueError(f"a client needs at least 1 shard, got shards_per_client {shards_per_client}")
    num_examples = len(labels)
    require_examples("shards", num_examples, num_clients, shards_per_client)
    num_shards = num_clients * shards_per_client
    shuffled = rng.permutation(num_examples)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shard_of = np.arange(num_examples) * num_shards // num_examples
    client_of_shard = rng.permutation(num_shards) // shards_per_client
    client_of = np.empty(num_examples, np.int64)
    client_of[by_label] = client_of_shard[shard_of]
    return from_assignment(client_of, num_clients)
