"""Consecutive layers of a model in one process: forward and backward of one micro-batch at a time.

Between chunks travels a *carry*: the tensors that the last layer returned, `"0", "1", ...`, and every skip that has
begun and not ended, as `"skip:name"`, which chunks in between hand on. Gradients travel back under the same names.

Recomputation keeps a micro-batch's carry only and runs the layers again before backward. Random layers draw the same
numbers then, because each layer's forward is seeded by (seed, step, micro-batch, layer): dropout does not depend on
the number of stages either. Nothing here knows of other processes; see `transport.py`.

With a `saver` what is kept is in 8 bits (`trainers.activations`): what layers save, and the carry of a micro-batch that
is to be computed again, which then begins with what was decoded. The carry itself is let go.

Source: Huang et al. 2019, arXiv:1811.06965, section 2.3 (recomputation of a cell's composite forward function).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from trainers.activations import Packed, Saver, unpack
from trainers.pipeline import batchnorm, deferred
from trainers.pipeline.entering import Entry
from trainers.pipeline.layers import Layer

Carry = dict[str, Tensor]
Loss = Callable[[Any, Tensor], Tensor]
"""`(what the model returned, targets) -> the loss to be minimised over this micro-batch`, a scalar."""


class LayerFailed(Exception):
    """A layer raised, or took what it cannot; the message names stage, layer and shapes."""


class Run(NamedTuple):
    """What a micro-batch is run under.

    Args:
        microbatch: its number. seed: of its step, from which each layer's is made.
        keep: whether autograd records, so that backward needs no recomputation.
        followed: of what a chunk begins with, the names whose gradients are asked for; None is all, none of a model's
            inputs, whose gradient would cost the first layer a product.
    """

    microbatch: int
    seed: int
    keep: bool
    followed: Collection[str] | None = None


_Edges = dict[str, Tensor | GradientEdge]
"""Where backward begins: the loss, or for each followed output an edge, which does not keep its numbers alive."""


class _Live(NamedTuple):
    """A micro-batch between its forward and its backward."""

    run: Run
    inputs: Carry
    outputs: _Edges | None  # None: to be recomputed
    targets: Tensor | None
    weight: float
    kept: Mapping[str, Packed] = {}  # with a saver: what to begin with again, in place of `inputs`
    entry: Entry | None = None  # with a saver: where backward puts the gradients of the inputs


class Chunk:
    """Consecutive layers, with all that is alive of the micro-batches under way.

    Args:
        layers: in order. position: of this chunk among `num_positions`.
        loss: of the last chunk; None elsewhere.
        split_backward: weight gradients wait for `weigh` (zero bubble).
        precision: `bf16` runs the layers under autocast; None as they are.
        saver: keeps in 8 bits what these layers save.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        position: int,
        num_positions: int,
        *,
        loss: Loss | None = None,
        split_backward: bool = False,
        precision: str | None = None,
        saver: Saver | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.position = position
        self.is_first, self.is_last = position == 0, position == num_positions - 1
        self.modules = nn.ModuleList([layer.module for layer in layers])
        self._draws = [_may_draw(layer.module) for layer in layers]
        self.norms = batchnorm.install(self.modules)
        self._loss = loss
        self.saver = saver
        keep = None if saver is None else saver.pack
        self.splits_backward = split_backward  # weight gradients wait for `weigh`, which reads what backward was given
        self._store = deferred.Store(keep, at_once=not split_backward)
        if split_backward or saver is None:
            deferred.install(self.modules, self._store)
        self._precision = precision
        self._live: dict[int, _Live] = {}

    def inputs(self, microbatch: int) -> Carry:
        """Return the carry that a micro-batch under way began with; of a saver's, nothing: it is let go."""
        return self._live[microbatch].inputs

    @property
    def lets_go(self) -> bool:
        """Whether a carry is not read again, other than in part by autograd, once a training forward is done."""
        return self.saver is not None

    # ------------------------------------------------------------------------------------------------ training

    def forward(self, run: Run, carry: Carry, targets: Tensor | None = None, weight: float = 1.0) -> Carry:
        """Run a micro-batch forward; the last chunk returns `{"loss": ...}`, weighted.

        Args:
            carry: from the chunk before, or the model's inputs as `"0"`.
            targets, weight: for the last chunk: what the loss compares with and is multiplied by.

        Raises:
            LayerFailed: naming the layer.
        """
        if self.saver is not None:
            return self._forward_kept(self.saver, run, carry, targets, weight)
        inputs = self._leaves(carry, run) if run.keep else carry
        with torch.set_grad_enabled(run.keep), self._collecting(run.microbatch):
            outputs = self._outputs(run, inputs, targets, weight)
        self._live[run.microbatch] = _Live(run, inputs, _edges(outputs) if run.keep else None, targets, weight)
        return {name: tensor.detach() for name, tensor in outputs.items()}

    def _forward_kept(self, saver: Saver, run: Run, carry: Carry, targets: Tensor | None, weight: float) -> Carry:
        """As `forward`, with what is kept in 8 bits and the carry let go."""
        kept: dict[str, Packed] = {}
        entry = Entry()
        with torch.set_grad_enabled(run.keep), self._collecting(run.microbatch), self._saving(run):
            if not run.keep:
                kept = self._kept(saver, carry)
            inputs = entry.enter(self._leaves(carry, run)) if run.keep else carry
            outputs = self._outputs(run, inputs, targets, weight)
        edges = _edges(outputs) if run.keep else None
        self._live[run.microbatch] = _Live(run, {}, edges, targets, weight, kept, entry)
        return {name: tensor.detach() for name, tensor in outputs.items()}

    def recompute(self, microbatch: int) -> bool:
        """Do a micro-batch's forward again with autograd, where it was done without; may come before its gradient.

        Returns:
            Whether it was.
        """
        live = self._live[microbatch]
        again = live.outputs is None
        if again and self.saver is not None:
            decoded = {name: unpack(packed) for name, packed in live.kept.items()}
            assert live.entry is not None
            with torch.enable_grad(), self._saving(live.run):
                for name, tensor in decoded.items():
                    self.saver.begin_with(live.kept[name], tensor)
                inputs = live.entry.enter(self._leaves(decoded, live.run))
                outputs = self._outputs(live.run, inputs, live.targets, live.weight)
            self._live[microbatch] = live._replace(kept={}, outputs=_edges(outputs))
        elif again:
            inputs = self._leaves(live.inputs, live.run)
            with torch.enable_grad():
                outputs = self._outputs(live.run, inputs, live.targets, live.weight)
            self._live[microbatch] = live._replace(inputs=inputs, outputs=_edges(outputs))
        return again

    def backward(self, microbatch: int, gradients: Mapping[str, Tensor]) -> Carry:
        """Run a micro-batch backward, add to the parameters' gradients, and return those of the carry it began with.

        Args:
            gradients: of what `forward` returned; empty for the last chunk.
        """
        self.recompute(microbatch)
        live = self._live.pop(microbatch)
        assert live.outputs is not None
        self._store.microbatch = microbatch
        asked = [name for name in live.outputs if self.is_last or name in gradients]
        if asked:  # a first chunk without weights hands on what autograd does not follow
            edges = [live.outputs[name] for name in asked]
            torch.autograd.backward(edges, [gradients.get(name) for name in asked])
        if self.is_first:
            return {}
        if live.entry is not None:
            return live.entry.gradients()
        return {
            name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            for name, tensor in live.inputs.items()
            if tensor.requires_grad
        }

    def weigh(self, microbatch: int) -> None:
        """Compute the weight gradients that backward has put aside."""
        self._store.run(microbatch)

    # --------------------------------------------------------------------------------------------- other passes

    @torch.no_grad()
    def infer(self, carry: Carry) -> Carry:
        """Run the layers in evaluation mode; the last chunk returns what the model returns."""
        self.modules.eval()
        try:
            return self._through(carry, None)
        finally:
            self.modules.train()

    def probe(self, carry: Carry, *, training: bool, followed: Collection[str] | None = None) -> tuple[Carry, Carry]:
        """Run a micro-batch only to see what comes out; nothing is kept and no statistics move.

        Args:
            followed: as of `Run`.

        Returns:
            What it began with, leaves in training, and what came out.
        """
        if not training:
            return carry, self.infer(carry)
        run = Run(0, 0, True, followed)
        leaves = self._leaves(carry, run)
        with torch.enable_grad():
            return leaves, self._through(leaves, run)

    # ------------------------------------------------------------------------------------------------- inside

    def _outputs(self, run: Run, carry: Carry, targets: Tensor | None, weight: float) -> Carry:
        carry = self._through(carry, run)
        if self._loss is None:
            return carry
        assert targets is not None
        with self._autocast(targets.device):
            try:
                loss = self._loss(main(carry), targets)
            except Exception as error:
                shapes = f"{_told(carry.values())} and targets {_told([targets])}"
                raise LayerFailed(f"the loss was given {shapes} and raised {type(error).__name__}: {error}") from error
        if not isinstance(loss, Tensor):
            raise LayerFailed(f"the loss returned {type(loss).__name__}, expected a tensor with one number")
        if loss.dim():
            raise LayerFailed(f"the loss has shape {tuple(loss.shape)}, expected one number a micro-batch")
        return {"loss": loss * weight}

    def _through(self, carry: Carry, run: Run | None) -> Carry:
        """Take a carry through the layers."""
        device = carry["0"].device
        # Leaves refuse by themselves to be changed; what a saver keeps is a copy.
        kept = [] if run is None or self.saver else [x for x in carry.values() if x.is_floating_point() and x.is_leaf]
        num_changes = _num_changes(kept)
        with self._autocast(device):
            for layer, draws in zip(self.layers, self._draws, strict=True):
                if draws and run is not None:
                    _seed(layer_seed(run.seed, run.microbatch, layer.index), device)
                # One tensor and no skip is the rule; going round the dictionaries saves 10 of 25 microseconds a layer.
                plain = len(carry) == 1 and not layer.pop
                arguments = [carry["0"]] if plain else _arguments(layer, carry)
                try:
                    if self.saver is None or run is None:
                        returned = self._call(layer, arguments)
                    else:
                        with self.saver.layer(layer.index, arguments) as keeping:
                            returned = keeping.returned(self._call(layer, arguments), len(layer.stash))
                except Exception as error:
                    raised = f"raised {type(error).__name__}: {error}"
                    raise LayerFailed(f"{layer} was given {_told(arguments)} and {raised}") from error
                if _num_changes(kept) != num_changes:
                    raise LayerFailed(f"{layer}: what its stage was given is changed in place, and may be given again")
                plain = plain and not layer.stash and isinstance(returned, Tensor)
                carry = {"0": returned} if plain else _carried(layer, carry, returned)
        return dict(carry)

    def _call(self, layer: Layer, arguments: Sequence[Tensor]) -> Any:
        return layer.module(*arguments)

    def _leaves(self, carry: Carry, run: Run) -> Carry:
        """Return tensors to begin with."""
        followed = frozenset[str]() if self.is_first else carry.keys() if run.followed is None else run.followed
        return {name: _leaf(tensor, name in followed) for name, tensor in carry.items()}

    def _kept(self, saver: Saver, carry: Carry) -> dict[str, Packed]:
        """Return what is kept of a carry for a second forward."""
        index = self.layers[0].index
        return {name: saver.keep(tensor, _place(name), index) for name, tensor in carry.items()}

    def _saving(self, run: Run) -> Any:
        assert self.saver is not None
        return self.saver.microbatch(run.microbatch, run.seed)

    def _autocast(self, device: torch.device) -> Any:
        if self._precision != "bf16":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)

    @contextmanager
    def _collecting(self, microbatch: int) -> Iterator[None]:
        for norm in self.norms:
            norm.microbatch = microbatch
        try:
            yield
        finally:
            for norm in self.norms:
                norm.microbatch = None


