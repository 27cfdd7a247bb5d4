"""Models by name, one file each, and users' own; all built from a seed, with sizes computed from the data's shape."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from trainers.models import bristle_cnn, cnn, logistic, mlp, own, resnet, transformer, vgg, vit
from trainers.models.base import ModelError
from trainers.models.freezing import freeze
from trainers.models.graphs import gat, gcn, gcnii, resgcn, sage
from trainers.models.graphs.trial import check_on_graph
from trainers.models.trial import check

if TYPE_CHECKING:
    from trainers.data.base import Dataset

__all__ = ["GRAPH_NAMES", "NAMES", "ModelError", "build", "build_for", "check", "check_on_graph", "shapes"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "logistic": logistic.build,
    "mlp": mlp.build,
    "cnn": cnn.build,
    "bristle-cnn": bristle_cnn.build,
    "resnet": resnet.build,
    "vgg": vgg.build,
    "transformer": transformer.build,
    "vit": vit.build,
    "gcn": gcn.build,
    "sage": sage.build,
    "gcnii": gcnii.build,
    "resgcn": resgcn.build,
    "gat": gat.build,
}
NAMES = tuple(_BUILDERS)
GRAPH_NAMES = ("gcn", "sage", "gcnii", "resgcn", "gat")
"""Models of the vertices of a graph: they are called with features and a view."""
_ELSEWHERE = ("name", "dtype", "target", "kwargs", "pretrain", "local_rule", "weights")


def build(
    section: Mapping[str, Any],
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    whole_outputs: bool = False,
) -> nn.Module:
    """Return the model that the `model` section of an experiment names, in its dtype, on the CPU.

    The same arguments give the same bits, and torch's global generator is left as it was.

    Args:
        section: the section as a plain mapping: `name` and its fields, or `target` and `kwargs`; `dtype`; `pretrain`,
            of which only what it freezes counts here (`trainers.pretraining` has the rest); `local_rule`, where
            clients train by one.
        input_shape, num_classes: of the data set.
        whole_outputs: of a user's own model, leave outputs with `logits` as they are; else the logits are the output.

    Raises:
        ModelError: when the model is unknown, or does not fit the data or its own settings.
    """
    fields = {key: value for key, value in section.items() if key not in _ELSEWHERE}
    dtype = getattr(torch, section.get("dtype", "float32"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if section.get("target"):
            kwargs = section.get("kwargs") or {}
            model = own.build(section["target"], kwargs, input_shape=tuple(input_shape), num_classes=num_classes)
            if not whole_outputs and own.may_have_logits(model):
                model.register_forward_hook(own.logits)
        else:
            name = str(section.get("name"))
            if name not in _BUILDERS:
                near = difflib.get_close_matches(name, NAMES, n=1)
                hint = (
                    f"did you mean {near[0]}?" if near else f"models are {', '.join(NAMES)}, or target: module:function"
                )
                raise ModelError(f"unknown model {name!r}", hint)
            model = _BUILDERS[name](tuple(input_shape), num_classes, **fields)
    model = model.to(dtype)
    pattern = (section.get("pretrain") or {}).get("freeze")
    if pattern is not None:
        freeze(model, pattern)
    if section.get("local_rule"):
        from trainers.local_rule import attach

        attach(model, section["local_rule"], input_shape=input_shape, num_classes=num_classes, seed=seed)
    return model


class Drawn(Protocol):
    """Which model, and from which seed: what the settings of all gangs have."""

    @property
    def model(self) -> Mapping[str, Any]: ...
    @property
    def model_seed(self) -> int: ...


def build_for(settings: Drawn, dataset: Dataset, *, whole_outputs: bool = False) -> nn.Module:
    """Return the model of a gang, as of `build`."""
    shape, classes, seed = dataset.input_shape, dataset.num_classes, settings.model_seed
    return build(settings.model, input_shape=shape, num_classes=classes, seed=seed, whole_outputs=whole_outputs)


def shapes(section: Mapping[str, Any], dataset: Dataset, *, seed: int) -> nn.Module | None:
    """Return the model on torch's meta device, which has shapes and no memory, checked against the data.

    None: the model is a user's own, and cannot be built or called like that.

    Raises:
        ModelError: when it does not fit the data or its own settings.
    """
    try:
        with torch.device("meta"):
            model = build(section, input_shape=dataset.input_shape, num_classes=dataset.num_classes, seed=seed)
        if any(not tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            model = model.to("meta")
        check(model, dataset, section)
    except ModelError:
        if section.get("target"):
            return None
        raise
    return model
