"""Codecs in a row: what one leaves over is what the next one codes, and a byte compressor takes the bytes of all.

    tree -> reduce: top-k, random-k, powersgd
         -> quantise: fp16, bf16, int8, qsgd, signsgd, terngrad
         -> bytes: zstd -> payload

Each *stage* writes what it alone needs (positions, scales) and hands on the tensors that remain to be coded (the kept
values, the factors); what is left in the end goes out as it is. So top-k with int8 codes the kept values in 8 bits.
At most one stage of each kind, in this order; FedZip reduces, quantises and codes at once, so only zstd may follow.
Tensors of integers and booleans bypass all stages, losslessly. A chain of no stages is the exact tree.

Source: the split into transforms of what remains follows optax's `chain`; the order is that of Deep Compression (Han et
al. 2016): prune, quantise, code.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from strategies.base import Tree
from strategies.compression.base import DTYPES, MAX_BYTES, Codec, CodecError, Spec, Specs, specs_of
from strategies.compression.bits import Reader, Writer
from strategies.compression.envelope import seal, unseal

Kind = Literal["reduce", "quantise", "whole", "bytes"]
Inner = Callable[[Specs], dict[str, Tensor]]
"""Reads the tensors that a stage handed on, given their description."""


class Single(ABC):
    """A codec of one stage, and a stage of a chain."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    random: bool = False
    """Whether its choices follow a seed."""
    contractive: bool = True
    """Whether its error is smaller than what it encodes; see `base.Codec`."""

    @property
    def signature(self) -> str:
        """The name and the arguments that decoding depends on."""
        return self.name

    def encode(self, tree: Tree) -> bytes:
        """See `base.Codec`."""
        return Chain((self,)).encode(tree)

    def decode(self, payload: bytes | memoryview, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
        """See `base.Codec`."""
        return Chain((self,)).decode(payload, max_bytes=max_bytes)

    def seeded(self, seed: int) -> Self | Chain:
        """See `base.Codec`."""
        return Chain((self,), seed) if self.random else self

    def bind(self, like: Tree) -> Chain:
        """See `base.Codec`."""
        return Chain((self,)).bind(like)


class Stage(Single):
    """A stage on tensors. Trees given to it hold floating-point tensors only, on the CPU and contiguous."""

    @abstractmethod
    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Append what this stage knows about the tree; return what remains to be coded."""

    @abstractmethod
    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Read what `write` appended, then what it handed on through `inner`; return the tree of `specs`."""


class ByteStage(Single):
    """A stage on the finished body."""

    kind: ClassVar[Kind] = "bytes"

    @abstractmethod
    def squeeze(self, body: bytes) -> bytes:
        """Return the body in fewer bytes."""

    @abstractmethod
    def expand(self, data: memoryview, limit_bytes: int) -> bytes | memoryview:
        """Return the body, at most `limit_bytes` long; `CodecError` otherwise."""


@dataclass(frozen=True)
class Chain:
    """A codec of any number of stages; `chain` checks that they go together.

    Args:
        stages: in the order of encoding.
        seed: what the random choices follow; see `seeded`.
        schema: the tree it is bound to; see `bind`.
    """

    stages: tuple[Single, ...]
    seed: int = 0
    schema: Specs | None = field(default=None)

    @property
    def name(self) -> str:
        """The names of the stages, `dense` when there are none."""
        return "+".join(stage.name for stage in self.stages) or "dense"

    @property
    def signature(self) -> str:
        """What a payload must have been written by."""
        return "+".join(stage.signature for stage in self.stages) or "dense"

    @property
    def contractive(self) -> bool:
        """Whether every stage is."""
        return all(stage.contractive for stage in self.stages)

    def seeded(self, seed: int) -> Chain:
        """See `base.Codec`."""
        return dataclasses.replace(self, seed=seed) if any(stage.random for stage in self.stages) else self

    def bind(self, like: Tree) -> Chain:
        """See `base.Codec`."""
        return dataclasses.replace(self, schema=specs_of(like))

    def encode(self, tree: Tree) -> bytes:
        """See `base.Codec`."""
        specs = specs_of(tree)
        if self.schema is not None and (specs != self.schema or list(specs) != list(self.schema)):
            raise ValueError(f"{self.name} is bound to another tree: {_difference(specs, self.schema)}")
        out = Writer()
        floats: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        for name, tensor in tree.items():
            if tensor.dtype not in DTYPES:
                raise ValueError(
                    f"tensor {name!r} has dtype {tensor.dtype}; payloads hold {', '.join(map(str, DTYPES))}"
                )
            kept = tensor.detach().to("cpu").contiguous()
            if tensor.numel() == 1:  # which torch calls contiguous whatever its strides
                kept = kept.new_empty(kept.shape).copy_(kept)
            if self._stages() and tensor.is_floating_point():
                if not _finite(kept):
                    raise ValueError(
                        f"tensor {name!r} holds NaN or infinity, which {self.name} cannot code; look for divergence"
                    )
                floats[name] = kept
            else:
                others[name] = kept
        _write_raw(out, others)
        for index, stage in enumerate(self._stages()):
            rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(self.seed, spawn_key=(index,))))
            floats = stage.write(floats, out, rng)
        _write_raw(out, floats)
        body = out.getvalue()
        for last in self._byte_stages():
            body = last.squeeze(body)
        return seal(self.signature, specs, body, bound=self.schema is not None)

    def decode(self, payload: bytes | memoryview, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
        """See `base.Codec`."""
        specs, source = unseal(payload, self.signature, self.schema, max_bytes)
        for last in self._byte_stages():
            limit = 4 * sum(spec.num_bytes for spec in specs.values()) + 4096 * (len(specs) + 1)
            source = Reader(last.expand(source.raw(source.num_bytes_left), limit))
        stages = self._stages()
        coded = {name: spec for name, spec in specs.items() if stages and spec.dtype.is_floating_point}
        found = _read_raw({name: spec for name, spec in specs.items() if name not in coded}, source)

        def read(index: int, inner_specs: Specs) -> dict[str, Tensor]:
            if index == len(stages):
                return _read_raw(inner_specs, source)
            return stages[index].read(inner_specs, source, lambda rest: read(index + 1, rest))

        found |= read(0, coded)
        source.end()
        for name in coded:
            if not _finite(found[name]):
                raise CodecError(f"tensor {name!r} holds NaN or infinity, which {self.name} never sends")
        return {name: found[name].reshape(spec.shape) for name, spec in specs.items()}

    def _stages(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.stages if isinstance(stage, Stage))

    def _byte_stages(self) -> tuple[ByteStage, ...]:
        return tuple(stage for stage in self.stages if isinstance(stage, ByteStage))


_RANK: dict[Kind, int] = {"reduce": 0, "quantise": 1, "whole": 1, "bytes": 2}


def chain(codecs: Sequence[Codec]) -> Chain:
    """Return the codec that applies codecs in a row.

    Raises:
        ValueError: when they do not go together, with the reason.
    """
    stages: list[Single] = []
    for codec in codecs:
        if isinstance(codec, Chain):
            stages += codec.stages
        elif isinstance(codec, Single):
            stages.append(codec)
        else:
            raise ValueError(f"{codec!r} is not a codec of strategies.compression")
    for before, after in itertools.pairwise(stages):
        written = " then ".join(stage.name for stage in stages)
        if "whole" in (before.kind, after.kind) and after.kind != "bytes":
            whole, other = (before, after) if before.kind == "whole" else (after, before)
            raise ValueError(f"{written}: {whole.name} reduces, quantises and codes at once; drop {other.name}")
        if _RANK[before.kind] == _RANK[after.kind]:
            raise ValueError(f"{written}: {before.name} and {after.name} both {_does(after.kind)}; keep one of them")
        if _RANK[before.kind] > _RANK[after.kind]:
            raise ValueError(
                f"{written}: {after.name} must stand before {before.name}; the order is reduce "
                "(top-k, random-k, powersgd), quantise (fp16, bf16, int8, qsgd, signsgd, terngrad), zstd"
            )
    return Chain(tuple(stages))


def _does(kind: Kind) -> str:
    return "compress bytes" if kind == "bytes" else kind


def _finite(tensor: Tensor) -> bool:
    return not tensor.numel() or all(math.isfinite(float(value)) for value in torch.aminmax(tensor))


def _write_raw(out: Writer, tree: Tree) -> None:
    for tensor in tree.values():
        out.array(tensor.reshape(-1).view(torch.uint8).numpy())


def _read_raw(specs: Specs, source: Reader) -> dict[str, Tensor]:
    return {name: _tensor(source.raw(spec.num_bytes), spec) for name, spec in specs.items()}


def _tensor(data: memoryview, spec: Spec) -> Tensor:
    source = np.frombuffer(data, np.uint8)
    if spec.dtype == torch.bool and int(source.max(initial=0)) > 1:
        raise CodecError("a boolean is neither 0 nor 1")
    tensor = torch.empty(spec.shape, dtype=spec.dtype)
    if source.size:
        tensor.reshape(-1).view(torch.uint8).numpy()[:] = source
    return tensor


def _difference(got: Specs, wanted: Specs) -> str:
    for name in [*wanted, *got]:
        if got.get(name) != wanted.get(name):
            return f"tensor {name!r} is {got.get(name)}, expected {wanted.get(name)}"
    return "the order of the tensors differs"
