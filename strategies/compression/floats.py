"""Tensors of any floating-point dtype as flat float32 or float64 numpy arrays, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from strategies.compression.base import Array, Spec


def flat32(name: str, tensor: Tensor) -> Array:
    """Return the elements as float32, rounded where they are float64.

    Raises:
        ValueError: when a float64 element is beyond float32's range.
    """
    narrow = tensor.reshape(-1).to(torch.float32)
    if tensor.dtype == torch.float64 and not torch.isfinite(narrow).all():
        raise ValueError(f"tensor {name!r} reaches {float(tensor.abs().max()):.3g}, beyond float32's range")
    array: Array = narrow.numpy()
    return array


def flat(tensor: Tensor) -> Array:
    """Return the elements as float64 for a float64 tensor, as float32 otherwise; always exact."""
    array: Array = tensor.reshape(-1).to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).numpy()
    return array


def restored(values: Array, spec: Spec) -> Tensor:
    """Return the tensor of a description; see `fitted`."""
    return fitted(torch.from_numpy(np.ascontiguousarray(values)), spec)


def fitted(tensor: Tensor, spec: Spec) -> Tensor:
    """Return a tensor in a description's dtype and shape; finite numbers beyond the dtype become its largest."""
    if spec.dtype.itemsize < tensor.dtype.itemsize or {spec.dtype, tensor.dtype} == {torch.float16, torch.bfloat16}:
        limit = torch.finfo(spec.dtype).max
        wide = tensor if tensor.dtype.itemsize > 2 else tensor.to(torch.float32)
        tensor = wide.clamp(-limit, limit)
    return tensor.to(spec.dtype).reshape(spec.shape)
