"""Models built in parts: no rank holds a whole one, whatever its constructor does, and its first weights are the same.

`deepspeed.zero.Init` takes a module's parameters apart as soon as its own constructor is through. A parent that goes on
to initialise its children then finds empty tensors of one dimension: it draws nothing, and the model differs from the
one that the seed stands for, without a word. Here the constructor sees tensors of their true shape at all times:

    park     of a tensor not used lately, each rank keeps its own part, and the storage is emptied under the tensor
    fetch    an operation that touches a parked storage, by whatever view, first has it filled by an all-gather

So views, ties between parameters, and initialisation by a parent, in `apply` or in a loop, all work, and random numbers
are drawn in the order of a plain build. Every rank runs the same constructor: one that does other things on other ranks
ends in the group's time-out. At the end the parameters are fetched one by one, and each is gone when DeepSpeed has its
part (what `deepspeed.zero.Init` does with a parameter).

What a constructor holds at once is bounded by `live_bytes`, or its largest tensors if those are larger. Tensors over
memory of others (`torch.from_numpy`), and those whose elements a constructor asks for in Python (`numpy`, `tolist`),
stay whole until they are taken over. Operations of torch only are seen: an extension that writes through a pointer is
not.

Source: emptying a storage under its tensor, PyTorch FSDP (Zhao et al. 2023, arXiv:2304.11277, section 4.1).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

LIVE_BYTES = 64 << 20
SMALL_BYTES = 1 << 12
"""Storages up to this stay whole: parking them costs more than they do."""

_READ_IN_PYTHON = {Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.__array__, Tensor.__dlpack__}


class Parking:
    """The storages that a constructor made, and which of them are whole at the moment.

    Args:
        live_bytes: of whole storages at once, where a single operation does not need more.

    Attributes:
        peak_bytes: most bytes of storages that this rank held at once, whole ones and its parts of parked ones.
    """

    def __init__(self, live_bytes: int = LIVE_BYTES) -> None:
        self._live_bytes = live_bytes
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._whole: OrderedDict[int, tuple[StorageWeakRef, int]] = OrderedDict()  # oldest use first
        self._parked: dict[int, tuple[StorageWeakRef, Tensor]] = {}
        self._stays: set[int] = set()
        self._whole_bytes = self._parked_bytes = 0
        self.peak_bytes = 0

    def fetch(self, storages: Mapping[int, torch.UntypedStorage]) -> None:
        """Make storages whole that an operation is about to touch, in their order."""
        for key, storage in storages.items():
            if key not in self._parked:
                continue
            reference, part = self._parked.pop(key)
            self._parked_bytes -= part.numel()
            storage.resize_(part.numel() * self._size)  # up to a few bytes more than it had
            dist.all_gather_single(torch.empty(0, dtype=torch.uint8).set_(storage), part)
            self._add(key, reference, storage.nbytes())

    def touched(self, storages: Mapping[int, torch.UntypedStorage]) -> None:
        """Note storages that an operation used or made, and park the longest unused ones beyond the limit."""
        for key, storage in storages.items():
            if key not in self._stays and storage.nbytes() > SMALL_BYTES and storage.device.type == "cpu":
                known = self._whole.get(key)
                self._add(key, StorageWeakRef(storage) if known is None else known[0], storage.nbytes())
        if self._whole_bytes <= self._live_bytes and self._whole_bytes + self._parked_bytes <= self.peak_bytes:
            return
        self._forget()
        self.peak_bytes = max(self.peak_bytes, self._whole_bytes + self._parked_bytes)
        for key in list(self._whole):
            if self._whole_bytes <= self._live_bytes:
                return
            if key not in storages:
                self._park(key)

    def stay(self, storages: Mapping[int, torch.UntypedStorage]) -> None:
        """Make storages whole, for good."""
        with _disable_current_modes():
            self.fetch(storages)
        for key in storages:
            self._stays.add(key)
            self._drop(key)

    def _add(self, key: int, reference: StorageWeakRef, num_bytes: int) -> None:
        self._drop(key)
        self._whole[key] = reference, num_bytes
        self._whole_bytes += num_bytes

    def _drop(self, key: int) -> None:
        if key in self._whole:
            self._whole_bytes -= self._whole.pop(key)[1]

    def _park(self, key: int) -> None:
        reference = self._whole[key][0]
        self._drop(key)
        storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
        if storage is None or not storage.resizable():
            self._stays.add(key)
            return
        length = -(-storage.nbytes() // self._size)
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        part = torch.zeros(length, dtype=torch.uint8)
        own = whole[self._rank * length : (self._rank + 1) * length]
        part[: len(own)] = own
        del whole, own
        storage.resize_(0)
        self._parked[key] = reference, part
        self._parked_bytes += length

    def _forget(self) -> None:
        """Drop storages that are gone."""
        for key in [key for key, (reference, _) in self._whole.items() if reference.expired()]:
            self._drop(key)
        for key in [key for key, (reference, _) in self._parked.items() if reference.expired()]:
            self._parked_bytes -= self._parked.pop(key)[1].numel()


def _storages(values: Any) -> dict[int, torch.UntypedStorage]:
    found = {}
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            storage = leaf.untyped_storage()
            found[storage._cdata] = storage
    return found


class _Operations(TorchDispatchMode):
    """Fetches what each operation touches, and parks what none has touched lately."""

    def __init__(self, parking: Parking) -> None:
        super().__init__()
        self._parking = parking

    def __torch_dispatch__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        used = _storages((args, kwargs))
        self._parking.fetch(used)
        result = function(*args, **(kwargs or {}))
        self._parking.touched({**used, **_storages(result)})
        return result


class _Readings(TorchFunctionMode):
    """Fetches, for good, tensors whose memory is handed to Python: no operation tells of it."""

    def __init__(self, parking: Parking) -> None:
        super().__init__()
        self._parking = parking

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _READ_IN_PYTHON:
            self._parking.stay(_storages(args))
        return function(*args, **(kwargs or {}))


@contextmanager
def in_parts(live_bytes: int = LIVE_BYTES) -> Iterator[Parking]:
    """Build a model in this block: of tensors made in it, what is not used just now lies on all ranks, in parts."""
    parking = Parking(live_bytes)
    with _Operations(parking), _Readings(parking):
        yield parking


def build_in_parts(
    build: Callable[[], nn.Module],
    configure: Callable[[Sequence[int]], Mapping[str, Any]],
    device: torch.device,
    dtype: torch.dtype | None = None,
    live_bytes: int = LIVE_BYTES,
) -> tuple[nn.Module, int]:
    """Return a model whose parameters are partitioned as stage 3 does, and the most bytes this rank held on the way.

    Args:
        build: makes the model; the same on every rank. configure: DeepSpeed's configuration by the parameters' sizes.
        device: where its parts and its buffers go. dtype: what floating-point parameters are cast to on the way.
    """
    import deepspeed

    with in_parts(live_bytes) as parking:
        model = build()
    parking.stay(_storages(list(model.buffers())))
    configuration = dict(configure([parameter.numel() for parameter in model.parameters()]))
    cutting = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=configuration)
    for parameter in model.parameters():
        parking.fetch(_storages([parameter.data]))
        to = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
        parameter.data = parameter.data.to(device, to).contiguous()
        # Its way for a whole module would also send each parameter from the first rank to all others, which have it,
        # and fails there at one without dimensions.
        cutting._convert_to_deepspeed_param(parameter)
        parameter.partition()
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    return model, parking.peak_bytes
