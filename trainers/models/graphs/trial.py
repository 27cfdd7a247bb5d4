"""Two vertices through a graph model before anything starts: a model that does not fit fails here, not on a worker."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.graph.chunked import Dry
from trainers.graph.convolutions import graph_chain
from trainers.graph.layers import call
from trainers.models.base import ModelError


def check_on_graph(model: nn.Module, num_features: int, num_classes: int) -> None:
    """Refuse a model that cannot take rows of features or does not return one logit a class for every vertex.

    Neither the model nor torch's global generator is changed.

    Raises:
        ModelError: naming the layer, and saying what it was given and what came out.
    """
    layers = graph_chain(model).layers
    parameter = next(model.parameters())
    carry: object = torch.zeros(2, num_features, dtype=parameter.dtype, device=parameter.device)
    training = model.training
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for layer in layers:
                given, carry = carry, _called(layer, carry)
                for tensor in carry if isinstance(carry, tuple) else (carry,):
                    if not isinstance(tensor, Tensor) or tensor.dim() == 0 or len(tensor) != 2:
                        raise ModelError(
                            f"{layer} was given {_told(given)} and returned {_told(carry)}",
                            "return a tensor, or a tuple of tensors, with a row for every vertex",
                        )
    finally:
        model.train(training)
    if not isinstance(carry, Tensor) or tuple(carry.shape) != (2, num_classes):
        raise ModelError(
            f"the model returned {_told(carry)} for 2 vertices, expected logits [2, {num_classes}]",
            "return one logit a class",
        )


def _called(layer: object, carry: object) -> object:
    try:
        return call(layer.module, carry, Dry())  # type: ignore[attr-defined, arg-type]
    except Exception as error:
        raise ModelError(
            f"{layer} was given {_told(carry)} and raised {type(error).__name__}: {error}",
            "layers take what the layer before returned, and layers of a graph the view after it",
        ) from error


def _told(carry: object) -> str:
    parts = carry if isinstance(carry, tuple) else (carry,)
    return ", ".join(str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
