"""What a report needs to draw a partition, small enough to keep for any population."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.config.schema import Experiment
from orchestrator.preparing import Prepared

NUM_SHOWN = 100
"""Clients whose label counts are kept, the first by id."""


def summarise(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Return sizes of the partition and label counts of its first clients, ready for JSON."""
    partition, dataset = prepared.partition, prepared.dataset
    sizes = np.asarray(partition.sizes())
    labels = dataset.train_y if dataset.train_y.ndim == 1 else None
    clients = []
    for client in range(min(NUM_SHOWN, partition.num_clients)):
        rows = partition.rows(client)
        counts = np.bincount(labels[rows], minlength=dataset.num_classes) if labels is not None else [len(rows)]
        clients.append({"name": str(client), "counts": [int(count) for count in counts]})
    return {
        "kind": experiment.data.partition.kind,
        "num_clients": partition.num_clients,
        "sizes": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "clients": clients,
    }
