"""What needs torch or the data is checked before anything starts, each problem with the line of its field."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError, Problem
from orchestrator.preparing import Prepared, prepare

FILE = """\
name: x
data:
  name: digits
  partition: {kind: iid, clients: 7}
model:
  name: mlp
strategy:
  client:
    optimizer: {name: sgd, lr: 0.1}
"""

OWN = """\
import numpy as np
import torch

def data(rows=12, *, width=4):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, width)).astype("float32"), np.arange(rows) % 3
    return {"train_x": x, "train_y": y, "test_x": x, "test_y": y}

def model(hidden, input_shape, num_classes):
    return torch.nn.Sequential(torch.nn.Linear(input_shape[0], hidden), torch.nn.Linear(hidden, num_classes))

def narrow(num_classes):
    return torch.nn.Linear(4, num_classes - 1)

def broken(**anything):
    raise RuntimeError("no such weights")

def no_model():
    return 3

number = 3
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An experiment file, with a module `own_code_for_tests` beside it and the current folder there."""
    (tmp_path / "own_code_for_tests.py").write_text(OWN)
    (tmp_path / "broken_code_for_tests.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "ending_code_for_tests.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "exp.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield Path("exp.yaml")
    for name in [name for name in sys.modules if name.endswith("_code_for_tests")]:
        del sys.modules[name]


def ready(file: Path, *overrides: str) -> Prepared:
    return prepare(load_experiment(file, overrides))


def told(file: Path, *overrides: str) -> list[Problem]:
    loaded = load_experiment(file, overrides)
    with pytest.raises(ConfigError) as caught:
        prepare(loaded)
    return list(caught.value.problems)


def test_data_partition_and_model_are_ready(file: Path) -> None:
    prepared = ready(file)
    assert prepared.dataset.name == "digits"
    assert prepared.partition.num_clients == 7
    assert int(prepared.partition.sizes().sum()) == len(prepared.dataset.train_y)
    assert prepared.model(torch.zeros(2, *prepared.dataset.input_shape)).shape == (2, 10)


def test_the_same_seed_gives_the_same_partition_and_weights_and_another_seed_others(file: Path) -> None:
    one, again, other = ready(file), ready(file), ready(file, "seed=1")
    assert np.array_equal(one.partition.order, again.partition.order)
    assert not np.array_equal(one.partition.order, other.partition.order)
    for mine, same, unlike in zip(
        one.model.parameters(), again.model.parameters(), other.model.parameters(), strict=True
    ):
        assert torch.equal(mine, same) and not torch.equal(mine, unlike)


def test_global_random_state_is_left_alone(file: Path) -> None:
    state, torch_state = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    ready(file, "model={name: cnn}")
    assert np.array_equal(np.random.get_state()[1], state) and torch.equal(torch.random.get_rng_state(), torch_state)


def test_own_data_and_model_are_called_with_their_arguments(file: Path) -> None:
    prepared = ready(
        file,
        "data={target: 'own_code_for_tests:data', kwargs: {rows: 30, width: 5}, partition: {kind: iid, clients: 3}}",
        "model={target: 'own_code_for_tests:model', kwargs: {hidden: 6}}",
    )
    assert prepared.dataset.train_x.shape == (30, 5)
    assert [tuple(p.shape) for p in prepared.model.parameters()] == [(6, 5), (6,), (3, 6), (3,)]


@pytest.mark.parametrize(
    ("optimizer", "path", "words"),
    [
        ("{name: sgdd}", ".name", "no optimizer 'sgdd' in torch.optim"),
        ("{name: lbfgs}", ".name", "no optimizer 'lbfgs' in torch.optim"),
        ("{name: adam, momentum: 0.9}", ".momentum", "adam takes no argument 'momentum'"),
        ("{name: sgd, kwargs: {nesterof: true}}", ".kwargs.nesterof", "sgd takes no argument 'nesterof'"),
        ("{name: sgd, kwargs: {nesterov: true}}", "", "sgd refuses its arguments: Nesterov momentum requires"),
        ("{name: adam, kwargs: {betas: [2, 3]}}", "", "adam refuses its arguments: Invalid beta"),
        ("{name: adam, kwargs: {betas: 3}}", "", "adam refuses its arguments"),
        ("{name: lamb, momentum: 0.9}", ".momentum", "lamb takes no argument 'momentum'"),
        ("{name: lamb, kwargs: {clip: [2, 1]}}", "", "clip [2, 1] must be [low, high]"),
        ("{name: lars, kwargs: {exclude: '('}}", "", "nor a regular expression"),
        ("{name: sgd, kwargs: {params: []}}", ".kwargs.params", "sgd takes no argument 'params'"),
    ],
)  # fmt: skip
def test_an_optimizer_that_torch_refuses_is_told(file: Path, optimizer: str, path: str, words: str) -> None:
    [problem] = told(file, f"strategy.client.optimizer={optimizer}")
    assert (problem.where, problem.path) == ("command line", f"strategy.client.optimizer{path}")
    assert words in problem.message


@pytest.mark.parametrize(
    ("target", "words", "hint"),
    [
        ("nowhere_at_all:f", "there is no module 'nowhere_at_all'", "modules are looked for in"),
        ("own_code_for_tests.more:f", "there is no module", "modules are looked for in"),
        ("own_code_for_tests:modle", "own_code_for_tests has no modle", "it has model"),
        ("own_code_for_tests:number", "cannot be called", "it has"),
        ("broken_code_for_tests:f", "nothing_of_this_name", "install what it needs"),
        ("ending_code_for_tests:f", "ended the program", "__main__"),
    ],
)
def test_a_target_that_cannot_be_had_is_told_with_its_line(file: Path, target: str, words: str, hint: str) -> None:
    file.write_text(FILE.replace("  name: mlp\n", f"  target: {target}\n"))
    [problem] = told(file)
    assert (problem.where, problem.path) == ("exp.yaml:6", "model.target")
    assert words in problem.message and hint in problem.hint


def test_arguments_that_a_target_does_not_take_or_lacks_are_told(file: Path) -> None:
    problems = told(
        file,
        "data={target: 'own_code_for_tests:data', kwargs: {row: 3}}",
        "model={target: 'own_code_for_tests:model', kwargs: {}}",
    )
    assert [(problem.path, problem.message) for problem in problems] == [
        ("data.kwargs.row", "the target takes no such argument"),
        ("model.kwargs.hidden", "is missing, and the target needs it"),
    ]
    assert problems[0].hint == "it takes: rows, width"


def test_what_can_be_told_without_the_data_is_told_at_once(file: Path) -> None:
    problems = told(
        file,
        "strategy.client.optimizer.name=x",
        "model={target: 'nowhere_at_all:f'}",
        "cluster={workers: 0, device: cuda}",
    )
    expected = ["strategy.client.optimizer.name", "model.target"] + ["cluster.device"] * (not torch.cuda.is_available())
    assert [problem.path for problem in problems] == expected


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("{target: 'own_code_for_tests:narrow'}", "cannot take a batch"),
        ("{target: 'own_code_for_tests:broken'}", "no such weights"),
        ("{target: 'own_code_for_tests:no_model'}", "returned int"),
        ("{name: cnn, filters: [2, 2, 2, 2, 2]}", "give"),
        ("{name: mlp, hidden: [10000000, 10000000]}", "this machine has"),
    ],
)
def test_a_model_that_does_not_fit_is_told(file: Path, model: str, words: str) -> None:
    [problem] = told(file, f"model={model}")
    assert (problem.where, problem.path) == ("command line", "model")
    assert words in f"{problem.message} {problem.hint}"


def test_a_model_with_too_few_outputs_is_told(file: Path) -> None:
    [problem] = told(
        file,
        "data={target: 'own_code_for_tests:data', partition: {kind: iid, clients: 2}}",
        "model={target: 'own_code_for_tests:narrow'}",
    )
    assert problem.path == "model" and "(2, 2)" in problem.message and "(2, 3)" in problem.message


@pytest.mark.parametrize("clients", [1437, 100_000, 10**12])
def test_more_clients_than_examples_are_told(file: Path, clients: int) -> None:
    examples = len(ready(file).dataset.train_y)
    [problem] = told(file, f"data.partition.clients={max(clients, examples + 1)}")
    assert (problem.where, problem.path) == ("command line", "data.partition.clients")
    assert str(examples) in problem.message


def test_a_limit_beyond_the_data_is_told(file: Path) -> None:
    [problem] = told(file, "data.limit=100000")
    assert problem.path == "data" and "100000" in problem.message


def test_generated_data_beyond_the_memory_is_told(file: Path) -> None:
    [problem] = told(file, "data={name: synthetic, examples: 10000000000, features: 1000}")
    assert problem.path == "data.examples" and "this machine has" in problem.message


def test_a_cohort_larger_than_the_natural_clients_is_told(file: Path, data_folder: Path) -> None:
    [problem] = told(
        file,
        f"data={{name: tiny-shakespeare, folder: {data_folder}, partition: {{kind: column}}}}",
        "model={name: transformer, layers: 1, width: 8}",
        "strategy.algorithm.cohort=100000",
    )
    assert problem.path == "strategy.algorithm.cohort"
    assert "expected at most the" in problem.message


def test_data_and_model_are_told_together(file: Path) -> None:
    problems = told(file, "data.partition.clients=1000000", "model={name: cnn, filters: [2, 2, 2, 2, 2]}")
    assert [problem.path for problem in problems] == ["data.partition.clients", "model"]


def test_missing_data_is_told_with_its_line(tmp_path: Path, file: Path) -> None:
    file.write_text(
        FILE.replace("name: digits", "{name: parquet, path: nothing.parquet, features: x, label: y}")
        .replace("data:\n  {name", "data:\n  {name")
        .replace("\n  partition: {kind: iid, clients: 7}", "")
    )
    [problem] = told(file)
    assert (problem.where, problem.path) == ("exp.yaml:2", "data")
    assert "nothing.parquet" in problem.message


def test_a_truncated_parquet_file_is_told(tmp_path: Path, file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [[0.0, 1.0]] * 50, "y": [0, 1] * 25}), whole)
    data = "data={name: parquet, path: t.parquet, features: x, label: y, partition: {kind: iid, clients: 5}}"
    assert ready(file, data).dataset.num_classes == 2
    whole.write_bytes(whole.read_bytes()[:-20])
    [problem] = told(file, data)
    assert problem.path == "data" and "t.parquet" in problem.message
