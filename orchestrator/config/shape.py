"""What an experiment file may look like, read off the schema: for messages, overrides, searches and the reference.

A shape is one of five: a `Block` (a section), `OneOf` (sections told apart by a key), `Items` (a list), `Entries`
(a mapping with free keys) or a `Leaf`. Shapes know nothing of files or lines.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, Discriminator, Tag
from pydantic.fields import FieldInfo

from orchestrator.config.fields import ByName, DottedKeys, Expected
from orchestrator.config.schema import Experiment, by_kind

Path = tuple[str | int, ...]


class Leaf(NamedTuple):
    """A single value. `choices` are the words it may be; `free` says that anything may lie inside it."""

    expected: str
    choices: tuple[str, ...] = ()
    free: bool = False


class Block(NamedTuple):
    """A section with named fields."""

    model: type[BaseModel]
    nullable: bool = False

    @property
    def expected(self) -> str:
        return "a section" + (" or null" if self.nullable else "")


class OneOf(NamedTuple):
    """Sections told apart by `key`, where none is given `default`; by which key is there at all when `key` is None."""

    key: str | None
    members: Mapping[str, type[BaseModel]]
    default: str | None = None

    @property
    def expected(self) -> str:
        if self.key is None:
            return "one of " + ", ".join(f"{{{tag}: ...}}" for tag in self.members)
        names = ", ".join(name for name in self.members if name != "target")
        own = ", or with target: package.module:function" if "target" in self.members else ""
        return f"a section whose {self.key} is one of {names}{own}"

    def member(self, value: Any) -> type[BaseModel] | None:
        """Return the section that a raw value says it is, if it says so."""
        if not isinstance(value, Mapping):
            return None
        if self.key is None:
            return next((self.members[key] for key in value if key in self.members), None)
        tag = value.get(self.key, self.default)
        if "target" in self.members and "target" in value:
            tag = "target"
        return self.members.get(tag) if isinstance(tag, str) else None


class Items(NamedTuple):
    """A list."""

    item: Shape
    expected: str


class Entries(NamedTuple):
    """A mapping with keys of the user's choosing; `dotted` says that dots belong to them."""

    value: Shape
    expected: str
    dotted: bool = False


Shape = Leaf | Block | OneOf | Items | Entries

ROOT = Block(Experiment)


@lru_cache(maxsize=1024)
def fields(model: type[BaseModel]) -> Mapping[str, Shape]:
    """Return the shape of each field of a section."""
    return {
        name: _shape(info.annotation, tuple(info.metadata), info.discriminator)
        for name, info in model.model_fields.items()
    }


def default(model: type[BaseModel], name: str) -> Any:
    """Return a field's default as plain values, or None."""
    info = model.model_fields[name]
    value = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    return value.model_dump() if isinstance(value, BaseModel) else value


def inside(shape: Shape, value: Any) -> Mapping[str, Shape]:
    """Return the named fields of a section; of a union, those of the member that `value` is, else of all."""
    if isinstance(shape, Block):
        return fields(shape.model)
    if isinstance(shape, OneOf):
        member = shape.member(value)
        if member is None and value is None and shape.default is not None:
            member = shape.members[shape.default]
        models = [member] if member else list(shape.members.values())
        return {name: inner for model in reversed(models) for name, inner in fields(model).items()}
    return {}


def step(shape: Shape, value: Any, key: str | int) -> Shape | None:
    """Return the shape one step further in, or None when there is no such place."""
    if isinstance(shape, Items):
        return shape.item if isinstance(key, int) or str(key).isdecimal() else None
    if isinstance(shape, Entries):
        return shape.value
    if isinstance(shape, Leaf):
        return shape if shape.free else None
    return inside(shape, value).get(str(key))


def dotted_fields(shape: Shape = ROOT, prefix: str = "", value: Any = None) -> Iterator[str]:
    """Yield every dotted field there can be, sections included; of a union, those of what `value` is, where it says."""
    seen: set[str] = set()
    for name, inner in inside(shape, value).items():
        here = f"{prefix}{name}"
        held = value.get(name) if isinstance(value, Mapping) else None
        for dotted in (here, *dotted_fields(inner, f"{here}.", held)):
            if dotted not in seen:
                seen.add(dotted)
                yield dotted


