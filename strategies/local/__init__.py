"""Rules of local learning by the names that experiment files use; no gradient crosses from one module to another.

    rule("auglocal", depth=3).modules(units(model), num_classes=10, input_shape=(3, 32, 32), seed=7)

A rule's file has a `build(**its own arguments) -> LocalRule`; a row below makes it known.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from strategies.local.auglocal import build as auglocal
from strategies.local.base import Carry, LocalModule, LocalRule
from strategies.local.counter_current import build as counter_current
from strategies.local.dgl import build as dgl
from strategies.local.forward_forward import build as forward_forward
from strategies.local.noprop import build as noprop
from strategies.local.phyll import build as phyll
from strategies.local.predsim import build as predsim
from strategies.local.serial import predict, train_batch
from strategies.local.tpsgd import build as tpsgd
from strategies.local.units import units

__all__ = ["RULES", "Carry", "LocalModule", "LocalRule", "predict", "rule", "train_batch", "units"]

RULES: Mapping[str, Callable[..., LocalRule]] = {
    "auglocal": auglocal,
    "counter-current": counter_current,
    "dgl": dgl,
    "forward-forward": forward_forward,
    "noprop": noprop,
    "phyll": phyll,
    "predsim": predsim,
    "tpsgd": tpsgd,
}
"""Name -> function that binds a rule's own arguments."""


def rule(name: str, **arguments: Any) -> LocalRule:
    """Return a rule by name, with its own arguments bound.

    Raises:
        ValueError: for a name, an argument or a value that is none; with what is.
    """
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no rule of local learning is named {name!r}{meant} Known: {', '.join(sorted(RULES))}")
    taken = inspect.signature(RULES[name]).parameters
    for argument in arguments:
        if argument not in taken:
            raise ValueError(f"{name}: unknown argument {argument!r}; it takes {', '.join(taken) or 'no arguments'}")
    for argument, parameter in taken.items():
        if parameter.default is inspect.Parameter.empty and argument not in arguments:
            raise ValueError(f"{name}: {argument} is missing")
    return RULES[name](**arguments)
