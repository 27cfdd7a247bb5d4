"""Ways of dividing one data set among clients, one file each: iid, Dirichlet, shards, drawn, and by a column.

Each is a deterministic function of its arguments and of the generator it is handed. Except for `by_column`, which
may leave out small clients, and `drawn`, which shares examples, each gives every example to exactly one client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from strategies.partition.base import Labels, Partition, class_counts, from_assignment
from strategies.partition.by_column import by_column, natural_clients
from strategies.partition.dirichlet import dirichlet
from strategies.partition.drawn import Drawn, drawn
from strategies.partition.iid import iid
from strategies.partition.shards import shards

__all__ = [
    "Drawn", "Partition", "by_column", "class_counts", "dirichlet", "drawn", "from_assignment", "iid",
    "natural_clients", "partition", "shards",
]  # fmt: skip


def partition(
    spec: Mapping[str, Any],
    labels: Labels | None,
    client_of: Labels | None,
    num_examples: int,
    rng: np.random.Generator,
    run_seed: int = 0,
) -> Partition | Drawn:
    """Divide a data set as the `data.partition` section of an experiment says.

    Args:
        spec: the section: `kind`, and the fields of that kind.
        labels: class of each example; None when the data has no classes, as text has not.
        client_of: natural client of each example; None when the data names none.
        run_seed: of a partition that is drawn client by client.

    Raises:
        ValueError: when the kind is unknown, needs what the data lacks, or asks for the impossible.
    """
    kind = spec["kind"]
    if kind == "iid":
        return iid(num_examples, spec["clients"], rng)
    if kind == "drawn":
        return drawn(num_examples, spec["clients"], spec["examples"], run_seed)
    if kind == "column":
        if client_of is None:
            raise ValueError("a column partition needs data that names its clients; use kind: iid, dirichlet or shards")
        return by_column(client_of, spec.get("min_size", 1))
    if kind not in ("dirichlet", "shards"):
        raise ValueError(f"unknown partition {kind!r}: expected iid, dirichlet, shards, drawn or column")
    if labels is None:
        raise ValueError(f"a {kind} partition needs one class per example; use kind: iid or column")
    if kind == "dirichlet":
        return dirichlet(labels, spec["clients"], spec["alpha"], rng, spec.get("min_size", 1))
    return shards(labels, spec["clients"], spec.get("shards_per_client", 2), rng)
