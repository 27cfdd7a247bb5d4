"""What a report needs to draw a partition, small enough to keep for any population."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.config.schema import Experiment
from orchestrator.preparing import Prepared
from strategies.partition import class_counts, natural_clients

NUM_SHOWN = 100
"""Clients whose label counts are kept, the first by id."""


def summarise(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Return sizes of the partition and label counts of its first clients, ready for JSON."""
    partition, dataset = prepared.partition, prepared.dataset
    kind, sizes = experiment.data.partition.kind, np.asarray(partition.sizes())
    has_classes = dataset.train_y.ndim == 1
    if has_classes:
        counts = class_counts(partition, dataset.train_y, dataset.num_classes, NUM_SHOWN)
    else:
        counts = sizes[:NUM_SHOWN, None]
    names = client_names(experiment, prepared, len(counts))
    summary: dict[str, Any] = {
        "kind": kind,
        "num_clients": partition.num_clients,
        "sizes": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "clients": [{"name": name, "counts": row.tolist()} for name, row in zip(names, counts, strict=True)],
    }
    if has_classes and dataset.class_names is not None:
        summary["class_names"] = list(dataset.class_names)
    return summary


def client_names(experiment: Experiment, prepared: Prepared, count: int | None = None) -> list[str]:
    """Return the names of the first `count` clients, or of all: their own in natural data, else their numbers."""
    partition, dataset = prepared.partition, prepared.dataset
    if (
        experiment.data.partition.kind == "column"
        and dataset.client_of is not None
        and dataset.client_names is not None
    ):
        return [dataset.client_names[client] for client in natural_clients(partition, dataset.client_of)[:count]]
    return [str(client) for client in range(partition.num_clients)[:count]]
