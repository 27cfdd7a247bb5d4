"""The vocabulary of compression: what a codec is, what a tensor's description is, and the one error of bad payloads.

A codec turns a tree into bytes and back. It leaves out where the bytes go and who remembers residuals: the wire is
`trainers.wire` and the engines', memory is `error_feedback`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from strategies.base import Tree

Array = npt.NDArray[Any]

MAX_BYTES = 2 << 30
"""What a decoded tree may take unless the caller says otherwise."""

DTYPES: tuple[torch.dtype, ...] = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
"""What a payload may hold; a dtype's place here is its number in the header, so only append."""


class CodecError(ValueError):
    """A payload is damaged, foreign, or asks for more memory than it may."""


class Spec(NamedTuple):
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return self.numel * self.dtype.itemsize


Specs = Mapping[str, Spec]


def specs_of(tree: Tree) -> dict[str, Spec]:
    """Describe a tree; its order is part of the description."""
    return {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in tree.items()}


class Codec(Protocol):
    """Bytes from a tree, and the tree from the bytes.

    A codec is a value: encoding changes nothing in it. `contractive` says whether error feedback converges with it,
    that is whether the error of one encoding is smaller than what was encoded (Karimireddy et al. 2019, Assumption A).
    """

    @property
    def name(self) -> str:
        """The codec as one would write it, for logs and errors."""

    @property
    def contractive(self) -> bool:
        """Whether error feedback may be used with it."""

    def encode(self, tree: Tree) -> bytes:
        """Return the payload.

        Raises:
            ValueError: when a tensor has a dtype no payload holds, or a lossy codec meets NaN or infinity.
        """

    def decode(self, payload: bytes | memoryview, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
        """Return the tree, in its own memory.

        Raises:
            CodecError: for any payload that this codec did not write, or whose tree is larger than `max_bytes`.
        """

    def seeded(self, seed: int) -> Codec:
        """Return the codec whose random choices follow `seed`; a deterministic codec returns itself."""

    def bind(self, like: Tree) -> Codec:
        """Return the codec for trees of this schema: its payloads carry an 8-byte hash in place of names and shapes."""
