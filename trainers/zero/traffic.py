"""What DeepSpeed's collectives move, counted where it hands them to torch.

A collective over N ranks is counted with what each rank sends when data goes round in a ring, whatever the library does
in truth (gloo and nccl choose by size): all-reduce 2 (N-1)/N of a tensor; all-gather and reduce-scatter (N-1)/N of the
whole one; reduce and broadcast likewise. So a step takes 2 P (N-1)/N of P bytes of gradients and weights at stages 0 to
2, and 3 P (N-1)/N at stage 3, which gathers weights for forward and for backward (Rajbhandari et al. 2020,
arXiv:1910.02054, section 7). What the ranks of this project sum beside that, a few numbers a step, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

_TWICE = ("all_reduce", "all_reduce_coalesced")
_ONCE = (
    "all_gather", "all_gather_into_tensor", "all_gather_coalesced", "reduce_scatter", "reduce_scatter_tensor",
    "reduce", "broadcast",
)  # fmt: skip


class Traffic:
    """Counts from when it is made, on this rank."""

    def __init__(self) -> None:
        from deepspeed.comm import comm

        self._bytes = 0.0
        backend: Any = comm.cdb
        for name in (*_TWICE, *_ONCE):
            function = getattr(backend, name, None)
            if function is not None:
                while hasattr(function, "counted"):  # by an engine before this one, in the same process
                    function = function.counted
                setattr(backend, name, self._counting(function, 2 if name in _TWICE else 1))

    def take(self) -> float:
        """Return the bytes since the last time."""
        taken, self._bytes = self._bytes, 0.0
        return taken

    def _counting(self, function: Callable[..., Any], times: int) -> Callable[..., Any]:
        from deepspeed.comm import comm

        @wraps(function)
        def counting(*args: Any, **kwargs: Any) -> Any:
            ranks = comm.get_world_size(kwargs.get("group"))
            largest = max(map(_bytes, (*args, *kwargs.values())), default=0)
            self._bytes += times * largest * (ranks - 1) / ranks
            return function(*args, **kwargs)

        counting.counted = function  # type: ignore[attr-defined]
        return counting


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
