"""How a model's convolutions lie in memory: channels-last on a CPU, where small batches are then faster.

Measured on one core (benchmarks/local_speed.py, torch 2.13, oneDNN): a step of the CNN of `trainers.models.cnn` on
ten 3 x 32 x 32 images takes 6.5 ms channels-last and 9.0 ms otherwise; the results differ by rounding only.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

_SETTLED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@torch.no_grad()
def settle(model: nn.Module, x: Tensor) -> None:
    """Lay the weights of 2-D convolutions channels-last, once a model, when that is faster and the model can do it.

    A model that views an activation as a flat one may refuse the other layout: it is tried on two examples, and put
    back when it raises. The choice depends on the model's code and shapes alone, so it is the same on every machine.

    Args:
        x: examples [n, ...] of the kind that the model takes.
    """
    if model in _SETTLED:
        return
    _SETTLED.add(model)
    if x.dim() != 4 or x.is_cuda or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return
    training = [module for module in model.modules() if module.training]
    model.eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        model(x[:2])
    except RuntimeError:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    finally:
        for module in training:
            module.training = True
