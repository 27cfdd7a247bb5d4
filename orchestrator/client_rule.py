"""What it saves that clients train by a rule of local learning: the memory of a batch, beside backpropagation's."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator.config.schema import Federated
from orchestrator.preparing import Prepared
from trainers import local_rule
from trainers.data.base import to_labels, to_tensor


def rule_summary(prepared: Prepared) -> dict[str, Any]:
    """Return a client's rule and what autograd keeps of one batch with it and without, ready for JSON.

    Measured on the first examples, of the batch's size or as many as the largest client has. Empty without a rule.
    """
    strategy, dataset = prepared.experiment.strategy, prepared.dataset
    assert isinstance(strategy, Federated)
    learning = local_rule.of(prepared.model)
    if learning is None or strategy.client.rule is None or prepared.partition is None:
        return {}
    largest = int(prepared.partition.sizes().max())
    size = largest if strategy.client.batch_size == "full" else min(largest, strategy.client.batch_size)
    dtype = getattr(torch, prepared.experiment.model.dtype)
    x = to_tensor(dataset.train_x[:size], dataset, dtype)
    kept, backpropagation = local_rule.kept_bytes(prepared.model, x, to_labels(dataset.train_y[:size]))
    added = sum(p.numel() for name, p in prepared.model.named_parameters() if name.startswith(f"{local_rule.NAME}."))
    told = {"name": strategy.client.rule.name, "num_modules": len(learning.parts), "auxiliary_parameters": added}
    return {"rule": {**told, "examples": len(x), "kept_bytes": kept, "backpropagation_bytes": backpropagation}}
