"""Experiment files of arbitrary content: what is written is read back, and whatever is wrong ends as a problem."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.config import format_override, load_experiment, to_yaml
from orchestrator.config.document import decode, dump, parse
from orchestrator.config.overrides import apply, read
from orchestrator.config.schema import Experiment
from orchestrator.errors import ConfigError

TRICKY = [
    "on", "yes", "no", "null", "~", "1e-3", "0o17", "0x1F", "1_000", "12:30", ".inf", "2020-01-01", "=", "<<", "- a",
    "a: b", "#", "", " ", "\x85", "\u2028", "\ufeff", "\x00", "\x1b[0m", "'", '"', "%", "@x", "!!int 3", "&a", "*a",
    "\ud800",
]  # fmt: skip
words = st.one_of(st.text(max_size=20), st.sampled_from(TRICKY))
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), words)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)


@settings(deadline=None)
@given(values, st.booleans())
def test_what_is_written_as_yaml_is_read_back_exactly(value: object, flow: bool) -> None:
    document, problems = parse(dump(value, flow=flow), "x")
    assert problems == []
    assert document.value == value and repr(document.value) == repr(value)


@settings(deadline=None)
@given(values)
def test_an_override_that_we_write_sets_exactly_that_value(value: object) -> None:
    laid, problems = read([format_override("model.kwargs.x", value)])
    assert problems == []
    result, touched, problems = apply({}, laid)
    assert problems == [] and touched == [("model", "kwargs", "x")]
    assert repr(result) == repr({"model": {"kwargs": {"x": value}}})


kwargs = st.dictionaries(st.text(min_size=1, max_size=8), values, max_size=4)
experiments = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
        "data": st.fixed_dictionaries({"target": st.just("a.b:c"), "kwargs": kwargs}),
        "model": st.fixed_dictionaries({"target": st.just("a.b:c"), "kwargs": kwargs}),
    },
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "storage": st.fixed_dictionaries({"root": st.text(min_size=1, max_size=8).filter(lambda t: "://" not in t)}),
        "strategy": st.fixed_dictionaries(
            {
                "client": st.fixed_dictionaries(
                    {"optimizer": st.fixed_dictionaries({"lr": st.floats(1e-300, 1e300), "kwargs": kwargs})}
                )
            }
        ),
    },
)


@settings(deadline=None)
@given(experiments)
def test_a_resolved_file_loads_as_the_same_experiment(raw: dict[str, object]) -> None:
    experiment = load_experiment(raw).experiment
    text = to_yaml(experiment)
    document, problems = parse(text, "x")
    assert problems == []
    again = load_experiment(document.value).experiment
    assert repr(again) == repr(experiment)
    assert to_yaml(again) == text


LAUGHS = b"a: &a [x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (97 + n, 97 + n, b", ".join([b"*%c" % (96 + n)] * 9)) for n in range(1, 12)
)


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
@example(data=b"a: &x [*x]")
@example(data=b"a: &x {b: *x}")
@example(data=b"? [a, b]\n: c")
@example(data=b"a: 0x\nb: 0o\nc: 1e")
@example(data=b"a:\n\t- b")
@example(data=b"--- a\n--- b")
@example(data=b"%YAML 9.9\n---\na: b")
@example(data=b"!!python/object/apply:os.system ['true']")
@example(data=b"a: " + b"9" * 5000)
@example(data=b"a: " + b"[" * 3000)
@example(data=LAUGHS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_experiment_or_a_list_of_problems(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    for problem in caught.value.problems:
        assert problem.where.startswith(str(path))
        assert problem.message


@settings(deadline=None)
@given(values)
def test_any_python_value_is_an_experiment_or_a_list_of_problems(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(value)  # type: ignore[arg-type]
    assert all(problem.message for problem in caught.value.problems)


sections = st.sampled_from(list(Experiment.model_fields))
GOOD = {"name": "x", "data": {"name": "digits"}, "model": {"name": "mlp"}}


@settings(deadline=None)
@given(st.dictionaries(sections, values, min_size=1), st.sampled_from([None, *Experiment.model_fields]))
def test_any_value_of_any_section_is_accepted_or_told(given_values: dict[str, object], deeper: str | None) -> None:
    raw = {**GOOD, **given_values}
    if deeper and isinstance(raw.get(deeper), dict):
        raw[deeper] = {**raw[deeper], "name": "parquet", "partition": {"kind": "iid"}, "space": given_values}  # type: ignore[dict-item]
    try:
        load_experiment(raw)
    except ConfigError as error:
        assert error.problems and all(problem.message for problem in error.problems)


FIELDS = [
    "seed", "data", "data.name", "data.partition.kind", "data.partition", "model.hidden.0", "model.hidden", "name.a",
    "search.space.a.b", "search.space", "search.algorithm.name", "strategy.client.optimizer.kwargs.a.b",
    "cluster.resources_per_worker.CPU",
]  # fmt: skip
VALUES = ["1", "{}", "[]", "{a: 1}", "[1]", "null", "{choice: [1]}"]
laid = st.builds("{}={}".format, st.sampled_from(FIELDS), st.text(max_size=12) | st.sampled_from(VALUES))


@settings(deadline=None)
@given(st.lists(st.text(max_size=30) | laid, max_size=4))
def test_any_overrides_are_laid_or_told(overrides: list[str]) -> None:
    try:
        load_experiment(GOOD, overrides)
    except ConfigError as error:
        assert error.problems and all(problem.message for problem in error.problems)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_text_are_told_with_their_line(data: bytes) -> None:
    text, problems = decode(data, "f")
    try:
        expected = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        assert [problem.where for problem in problems] == [f"f:{data[: error.start].count(bytes([10])) + 1}"]
    else:
        assert (text, problems) == (expected, [])
