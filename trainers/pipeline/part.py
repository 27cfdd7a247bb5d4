"""One rank's part of a model: its layers as chunks, and every tensor of theirs by its name in the whole model.

Every rank builds the whole model from the seed and keeps its own layers, so that nothing is shipped and names, which
checkpoints use, know nothing of stages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from strategies.pipeline import Placement
from trainers.pipeline.chunk import Chunk
from trainers.pipeline.layers import Chain, Layer
from trainers.pipeline.ties import Ties

C = TypeVar("C", bound=Chunk)


class Part(Generic[C]):
    """The layers of one stage.

    Args:
        whole: the model. layers: how many each position has. placement: which positions each stage has.
        make: makes a chunk of a position's layers. device: where they go.

    Attributes:
        names: every parameter and buffer of the whole model, in its order.
        own: its parameters, in the model's order; a tied one once for each use here.
        floats, counters: what of this part travels, floating-point and integer: the first use of each, here.
        is_first_use: of each of those, whether the model's first use of it is here.
        ties, copies: which layers and stages share a parameter, and the copies here by layer.
        firsts: parameters whose first use is here, each once, with their place among `names`.
    """

    def __init__(
        self,
        whole: Chain,
        layers: Sequence[int],
        placement: Placement,
        stage: int,
        make: Callable[[list[Layer], int], C],
        device: torch.device,
    ) -> None:
        if sum(layers) != len(whole.layers):
            raise ValueError(f"layers {layers} are {sum(layers)}, the model has {len(whole.layers)}")
        self.names = list(whole.uses)
        tied = whole.tied()
        shared = {use.layer for uses in tied.values() for use in uses}
        starts = [sum(layers[:position]) for position in range(len(layers) + 1)]
        owner = {index: p for p in range(len(layers)) for index in range(starts[p], starts[p + 1])}
        self._modules: dict[int, nn.Module] = {}
        self.chunks: list[C] = []
        for position in placement.positions(stage):
            mine: list[Layer] = []
            for layer in whole.layers[starts[position] : starts[position + 1]]:
                module = copy.deepcopy(layer.module) if layer.index in shared else layer.module
                self._modules[layer.index] = module.to(device)
                mine.append(layer._replace(module=self._modules[layer.index]))
            self.chunks.append(make(mine, position))
        self.ties: Ties = {
            name: [(use.layer, placement.stage(owner[use.layer])) for use in u] for name, u in tied.items()
        }
        self.own: list[tuple[str, nn.Parameter]] = []
        self.floats: dict[str, Tensor] = {}
        self.counters: dict[str, Tensor] = {}
        self.copies: dict[str, dict[int, nn.Parameter]] = {}
        self.is_first_use: dict[str, bool] = {}
        self._index(whole)
        own = dict(reversed(self.own))
        self.firsts = [
            (place, own[name]) for place, name in enumerate(self.names) if name in own and self.is_first_use[name]
        ]

    def _index(self, whole: Chain) -> None:
        tied = self.ties
        for name, uses in whole.uses.items():
            for place, use in enumerate(uses):
                if use.layer not in self._modules:
                    continue
                tensor = _find(self._modules[use.layer], use.local)
                if isinstance(tensor, nn.Parameter):
                    self.own.append((name, tensor))
                    if name in tied:
                        self.copies.setdefault(name, {})[use.layer] = tensor
                (self.floats if tensor.is_floating_point() else self.counters).setdefault(name, tensor)
                self.is_first_use.setdefault(name, place == 0)

    @property
    def trained(self) -> list[nn.Parameter]:
        """Its parameters that are trained."""
        return [parameter for _, parameter in self.own if parameter.requires_grad]


def _find(module: nn.Module, local: str) -> Tensor:
    owner, _, name = local.rpartition(".")
    return getattr(module.get_submodule(owner), name)  # type: ignore[no-any-return]
