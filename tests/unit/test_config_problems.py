"""What is wrong with an experiment is told all at once: line and field, what was given and expected, what next."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError, Problem

GOOD: dict[str, Any] = {"name": "x", "data": {"name": "digits"}, "model": {"name": "mlp"}}


def told(source: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_experiment(source)
    return list(caught.value.problems)


def told_of(text: str, tmp_path: Path) -> list[tuple[str, str, str, str]]:
    """The problems of a file, with its folder taken off."""
    path = tmp_path / "exp.yaml"
    path.write_text(text)
    return [(p.where.removeprefix(f"{tmp_path}/"), p.path, p.message, p.hint) for p in told(path)]


def one(changes: Mapping[str, Any]) -> Problem:
    [problem] = told({**GOOD, **changes})
    return problem


def test_everything_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = """\
name: my exp
seed: -1
data:
  name: fashion-mnits
  partition:
    kind: dirichlet
    clients: 0
model: {name: cnn, filter: [32]}
strategy:
  algorithm: {name: fedprox, mu: -1, cohort: -20}
  client:
    batch_size: ten
    optimizer:
      lr: .nan
cluster:
  device: cuda
  resources_per_worker:
    cpu: 1
epochs: 3
"""
    assert [problem[:3] for problem in told_of(text, tmp_path)] == [
        ("exp.yaml:1", "name", "got 'my exp', expected a name of letters, digits, '.', '_' and '-', "
         "at most 100 of them, the first a letter or digit"),
        ("exp.yaml:2", "seed", "got -1, expected a whole number of at least 0"),
        ("exp.yaml:4", "data.name", "got 'fashion-mnits', expected one of digits, mnist, fashion-mnist, "
         "emnist-letters, cifar-10, cifar-10-jpeg, letters, cora, citeseer, pubmed, tiny-shakespeare, synthetic, "
         "parquet, graph-parquet, graph-ogb, sbm, power-law or target: package.module:function"),
        ("exp.yaml:8", "model.filter", "unknown key 'filter': name 'cnn' has none such"),
        ("exp.yaml:10", "strategy.algorithm.cohort", "got -20, expected a whole number above 0 or 'all'"),
        ("exp.yaml:10", "strategy.algorithm.mu", "got -1, expected a number of at least 0"),
        ("exp.yaml:12", "strategy.client.batch_size", "got 'ten', expected a whole number above 0 or 'full'"),
        ("exp.yaml:14", "strategy.client.optimizer.lr", "got .nan, expected a number above 0"),
        ("exp.yaml:16", "cluster.device", "got 'cuda', but cluster.resources_per_worker reserves no GPU"),
        ("exp.yaml:18", "cluster.resources_per_worker.cpu", "unknown resource 'cpu'"),
        ("exp.yaml:19", "epochs", "unknown key 'epochs'"),
    ]  # fmt: skip


def test_what_is_missing_is_told_where_it_belongs(tmp_path: Path) -> None:
    text = "seed: 1\ndata:\n  name: digits\n  partition:\n    kind: dirichlet\n    clients: 5\n"
    assert [problem[:3] for problem in told_of(text, tmp_path)] == [
        ("exp.yaml:1", "name", "is missing, expected a name of letters, digits, '.', '_' and '-', at most 100 of them, "
         "the first a letter or digit"),
        ("exp.yaml:1", "model", "is missing, expected a section whose name is one of logistic, mlp, cnn, bristle-cnn, "
         "resnet, vgg, transformer, vit, gcn, sage, gcnii, resgcn, gat, or with target: package.module:function"),
        ("exp.yaml:4", "data.partition.alpha", "is missing, expected a number above 0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "path", "hint"),
    [
        ({"stratgy": {}}, "stratgy", "did you mean 'strategy'?"),
        ({"strategy": {"client": {"epoch": 1}}}, "strategy.client.epoch", "did you mean 'epochs'?"),
        ({"model": {"name": "mpl"}}, "model.name", "did you mean 'mlp'?"),
        (
            {"data": {"name": "digits", "partition": {"kind": "dirichlett"}}},
            "data.partition.kind",
            "did you mean 'dirichlet'?",
        ),
        (
            {"strategy": {"algorithm": {"weighting": "exampels"}}},
            "strategy.algorithm.weighting",
            "did you mean 'examples'?",
        ),
        ({"strategy": {"algorithm": {"name": "fedpox"}}}, "strategy.algorithm.name", "did you mean 'fedprox'?"),
        ({"strategy": {"algorithm": "scafold"}}, "strategy.algorithm", "write it as a section: {name: scaffold}"),
        (
            {"strategy": {"kind": "peers", "algorithm": "bristel"}},
            "strategy.algorithm",
            "write it as a section: {name: bristle}",
        ),
        ({"strategy": {"aggregator": "krum"}}, "strategy.aggregator", "write it as a section: {name: krum}"),
        (
            {"strategy": {"kind": "local-learning", "rule": {"name": "auglocl"}}},
            "strategy.rule.name",
            "did you mean 'auglocal'?",
        ),
        ({"data": {"nmae": "digits"}}, "data.name", "did you mean 'name' where it says 'nmae'?"),
        ({"data": "digits"}, "data", "write it as a section: {name: digits}"),
        ({"data": "digit"}, "data", "write it as a section: {name: digits}"),
        ({"name": 7}, "name", "quote it to make it text: '7'"),
        ({"search": {"space": {"seed": [1, 2]}}}, "search.space.seed", ""),
        ({"search": {"space": {"seed": {"choise": [1]}}}}, "search.space.seed", "did you mean 'choice'?"),
    ],
)
def test_the_nearest_valid_name_is_told(changes: dict[str, Any], path: str, hint: str) -> None:
    problem = one(changes)
    assert (problem.where, problem.path, problem.hint) == ("config", path, hint)


def test_a_key_in_the_wrong_place_is_told_where_it_belongs() -> None:
    assert "'lr' belongs at strategy.client.optimizer.lr" in one({"strategy": {"client": {"lr": 1}}}).hint


def test_a_key_that_only_another_kind_has_is_not_said_to_belong_where_it_is() -> None:
    hint = one({"strategy": {"kind": "local-learning", "epochs": 1}}).hint
    assert hint.startswith("known in strategy: kind, rule, modules") and "belongs" not in hint


def test_the_meaning_told_is_that_of_the_section_given() -> None:
    hint = one({"strategy": {"kind": "local-learning", "rule": {"name": "dgl", "modules": [1, "a"]}}}).hint
    assert hint == "modules: null: one a worker, cut by cost; each: one a unit; a list: units of each"


@pytest.mark.parametrize(
    "value", [True, False, 0, -3, 1.5, "ten", None, [], {}, float("inf"), float("nan"), 2**64, 10**400, "1e3x"]
)
def test_a_count_is_a_whole_number_above_0(value: Any) -> None:
    problem = one({"strategy": {"algorithm": {"rounds": value}}})
    assert problem.path == "strategy.algorithm.rounds"
    assert "expected a whole number above 0" in problem.message


@pytest.mark.parametrize("value", [3, "3", 3.0])
def test_text_and_floats_that_spell_a_count_are_read(value: Any) -> None:
    loaded = load_experiment({**GOOD, "strategy": {"algorithm": {"rounds": value}}})
    assert loaded.experiment.strategy.algorithm.rounds == 3


@pytest.mark.parametrize("value", [True, 0, -0.1, "fast", None, float("inf"), float("nan"), [0.1]])
def test_a_learning_rate_is_a_finite_number_above_0(value: Any) -> None:
    problem = one({"strategy": {"client": {"optimizer": {"lr": value}}}})
    assert problem.path == "strategy.client.optimizer.lr"
    assert "expected a number above 0" in problem.message


@pytest.mark.parametrize("value", [3, "text", [1], True])
def test_a_section_is_no_single_value(value: Any) -> None:
    for section in ("data", "model", "strategy", "cluster", "search"):
        [problem] = told({**GOOD, section: value})
        assert problem.path == section
        assert "expected a section" in problem.message


def test_a_value_with_alternatives_gets_one_problem() -> None:
    assert one({"data": {"name": "parquet", "path": "x", "label": "y", "features": ["a", 3]}}).message == (
        "got [a, 3], expected text or a list of text, at least 1"
    )


@pytest.mark.parametrize("target", ["mymodule", "my.module:", ":f", "my module:f", "a..b:f", "os.system('x')", "a:b:c"])
def test_a_target_is_a_module_and_a_function(target: str) -> None:
    problem = one({"model": {"target": target}})
    assert problem.path == "model.target"
    assert "expected package.module:function" in problem.message


@pytest.mark.parametrize(("depth", "near"), [(21, "20 or 26"), (9, "8 or 14"), (12, "8 or 14")])
def test_a_resnet_has_6n_plus_2_layers(depth: int, near: str) -> None:
    problem = one({"model": {"name": "resnet", "depth": depth}})
    assert problem.message == f"got {depth}, expected a whole number 6n + 2, such as {near}"


def test_a_long_value_is_cut_and_an_odd_one_escaped() -> None:
    assert len(one({"seed": "x" * 1000}).message) < 200
    assert "\x1b" not in str(one({"seed": "\x1b[2J"}))
    assert "\x1b" not in str(one({"\x1b[2J": 1}))


# ------------------------------------------------------------------------------------------------- the source


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "fashion.yaml").touch()
    [problem] = told(tmp_path / "fashoin.yaml")
    assert (problem.message, problem.hint) == ("does not exist", f"did you mean {tmp_path}/fashion.yaml?")
    [problem] = told(tmp_path / "nowhere" / "x.yaml")
    assert problem.message == f"does not exist, nor does the folder {tmp_path}/nowhere"


def test_a_folder_is_told_with_the_file_inside(tmp_path: Path) -> None:
    [problem] = told(tmp_path)
    assert (problem.message, problem.hint) == (
        "is a folder, expected an experiment file",
        "give an experiment file in YAML",
    )
    (tmp_path / "a.yaml").touch()
    assert told(tmp_path)[0].hint == f"did you mean {tmp_path}/a.yaml?"
    (tmp_path / "manifest.json").touch()
    assert "orchestrator resume" in told(tmp_path)[0].hint


def test_a_binary_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04\n\x80\x02}")
    [problem] = told(path)
    assert (problem.where, problem.path) == (f"{path}:2", "")
    assert problem.message.startswith("is not text: byte 0x80 is not UTF-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty, expected an experiment"),
        ("# nothing\n", "is empty, expected an experiment"),
        ("- a\n- b\n", "holds [a, b], expected an experiment: keys and values"),
        ("hello", "holds 'hello', expected an experiment: keys and values"),
    ],
)
def test_a_file_without_keys_is_told(text: str, message: str, tmp_path: Path) -> None:
    [(where, path, found, _)] = told_of(text, tmp_path)
    assert (where, path, found) == ("exp.yaml:1", "", message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.touch(mode=0o000)
    assert told(path)[0].message == "cannot be read: Permission denied"


def test_an_endless_file_is_told() -> None:
    assert told("/dev/zero")[0].message == "is larger than 10 MB, expected an experiment file"


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000])
def test_an_odd_file_name_is_told(name: str) -> None:
    assert len(told(name)) == 1


@pytest.mark.parametrize("value", [None, 3, ["exp.yaml"], object(), b"exp.yaml"])
def test_a_source_of_another_type_is_told(value: Any) -> None:
    [problem] = told(value)
    assert "expected the path of an experiment file, a mapping or an Experiment" in problem.message


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\r\ndata: {name: digits}\r\nmodel: {name: mlp}\r\n")
    assert load_experiment(path).experiment.name == "x"


def test_problems_of_syntax_and_of_fields_are_told_together(tmp_path: Path) -> None:
    text = "name: x\nname: y\ndata: {name: digits}\nmodel: {name: mlp}\nsed: 1\n"
    assert [problem[:2] for problem in told_of(text, tmp_path)] == [("exp.yaml:2", "name"), ("exp.yaml:5", "sed")]


# --------------------------------------------------------------------------------------------- from Python


def test_a_mapping_may_hold_what_python_has(tmp_path: Path) -> None:
    import numpy as np

    raw = {
        **GOOD,
        "seed": np.int64(3),
        "model": {"name": "mlp", "hidden": (5, np.int32(6))},
        "storage": {"root": tmp_path},
    }
    experiment = orchestrator.load(raw)
    assert (experiment.seed, experiment.model.hidden, experiment.storage.root) == (3, [5, 6], str(tmp_path))


def test_an_object_that_no_file_can_hold_is_told() -> None:
    problem = one({"model": {"target": "a:b", "kwargs": {"activation": lambda x: x}}})
    assert (problem.path, problem.hint) == ("model.kwargs.activation", "name objects as package.module:function")


def test_a_mapping_within_itself_is_told() -> None:
    loop: dict[str, Any] = {}
    loop["a"] = loop
    assert "within itself" in one({"model": {"target": "a:b", "kwargs": loop}}).message


def test_an_experiment_is_a_source_with_overrides() -> None:
    experiment = orchestrator.load(GOOD)
    changed = load_experiment(experiment, ["strategy.client.steps=3", "data.partition.clients=4"])
    assert changed.changed == ["data.partition.clients: 10 -> 4", "strategy.client.steps: null -> 3"]
    assert load_experiment(experiment).experiment == experiment


def test_the_error_survives_pickling_and_says_every_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment({**GOOD, "seed": -1, "sed": 1})
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.problems == caught.value.problems and len(again.problems) == 2
    assert str(again) == str(caught.value)
    assert str(again).count("config: ") == 2
