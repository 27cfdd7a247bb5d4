"""From what pydantic says to what a user needs: what was given, what was expected, what to type next.

Paths in problems are those of the file: they name no union members. One value gets one problem, however many
alternatives it failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.config.document import Path, dump
from orchestrator.config.overrides import COMMAND_LINE, nearest_field
from orchestrator.config.shape import ROOT, Block, Leaf, OneOf, Shape, inside, step
from orchestrator.errors import Problem

Where = Callable[[Path], str]
"""From a path to `file.yaml:12` or `command line`."""

_LONGEST = 70


def problems_of(error: ValidationError, raw: Any, where: Where) -> Iterator[tuple[Path, Problem | None]]:
    """Yield each value at fault with its problem, in the order of the schema.

    None as a problem means that another one, at a path of its own, speaks for it.
    """
    seen: set[Path] = set()
    orphans: dict[Path, list[str]] = {}
    for line in error.errors(include_url=False):
        path, shape = _locate(line["loc"])
        kind = line["type"]
        if kind == "extra_forbidden" and (switch := _switched(path[:-1], raw, where)) and where(path) != COMMAND_LINE:
            orphans.setdefault(switch, []).append(str(path[-1]))
            yield path, None
            continue
        if path in seen:
            continue
        seen.add(path)
        yield path, _problem(kind, line, path, shape, raw, where)
    for switch, keys in orphans.items():
        yield switch, _orphaned(switch, keys, raw, where)


def got(value: Any) -> str:
    """Return a value as a user wrote it, on one line, cut when long."""
    try:
        text = dump(value, flow=True)
    except Exception:  # a Python object that YAML has no words for
        text = repr(value)
    text = repr(value) if isinstance(value, str) else text
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def dotted(path: Iterable[str | int]) -> str:
    """Return a path as typed, odd keys quoted."""
    return ".".join(part if isinstance(part, str) and part.isprintable() and part else repr(part) for part in path)


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the nearest name, or all names when none is near."""
    known = list(known)
    near = difflib.get_close_matches(str(word).lower(), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}" if known else ""


def _locate(loc: tuple[str | int, ...]) -> tuple[Path, Shape | None]:
    """Return the path in the file of pydantic's location, which also names union members, and the shape there."""
    path: list[str | int] = []
    shape: Shape | None = ROOT
    for part in loc:
        if isinstance(shape, OneOf):
            shape = Block(shape.members[str(part)])
        elif isinstance(shape, Leaf) or part == "[key]":
            break
        else:
            path.append(part)
            shape = step(shape, None, part) if shape else None
    return tuple(path), shape


def _problem(kind: str, line: Mapping[str, Any], path: Path, shape: Shape | None, raw: Any, where: Where) -> Problem:
    if kind == "missing":
        expected = shape.expected if shape else "a value"
        return Problem(where(path[:-1]), dotted(path), f"is missing, expected {expected}", _meaning(path, raw))
    if kind == "extra_forbidden":
        return _unknown(path, raw, where)
    value = line["input"]
    if isinstance(shape, OneOf) and kind.startswith("union_tag"):
        return _untagged(shape, value, path, where)
    if isinstance(shape, Block | OneOf) and kind != "value_error":
        message = f"got {got(value)}, expected {shape.expected}"
        return Problem(where(path), dotted(path), message, f"its fields: {', '.join(inside(shape, None))}")
    if kind == "value_error":
        reason = str(line["ctx"]["error"])
        whole = isinstance(shape, Block | OneOf)
        message = reason if whole else f"got {got(value)}, expected {reason}"
        return Problem(where(path), dotted(path), message, "" if whole else _meaning(path, raw))
    expected = shape.expected if shape else str(line["msg"])
    if kind == "too_large" or (kind.startswith("int") and isinstance(value, int | float) and abs(value) > 2**63):
        expected += ", within 64 bits"
    message = f"got {got(value)}, expected {expected}"
    choices = shape.choices if isinstance(shape, Leaf) else ()
    if choices and isinstance(value, str):
        return Problem(where(path), dotted(path), message, did_you_mean(value, choices) if len(choices) > 1 else "")
    if kind == "string_type" and isinstance(value, int | float):
        return Problem(where(path), dotted(path), message, f"quote it to make it text: '{got(value)}'")
    return Problem(where(path), dotted(path), message, _meaning(path, raw))


