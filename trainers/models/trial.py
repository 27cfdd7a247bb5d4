"""One small batch through a model before anything starts: a model that does not fit fails here, not on a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainers.data.base import LANGUAGE_MODEL, Dataset, to_tensor
from trainers.models.base import ModelError

_NUM_EXAMPLES = 2


def check(model: nn.Module, dataset: Dataset, section: Mapping[str, Any]) -> None:
    """Refuse a model that cannot take the data's examples or does not return one logit a class.

    Neither the model nor torch's global generator is changed.

    Args:
        section: the `model` section, to name the model in messages.

    Raises:
        ModelError: saying which shape was fed and what came out.
    """
    name = section.get("target") or section.get("name")
    tokens = dataset.task == LANGUAGE_MODEL
    if not section.get("target") and (name == "transformer") != tokens:
        fits = "transformer" if tokens else "cnn or resnet" if len(dataset.input_shape) == 3 else "mlp or logistic"
        raise ModelError(f"model {name} does not fit {dataset.name}, a {dataset.task} task", f"use model.name: {fits}")
    parameter = next(model.parameters())
    batch = to_tensor(dataset.train_x[:_NUM_EXAMPLES], dataset, parameter.dtype).to(parameter.device)
    expected = (*batch.shape, dataset.num_classes) if tokens else (len(batch), dataset.num_classes)
    training = model.training
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model.eval()
            logits = model(batch)
    except Exception as error:
        raise ModelError(
            f"model {name} cannot take a batch of shape {tuple(batch.shape)}: {type(error).__name__}: {error}",
            f"an example of {dataset.name} has shape {dataset.input_shape}",
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(
            f"model {name} returned {found}, expected logits of shape {expected}", "return one logit a class"
        )
