"""Models by name, one file each, and users' own; all built from a seed, with sizes computed from the data's shape."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from trainers.models import bristle_cnn, cnn, logistic, mlp, own, resnet, transformer, vgg
from trainers.models.base import ModelError
from trainers.models.freezing import freeze
from trainers.models.graphs import gat, gcn, gcnii, resgcn, sage
from trainers.models.graphs.trial import check_on_graph
from trainers.models.trial import check

__all__ = ["GRAPH_NAMES", "NAMES", "ModelError", "build", "check", "check_on_graph"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "logistic": logistic.build,
    "mlp": mlp.build,
    "cnn": cnn.build,
    "bristle-cnn": bristle_cnn.build,
    "resnet": resnet.build,
    "vgg": vgg.build,
    "transformer": transformer.build,
    "gcn": gcn.build,
    "sage": sage.build,
    "gcnii": gcnii.build,
    "resgcn": resgcn.build,
    "gat": gat.build,
}
NAMES = tuple(_BUILDERS)
GRAPH_NAMES = ("gcn", "sage", "gcnii", "resgcn", "gat")
"""Models of the vertices of a graph: they are called with features and a view."""
_ELSEWHERE = ("name", "dtype", "target", "kwargs", "pretrain", "local_rule")


def build(section: Mapping[str, Any], *, input_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """Return the model that the `model` section of an experiment names, in its dtype, on the CPU.

    The same arguments give the same bits, and torch's global generator is left as it was.

    Args:
        section: the section as a plain mapping: `name` and its fields, or `target` and `kwargs`; `dtype`; `pretrain`,
            of which only what it freezes counts here (`trainers.pretraining` has the rest); `local_rule`, where
            clients train by one.
        input_shape, num_classes: of the data set.

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
