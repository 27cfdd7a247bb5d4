"""YAML as experiment files read it: YAML 1.2 scalars, the line of every value, and problems with their place."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.config.document import dump, parse


def read(text: str) -> Any:
    document, problems = parse(text, "exp.yaml")
    assert problems == []
    return document.value


def told(text: str) -> list[tuple[str, str, str]]:
    return [(problem.where, problem.path, problem.message) for problem in parse(text, "exp.yaml")[1]]


@pytest.mark.parametrize(
    "word", ["on", "off", "yes", "no", "y", "n", "On", "NO", "12:30:45", "1_000", "2026-01-01", "0b1", "nope"]
)
def test_words_that_yaml_1_1_takes_for_something_else_stay_text(word: str) -> None:
    assert read(f"a: {word}") == {"a": word}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("1e-3", 1e-3), ("1E5", 1e5),
        (".5", 0.5), ("5.", 5.0), ("-7", -7), ("+7", 7), ("007", 7), ("0o17", 15), ("0xff", 255), ("'1'", "1"),
        (".inf", math.inf), ("-.inf", -math.inf), ('"true"', "true"), ("[1, a]", [1, "a"]), ("{b: 1e3}", {"b": 1e3}),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = read(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(read("a: .nan")["a"])


def test_keys_are_always_text() -> None:
    assert read("{1: a, true: b, on: c, 1e3: d}") == {"1": "a", "true": "b", "on": "c", "1e3": "d"}


def test_every_key_and_item_has_its_line() -> None:
    document, _ = parse("a: 1\nb:\n  c: [1,\n    2]\n  d:\n    - x\n    - {e: 1}\n", "exp.yaml")
    assert document.lines == {
        (): 1, ("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0): 3, ("b", "c", 1): 4, ("b", "d"): 5,
        ("b", "d", 0): 6, ("b", "d", 1): 7, ("b", "d", 1, "e"): 7,
    }  # fmt: skip


def test_a_key_given_twice_is_told_with_both_lines() -> None:
    assert told("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n") == [
        ("exp.yaml:4", "b.c", "is given twice, first in line 3"),
        ("exp.yaml:5", "a", "is given twice, first in line 1"),
    ]


def test_a_tab_is_told_with_line_and_column() -> None:
    assert told("a:\n\tb: 1\n") == [("exp.yaml:2:1", "", "a tab cannot indent YAML")]


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a: {b: 1\nc: 2\n", "exp.yaml:2:2", "begun in line 1"),
        ("a: 'open\nb: 1\n", "exp.yaml:3:1", "unexpected end of stream"),
        ("a: 1\n b: 2\n", "exp.yaml:2:3", "mapping values are not allowed here"),
        ("a: @x\n", "exp.yaml:1:4", "cannot start any token"),
        ("a: *x\n", "exp.yaml:1:4", "undefined alias"),
        ("a: 1\n---\nb: 2\n", "exp.yaml:2:1", "a second document begins here"),
    ],
)
def test_bad_syntax_is_told_with_line_and_column(text: str, where: str, words: str) -> None:
    [(found, path, message)] = told(text)
    assert (found, path) == (where, "")
    assert words in message


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!mine", "!!timestamp", "!!binary"])
def test_tags_build_nothing_and_are_told(tag: str) -> None:
    [(where, path, message)] = told(f"x: 1\na: {tag} 'true'\n")
    assert (where, path) == ("exp.yaml:2", "a")
    assert "tag" in message


@pytest.mark.parametrize("text", ["? [a, b]\n: 1", "{? {a: 1} : 2}"])
def test_a_key_that_is_no_name_is_told(text: str) -> None:
    assert [message for _, _, message in told(text)] == ["has a list or mapping as a key"]


def test_control_characters_are_told() -> None:
    assert told("a: 1\nb: \x07\n") == [("exp.yaml:2", "", "holds the control character 0x07, expected text")]


def test_a_number_of_many_digits_is_told_rather_than_read() -> None:
    [(where, path, message)] = told(f"a: {'9' * 5000}")
    assert (where, path) == ("exp.yaml:1", "a")
    assert "5000 digits" in message


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: *x}"])
def test_a_value_that_holds_itself_is_told(text: str) -> None:
    assert len(told(text)) == 1


def test_aliases_are_read_and_a_flood_of_them_is_told() -> None:
    assert read("a: &x {b: 1}\nc: *x\n") == {"a": {"b": 1}, "c": {"b": 1}}
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    assert "beyond all bounds" in told(bomb)[0][2]


def test_deep_nesting_is_told() -> None:
    assert "nested too deeply" in told("a: " + "[" * 5000)[0][2]


@pytest.mark.parametrize(
    "text", ["on", "1e-3", "null", "", "a: b", "# x", " lead", "'", "0o7", "2026-01-01", "\x85", "é", "\n"]
)
def test_text_that_looks_like_something_else_is_quoted_when_written(text: str) -> None:
    assert read(dump({"a": text})) == {"a": text}
    assert read(f"a: {dump(text, flow=True)}") == {"a": text}