def _may_draw(module: nn.Module) -> bool:
    """Return whether a layer may draw random numbers: all may, but torch's own that are known not to."""
    return any(type(part).__module__ not in _NO_DRAWS for part in module.modules())


_NO_DRAWS = frozenset(
    f"torch.nn.modules.{name}" for name in ("linear", "conv", "batchnorm", "normalization", "pooling", "flatten",
    "container", "sparse", "padding")
)  # fmt: skip
"""Left out are activations, some of which draw (RReLU), and dropout."""


def _arguments(layer: Layer, carry: Mapping[str, Tensor]) -> list[Tensor]:
    given = main(carry)
    return [*(given if isinstance(given, tuple) else (given,)), *(carry[f"skip:{name}"] for name in layer.pop)]


def _told(tensors: Iterable[Tensor]) -> str:
    return ", ".join(f"{list(tensor.shape)} {str(tensor.dtype)[6:]}" for tensor in tensors)


def main(carry: Mapping[str, Tensor]) -> Any:
    """Return what of a carry is no skip, as the layer before returned it: one tensor, or a tuple."""
    values = tuple(tensor for name, tensor in carry.items() if not name.startswith("skip:"))
    return values[0] if len(values) == 1 else values


def _carried(layer: Layer, carry: Carry, returned: Any) -> Carry:
    values = returned if isinstance(returned, tuple) else (returned,)
    for value in values:
        if not isinstance(value, Tensor):
            raise LayerFailed(f"{layer} returned {type(value).__name__}, expected a tensor or a tuple of tensors")
    split = len(values) - len(layer.stash)
    if split < 1:
        raise LayerFailed(f"{layer} returned {len(values)} tensors, expected its output and then {list(layer.stash)}")
    skips = {name: tensor for name, tensor in carry.items() if name.startswith("skip:")}
    for name in layer.pop:
        del skips[f"skip:{name}"]
    skips.update((f"skip:{name}", value) for name, value in zip(layer.stash, values[split:], strict=True))
    return {**{str(index): value for index, value in enumerate(values[:split])}, **dict(sorted(skips.items()))}


def _edges(outputs: Carry) -> _Edges:
    followed = {name: tensor for name, tensor in outputs.items() if tensor.requires_grad}
    return {name: tensor if name == "loss" else get_gradient_edge(tensor) for name, tensor in followed.items()}


def _leaf(tensor: Tensor, followed: bool) -> Tensor:
    tensor = tensor.detach()
    return tensor.requires_grad_() if followed and tensor.is_floating_point() else tensor


def _num_changes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor._version for tensor in tensors)


def _place(name: str) -> str:
    """Return where a first layer gets a tensor of a carry."""
    return name if name.startswith("skip:") else f"in{name}"


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators that a layer on this device draws from; torch.manual_seed asks every backend, in 0.14 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def layer_seed(seed: int, microbatch: int, layer: int) -> int:
    """Return the seed of one layer's forward: splitmix64 over (step's seed, micro-batch, layer).

    numpy's SeedSequence takes 30 microseconds a draw, which for every layer of every micro-batch would be seen.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17.
    """
    value = (seed + 0x9E3779B97F4A7C15 * (1 + microbatch * 65_536 + layer)) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1
