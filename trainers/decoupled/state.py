"""A worker's part of what a checkpoint holds: its modules after one and the same batch.

    model             parameters and floating-point buffers of the model, under its own names
    auxiliary         the same of what modules have beside the model, as `auxiliary.K.NAME` of module K
    counters          integer buffers of both
    optimizer.SLOT    what the optimizers remember of each parameter, under these names
    memory.*          ranges of activations that are kept in 8 bits, by module and place

Names say nothing about workers. Tensors of the model that no module has (NoProp leaves the head out) are the first
worker's, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from strategies.local import LocalModule
from trainers.pipeline.state import Trees, remember, remind


class Holding:
    """The tensors of some modules by their names in checkpoints.

    Args:
        modules: on their device. names: of each, own name -> name in checkpoints. optimizers: of each.
        rest: tensors of the model that no module has, by name, where this worker keeps them.
    """

    def __init__(
        self,
        modules: Sequence[LocalModule],
        names: Sequence[Mapping[str, str]],
        optimizers: Sequence[Optimizer],
        rest: Mapping[str, Tensor],
    ) -> None:
        self._optimizers = optimizers
        self._parameters = [
            [(named[name], parameter) for name, parameter in module.named_parameters()]
            for module, named in zip(modules, names, strict=True)
        ]
        self._tensors: dict[str, Tensor] = dict(rest)
        for module, named in zip(modules, names, strict=True):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                self._tensors[named[name]] = tensor

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return the trees; tensors share the modules' memory."""
        trees: dict[str, dict[str, Tensor]] = {"model": {}, "auxiliary": {}, "counters": {}}
        for name, tensor in self._tensors.items():
            trees[_tree(name, tensor)][name] = tensor.detach()
        for optimizer, parameters in zip(self._optimizers, self._parameters, strict=True):
            for name, parameter in parameters:
                remember(optimizer, name, parameter, trees)
        return trees

    @torch.no_grad()
    def restore(self, trees: Trees) -> None:
        """Take this worker's part out of the whole state; what modules have beside the model may be missing."""
        for name, tensor in self._tensors.items():
            tree = _tree(name, tensor)
            if tree == "model" or name in trees.get(tree, {}):
                tensor.copy_(trees[tree][name])
        for optimizer, parameters in zip(self._optimizers, self._parameters, strict=True):
            for name, parameter in parameters:
                remind(optimizer, name, parameter, trees)


def rest(model: nn.Module, names: Sequence[Mapping[str, str]]) -> dict[str, Tensor]:
    """Return the tensors of the model that no module has."""
    taken = {name for named in names for name in named.values()}
    everything = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor for name, tensor in everything if name not in taken}


def _tree(name: str, tensor: Tensor) -> str:
    if not tensor.is_floating_point():
        return "counters"
    return "auxiliary" if name.startswith("auxiliary.") else "model"
