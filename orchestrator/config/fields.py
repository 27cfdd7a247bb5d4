"""The kinds of value that experiment files hold: numbers with bounds, names, targets, and the base of sections.

A number is never read from `true`, and never exceeds 64 bits; text such as `"0.1"` is read as the number it spells.
`Expected` puts a kind into words, for messages and for the reference of fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

LARGEST = 2**63 - 1
"""The largest whole number a field takes: what 64 bits hold."""


class Section(BaseModel):
    """A part of an experiment file: immutable, and unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, use_attribute_docstrings=False
    )


class Expected(NamedTuple):
    """How a kind of value is put into words, when its type and bounds do not say it."""

    words: str


class ByName(NamedTuple):
    """Tells sections apart: by `name`, a user's own by `target` where there are such.

    Args:
        default: the name of a section that says none. own: whether users may give something of their own.
    """

    default: str | None = None
    own: bool = False

    def tag(self, value: Any) -> str | None:
        """Return which section it is, raw or built; what a `Discriminator` is given."""
        if isinstance(value, BaseModel):
            value = {field: getattr(value, field) for field in ("name", "target") if hasattr(value, field)}
        if not isinstance(value, Mapping):
            return None
        name = "target" if self.own and "target" in value else value.get("name", self.default)
        return name if isinstance(name, str) else None


class DottedKeys(NamedTuple):
    """Says of a mapping that its keys may be dotted fields, which an override does not take apart."""


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "true and false are not numbers")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise PydanticCustomError("too_large", "numbers beyond 64 bits are not read")
    return value


_Number = BeforeValidator(_number)

PositiveInt = Annotated[int, _Number, Gt(0)]
NonNegativeInt = Annotated[int, _Number, Ge(0)]
AtLeastTwo = Annotated[int, _Number, Ge(2)]
AnyInt = Annotated[int, _Number]
AnyFloat = Annotated[float, _Number]
PositiveFloat = Annotated[float, _Number, Gt(0)]
NonNegativeFloat = Annotated[float, _Number, Ge(0)]
Rate = Annotated[float, _Number, Ge(0), Lt(1)]
"""At least 0 and below 1: dropout, momentum, a part that may be nothing."""
Fraction = Annotated[float, _Number, Gt(0), Lt(1)]
"""Strictly between 0 and 1."""
UpToHalf = Annotated[float, _Number, Gt(0), Le(0.5)]

Text = Annotated[str, MinLen(1), Expected("text")]
ExperimentName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"),
    Expected("a name of letters, digits, '.', '_' and '-', at most 100 of them, the first a letter or digit"),
]
Target = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"),
    Expected("package.module:function"),
]
Columns = Annotated[list[Text], MinLen(1)]
Resources = dict[str, PositiveFloat]
