"""Reading YAML with the place of every value, by the rules of YAML 1.2: only true and false are booleans.

`on`, `yes` and `off` stay text, `1e-3` is a number, a key given twice is an error, tags build nothing. Keys are
always text. Left out: merge keys (`<<`) and several documents in one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from orchestrator.errors import Problem

Path = tuple[str | int, ...]

_MOST_NODES = 100_000
_MOST_DIGITS = 1000
_LONGEST_BYTES = 10_000_000
_PREFIX = "tag:yaml.org,2002:"


class Document(NamedTuple):
    """What a file holds: plain values, and the line of every key and list item, counted from 1."""

    value: Any
    lines: Mapping[Path, int]


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2 (its core schema)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads, quoting whatever YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Quote and escape what does not print: PyYAML folds some such characters into blanks."""
    return dumper.represent_scalar(f"{_PREFIX}str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)

for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_PREFIX + _tag, re.compile(rf"^(?:{_pattern})$"), _first)


def decode(data: bytes, name: str) -> tuple[str, list[Problem]]:
    """Return the text of a file, or the problem with it."""
    if len(data) > _LONGEST_BYTES:
        return "", [Problem(name, "", "is larger than 10 MB, expected an experiment file", "give a YAML file")]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"is not text: byte {data[error.start]:#04x} is not UTF-8, expected an experiment file in YAML"
        return "", [Problem(f"{name}:{line}", "", message, "save the file as UTF-8 text")]
    return text, []


def parse(text: str, name: str) -> tuple[Document, list[Problem]]:
    """Return a document and what is wrong with it: syntax, keys given twice, tags.

    Args:
        name: what to call the text in problems, such as its file's name.
    """
    nothing = Document(None, {})
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        return nothing, [_syntax(error, name)]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"holds the control character {error.character:#04x}, expected text"
        return nothing, [Problem(f"{name}:{line}", "", message, "is this a YAML file?")]
    except RecursionError:
        return nothing, [Problem(name, "", "is nested too deeply to be read", "expected at most a few levels")]
    if node is None:
        return nothing, []
    reader = _Reader(name)
    try:
        value = reader.read(node, ())
    except (_TooMuch, RecursionError):
        message = "grows beyond all bounds through its anchors and aliases"
        return nothing, [Problem(f"{name}:{node.start_mark.line + 1}", "", message, "write the values out")]
    return Document(value, {(): node.start_mark.line + 1, **reader.lines}), reader.problems


def dump(value: Any, *, flow: bool = False) -> str:
    """Return values as YAML that `parse` reads back exactly; `flow` gives one line, such as `{a: [1, 2]}`."""
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9, default_flow_style=flow or None
    )
    return text.removesuffix("...\n").rstrip("\n") if flow else text


class _TooMuch(Exception):
    pass


class _Reader:
    """Turns nodes into values, noting lines and problems on the way."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []

    def read(self, node: yaml.Node, path: Path) -> Any:
        self._count += 1
        if self._count > _MOST_NODES:
            raise _TooMuch
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
            return dict(self._pairs(node, path))
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag.startswith(_PREFIX):
            kind = node.tag.removeprefix(_PREFIX)
            try:
                return _SCALARS[kind](node.value)
            except KeyError:
                pass
            except ValueError as error:
                self._problem(node, path, f"cannot be read as {kind}: {error}", "")
                return None
        self._problem(
            node, path, f"has the tag {node.tag.replace(_PREFIX, '!!')!r}", "leave tags out: write plain values"
        )
        return None

    def _pairs(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(
                    key_node, path, "has a list or mapping as a key", "keys are names: quote it if it is text"
                )
                continue
            here = (*path, key_node.value)
            line = key_node.start_mark.line + 1
            if here in self.lines:
                self._problem(
                    key_node, here, f"is given twice, first in line {self.lines[here]}", "keep one of the two"
                )
                continue
            self.lines[here] = line
            yield key_node.value, self.read(value_node, here)

    def _problem(self, node: yaml.Node, path: Path, message: str, hint: str) -> None:
        where = f"{self._name}:{node.start_mark.line + 1}"
        self.problems.append(Problem(where, ".".join(map(str, path)), message, hint))


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too long")
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
    return sign * int(digits if base == 10 else digits[2:], base)


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if text[-1].isalpha() else float(text)


_SCALARS = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _whole,
    "float": lambda text: _float(text.lower()),
    "str": lambda text: text,
}


def _syntax(error: yaml.MarkedYAMLError, name: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    reason = error.problem or "cannot be read"
    if "'\\t'" in reason:
        return Problem(where, "", "a tab cannot indent YAML", "replace the tab by spaces")
    if reason.startswith("but found another document"):
        return Problem(where, "", "a second document begins here, expected one", "give each experiment its own file")
    context = f" {error.context}" if error.context else ""
    begun = error.context_mark
    line = f" (begun in line {begun.line + 1})" if begun and mark and begun.line != mark.line else ""
    hint = "a value that holds ': ', '#' or begins with one of @%`&*!|>{}[] must be quoted" if mark else ""
    return Problem(where, "", f"is not valid YAML: {reason}{context}{line}", hint)
