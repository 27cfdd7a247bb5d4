"""Error feedback: what one encoding left out is added before the next one.

    c = v + e,   send C(c),   e' = c - C(c)

Source: Seide et al. 2014, "1-bit stochastic gradient descent", section 2; Karimireddy et al. 2019, "Error feedback
fixes SignSGD and other gradient compression schemes", Algorithm 2 (EF-SGD). It converges for contractions only, so
codecs that are none are refused. Who keeps the residual, and for how long, is the engine's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from strategies.base import Tree
from strategies.compression.base import Codec


class Compensated(NamedTuple):
    """What goes out, what arrives, and what is owed.

    Args:
        payload: the bytes to send.
        decoded: what the receiver will read.
        residual: what it will not, for the next time: tensors of at least float32, floating-point ones only.
    """

    payload: bytes
    decoded: dict[str, Tensor]
    residual: dict[str, Tensor]


def compensate(codec: Codec, tree: Tree, residual: Tree | None = None) -> Compensated:
    """Encode a tree together with what was left out before; None when nothing was.

    Raises:
        ValueError: when the codec is no contraction, or the residual is not one of this tree's.
    """
    insist_contractive(codec)
    floats = {name: tensor for name, tensor in tree.items() if tensor.is_floating_point()}
    if residual is not None:
        wrong = [name for name in {**floats, **residual} if _shape(floats, name) != _shape(residual, name)]
        if wrong:
            raise ValueError(f"the residual is not this tree's: {sorted(wrong)[:5]} differ in shape or are missing")
    owed: dict[str, Tensor] = {}
    for name, tensor in floats.items():
        wide = tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32))
        owed[name] = wide + residual[name].to("cpu") if residual is not None else wide
    payload = codec.encode(
        {name: owed[name].to(tensor.dtype) if name in owed else tensor for name, tensor in tree.items()}
    )
    decoded = codec.decode(payload)
    return Compensated(payload, decoded, {name: wide - decoded[name] for name, wide in owed.items()})


def insist_contractive(codec: Codec) -> None:
    """Raise ValueError for a codec whose error feedback would diverge."""
    if not codec.contractive:
        raise ValueError(
            f"error feedback diverges with {codec.name}: its error may exceed what it encodes; use random-k with "
            "unbiased=false, qsgd with bucket below levels squared, or signsgd in place of terngrad"
        )


def _shape(tree: Tree, name: str) -> torch.Size | None:
    return tree[name].shape if name in tree else None