def _unknown(path: Path, raw: Any, where: Where) -> Problem:
    parent, key = path[:-1], str(path[-1])
    shape, value = _shape_at(parent, raw)
    known = list(inside(shape, value)) if shape else []
    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.6)
    place = f"in {dotted(parent)}" if parent else "at the top of the file"
    message = f"unknown key {key!r}" + (f": {_which(shape, value)} has none such" if _which(shape, value) else "")
    typed = next((field for field in getattr(where, "touched", ()) if field[: len(path)] == path), path)
    if near and where(path) == COMMAND_LINE:
        hint = f"did you mean {dotted((*parent, near[0], *typed[len(path) :]))}?"
    elif near:
        hint = f"did you mean {near[0]!r}?"
    elif where(path) == COMMAND_LINE and (field := nearest_field(dotted(typed), raw)):
        hint = f"did you mean {field}?"
    elif (field := nearest_field(key, raw)) != dotted(path) and field.endswith(f".{key}"):  # there, of another kind
        hint = f"known {place}: {', '.join(known)}; {key!r} belongs at {field}"
    else:
        hint = f"known {place}: {', '.join(known)}"
    return Problem(where(path), dotted(path), message, hint)


def _untagged(shape: OneOf, value: Any, path: Path, where: Where) -> Problem:
    if not isinstance(value, Mapping):
        message = f"got {got(value)}, expected {shape.expected}"
        if shape.key and isinstance(value, str):
            word = (
                value
                if value in shape.members
                else (difflib.get_close_matches(value, shape.members, n=1) or ["..."])[0]
            )
            return Problem(where(path), dotted(path), message, f"write it as a section: {{{shape.key}: {word}}}")
        return Problem(where(path), dotted(path), message, "")
    if shape.key is None:
        message = f"got {got(value)}, expected {shape.expected}"
        return Problem(where(path), dotted(path), message, did_you_mean(next(iter(value), ""), shape.members))
    names = [name for name in shape.members if name != "target"]
    own = " or target: package.module:function" if "target" in shape.members else ""
    here = (*path, shape.key)
    if value.get(shape.key) is None:
        near = difflib.get_close_matches(shape.key, value, n=1, cutoff=0.7)
        hint = f"did you mean {shape.key!r} where it says {near[0]!r}?" if near else f"such as: {shape.key}: {names[0]}"
        message = f"is missing, expected one of {', '.join(names)}{own}"
        return Problem(where(path), dotted(here), message, hint)
    message = f"got {got(value[shape.key])}, expected one of {', '.join(names)}{own}"
    return Problem(where(here), dotted(here), message, did_you_mean(value[shape.key], names))


def _switched(parent: Path, raw: Any, where: Where) -> Path | None:
    """Return the path of the key by which an override made a section of the file another kind of section."""
    shape, value = _shape_at(parent, raw)
    if not isinstance(shape, OneOf) or not isinstance(value, Mapping):
        return None
    keys = [shape.key, "target"] if shape.key else []
    return next(((*parent, key) for key in keys if key in value and where((*parent, key)) == COMMAND_LINE), None)


def _orphaned(switch: Path, keys: list[str], raw: Any, where: Where) -> Problem:
    parent = switch[:-1]
    value = _shape_at(parent, raw)[1]
    listed = ", ".join(f"{key} ({where((*parent, key))})" for key in keys)
    keep = {key: item for key, item in value.items() if key not in keys}
    message = f"{switch[-1]} is now {got(value[switch[-1]])}, which does not have what the file says: {listed}"
    return Problem(
        COMMAND_LINE, dotted(switch), message, f"replace the whole section: {dotted(parent)}='{dump(keep, flow=True)}'"
    )


def _shape_at(path: Path, raw: Any) -> tuple[Shape | None, Any]:
    shape: Shape | None = ROOT
    for part in path:
        shape = step(shape, raw, part) if shape else None
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            raw = None
    return shape, raw


def _which(shape: Shape | None, value: Any) -> str:
    if isinstance(shape, OneOf) and shape.key and isinstance(value, Mapping):
        if shape.key in value:
            return f"{shape.key} {value[shape.key]!r}"
        return "target" if "target" in value else ""
    return ""


def _meaning(path: Path, raw: Any) -> str:
    """Return what the field means, as its description says."""
    for cut in range(len(path), 0, -1):
        shape, value = _shape_at(path[: cut - 1], raw)
        name = str(path[cut - 1])
        models = [shape.model] if isinstance(shape, Block) else []
        if isinstance(shape, OneOf):
            member = shape.member(value)
            models = [member] if member else list(shape.members.values())
        for model in models:
            if name in model.model_fields and model.model_fields[name].description:
                return f"{name}: {model.model_fields[name].description}"
    return ""
