"""What a partition is: which examples belong to which client, as two flat arrays.

A million clients are two arrays rather than a million lists, so that cutting, counting and shipping a partition
stay cheap. Rows of a client are in ascending order, whatever the rule, so equal assignments are equal values.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Labels = NDArray[np.integer[Any]]


class Partition(NamedTuple):
    """Client `i` holds the examples `order[offsets[i]:offsets[i + 1]]`.

    Args:
        order: indices of examples, each at most once.
        offsets: where each client begins, and at the end the number of examples that are held.

    Shapes: `order [num_examples]`, `offsets [num_clients + 1]`, both int64.
    """

    order: Integers
    offsets: Integers

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.offsets) - 1

    def rows(self, client: int) -> Integers:
        """Return the examples of one client, ascending, without copying."""
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} of {self.num_clients}: clients count from 0")
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    def sizes(self) -> Integers:
        """Return the number of examples of every client."""
        return np.diff(self.offsets)

    def sizes_of(self, clients: Integers) -> Integers:
        """Return the number of examples of some clients."""
        return self.offsets[clients + 1] - self.offsets[clients]


class Divided(Protocol):
    """What every partition can be asked."""

    @property
    def num_clients(self) -> int: ...
    def rows(self, client: int) -> Integers: ...
    def sizes(self) -> Integers: ...
    def sizes_of(self, clients: Integers) -> Integers: ...


def from_assignment(client_of: Labels, num_clients: int) -> Partition:
    """Group examples by the client they are assigned to.

    Shapes: `client_of [num_examples]`, values in `0 .. num_clients - 1`.
    """
    offsets = np.zeros(num_clients + 1, np.int64)
    np.cumsum(np.bincount(client_of, minlength=num_clients), out=offsets[1:])
    return Partition(np.argsort(client_of, kind="stable").astype(np.int64, copy=False), offsets)


def class_counts(partition: Divided, labels: Labels, num_classes: int, num_clients: int | None = None) -> Integers:
    """Count the examples of each class that each of the first clients holds, as a report draws them.

    Args:
        num_clients: how many clients to count, from client 0 on; all when None.

    Shapes: result `[num_clients, num_classes]`.
    """
    num_clients = partition.num_clients if num_clients is None else min(num_clients, partition.num_clients)
    held = np.concatenate([partition.rows(client) for client in range(num_clients)])
    client = np.repeat(np.arange(num_clients), partition.sizes()[:num_clients])
    cells = client * num_classes + labels[held]
    return np.bincount(cells, minlength=num_clients * num_classes).reshape(num_clients, num_classes)


def require_examples(kind: str, num_examples: int, num_clients: int, per_client: int = 1) -> None:
    """Refuse a partition that cannot give every client its least number of examples.

    Raises:
        ValueError: when there are no clients, or too few examples for them.
    """
    if num_clients < 1:
        raise ValueError(f"a {kind} partition needs at least 1 client, got {num_clients}")
    if num_examples < num_clients * per_client:
        raise ValueError(
            f"{num_clients} clients with at least {per_client} examples each need {num_clients * per_client} "
            f"examples, but there are {num_examples}; ask for at most {num_examples // max(per_client, 1)} clients"
        )