# --------------------------------------------------------------------------------------- from types to shapes


def _shape(annotation: Any, metadata: Sequence[Any] = (), discriminator: Any = None) -> Shape:
    metadata = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        for note in inner:
            metadata += note.metadata if isinstance(note, FieldInfo) else [note]
            discriminator = discriminator or (note.discriminator if isinstance(note, FieldInfo) else None)
    discriminator = discriminator or next((note for note in metadata if isinstance(note, Discriminator)), None)
    if discriminator is not None:
        return _union(annotation, discriminator)
    options = [a for a in get_args(annotation) if a is not type(None)] if _is_union(annotation) else [annotation]
    nullable = len(options) < len(get_args(annotation)) if _is_union(annotation) else False
    if len(options) > 1:
        shapes = [_shape(option) for option in options]
        words = [shape.expected for shape in shapes] + ["null"] * nullable
        return Leaf(_any_of(words), tuple(c for shape in shapes if isinstance(shape, Leaf) for c in shape.choices))
    if nullable:
        shape = _shape(options[0], metadata)
        if isinstance(shape, Block):
            return shape._replace(nullable=True)
        return shape if isinstance(shape, OneOf) else shape._replace(expected=f"{shape.expected} or null")
    return _single(annotation, metadata)


def _single(annotation: Any, metadata: list[Any]) -> Shape:
    words = next((note.words for note in metadata if isinstance(note, Expected)), None)
    origin = get_origin(annotation)
    if origin is Literal:
        choices = tuple(str(choice) for choice in get_args(annotation))
        return Leaf(repr(choices[0]) if len(choices) == 1 else f"one of {', '.join(choices)}", choices)
    if origin is list:
        item = _shape(get_args(annotation)[0])
        least = next((note.min_length for note in metadata if isinstance(note, MinLen)), 0)
        listed = f"a list of {_plural(item.expected)}" + (f", at least {least}" if least else "")
        return Items(item, words or listed)
    if origin is dict:
        value = _shape(get_args(annotation)[1])
        dotted = not isinstance(value, Leaf) or any(isinstance(note, DottedKeys) for note in metadata)
        return Entries(value, words or f"a mapping from names to {_plural(value.expected)}", dotted)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Block(annotation)
    if annotation is Any:
        return Leaf(words or "any value", free=True)
    kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return Leaf(words or " ".join([kinds[annotation], *_bounds(metadata)]))


def _union(annotation: Any, discriminator: Any) -> OneOf:
    members: dict[str, type[BaseModel]] = {}
    for option in get_args(annotation):
        tag = next((note.tag for note in get_args(option)[1:] if isinstance(note, Tag)), None)
        model = get_args(option)[0] if tag else option
        tags = [tag] if tag else get_args(model.model_fields[discriminator].annotation)
        members.update((str(name), model) for name in tags)
    if isinstance(discriminator, str):
        return OneOf(discriminator, members)
    if discriminator.discriminator is by_kind:
        return OneOf("kind", members, next(iter(members)))
    names = getattr(discriminator.discriminator, "__self__", None)
    if isinstance(names, ByName):
        return OneOf("name", members, names.default)
    return OneOf(None, members)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _bounds(metadata: list[Any]) -> list[str]:
    words = []
    least = any(isinstance(note, Ge) for note in metadata)
    for note in metadata:
        if isinstance(note, Gt) and not least:
            words.append(f"above {note.gt}")
        elif isinstance(note, Ge):
            words.append(f"of at least {note.ge}")
        elif isinstance(note, Lt):
            words.append(f"below {note.lt}")
        elif isinstance(note, Le):
            words.append(f"at most {note.le}")
    return [" and ".join(words)] if words else []


def _plural(words: str) -> str:
    for one, many in (("a whole number", "whole numbers"), ("a number", "numbers"), ("any value", "values")):
        words = words.replace(one, many)
    return words


def _any_of(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
