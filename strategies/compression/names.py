"""Codecs by the names that experiment files use."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strategies.compression.base import Codec
from strategies.compression.casting import BF16, FP16, Int8
from strategies.compression.chain import Chain, Single, chain
from strategies.compression.fedzip import FedZip
from strategies.compression.powersgd import PowerSGD
from strategies.compression.qsgd import QSGD
from strategies.compression.randomk import RandomK
from strategies.compression.signsgd import SignSGD
from strategies.compression.terngrad import TernGrad
from strategies.compression.topk import TopK
from strategies.compression.zstd import Zstd

CODECS: Mapping[str, Callable[..., Single]] = {
    kind.name: kind for kind in (FedZip, TopK, RandomK, PowerSGD, QSGD, SignSGD, TernGrad, FP16, BF16, Int8, Zstd)
}
"""Name -> constructor."""


def arguments(name: str) -> tuple[str, ...]:
    """Return the arguments that a codec takes."""
    constructor = _constructor(name)
    assert dataclasses.is_dataclass(constructor)
    return tuple(field.name for field in dataclasses.fields(constructor))


def codec(name: str, **given: Any) -> Codec:
    """Return the codec of a name.

    Raises:
        ValueError: for a name or an argument that is not known, or a value that cannot be; with what is.
    """
    constructor, known = _constructor(name), arguments(name)
    for argument in given:
        if argument not in known:
            raise ValueError(
                f"{name} takes no {argument!r}; it takes {', '.join(known) or 'no arguments'}{_near(argument, known)}"
            )
    try:
        return constructor(**given)
    except TypeError as error:
        raise ValueError(f"{name}: {', '.join(f'{key}={value!r}' for key, value in given.items())}: {error}") from error


def build(entries: Sequence[Mapping[str, Any]]) -> Chain:
    """Return the codec of an experiment file's `compression` list; an empty list sends trees as they are.

    Raises:
        ValueError: see `codec` and `chain`; or an entry without a name.
    """
    for entry in entries:
        if "name" not in entry:
            raise ValueError(f"a codec needs a name, got {dict(entry)!r}; names are {', '.join(CODECS)}")
    return chain([codec(**entry) for entry in entries])


def _constructor(name: str) -> Callable[..., Single]:
    if name not in CODECS:
        raise ValueError(f"no codec is called {name!r}; codecs are {', '.join(CODECS)}{_near(name, tuple(CODECS))}")
    return CODECS[name]


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f". Did you mean {near[0]!r}?" if near else ""
