"""Combinations that cannot be run: each is told with the field to change and what to type, before anything starts."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError, Problem

DIGITS = {"name": "digits", "partition": {"kind": "iid", "clients": 20}}
DIRICHLET = {"kind": "dirichlet", "clients": 4, "alpha": 1, "min_size": 8}
PARQUET = {"name": "parquet", "path": "t.parquet", "features": "x", "label": "y"}


def told(**sections: Any) -> list[Problem]:
    raw = {"name": "x", "data": DIGITS, "model": {"name": "mlp"}, **sections}
    try:
        load_experiment(raw)
    except ConfigError as error:
        return list(error.problems)
    return []


def paths(**sections: Any) -> list[str]:
    return [problem.path for problem in told(**sections)]


def federated(**fields: Any) -> dict[str, Any]:
    return {"kind": "federated", **fields}


@pytest.mark.parametrize(
    ("algorithm", "optimizer", "expected"),
    [
        ("scaffold", {"lr": 0.1, "weight_decay": 0.1}, []),
        ("scaffold", {"momentum": 0.9}, ["strategy.client.optimizer.momentum"]),
        ("scaffold", {"name": "adam"}, ["strategy.client.optimizer.name"]),
        ("fednova", {"name": "SGD", "momentum": 0.9}, []),
        ("fednova", {"name": "adamw"}, ["strategy.client.optimizer.name"]),
        ("fednova", {"kwargs": {"nesterov": True}, "momentum": 0.9}, ["strategy.client.optimizer.kwargs"]),
        ("afa-cs", {"name": "adam"}, []),
    ],
)
def test_rules_that_read_gradients_off_steps_need_steps_they_can_read(
    algorithm: str, optimizer: dict[str, Any], expected: list[str]
) -> None:
    assert paths(strategy=federated(algorithm={"name": algorithm}, client={"optimizer": optimizer})) == expected


@pytest.mark.parametrize(("cohort", "fits"), [(1, True), (20, True), ("all", True), (21, False)])
def test_a_cohort_is_no_larger_than_the_population(cohort: Any, fits: bool) -> None:
    problems = told(strategy=federated(algorithm={"cohort": cohort}))
    assert [problem.path for problem in problems] == ([] if fits else ["strategy.algorithm.cohort"])
    assert all(problem.hint == "strategy.algorithm.cohort=20, or cohort: all" for problem in problems)


def test_a_client_trains_for_epochs_or_steps() -> None:
    assert paths(strategy=federated(client={"steps": 5})) == []
    assert paths(strategy=federated(client={"epochs": 5})) == []
    assert paths(strategy=federated(client={"epochs": 1, "steps": 5})) == []
    assert paths(strategy=federated(client={"epochs": 2, "steps": 5})) == ["strategy.client.steps"]


@pytest.mark.parametrize(
    ("data", "at_fault"),
    [
        ({"name": "digits", "partition": {"kind": "column"}}, True),
        ({"name": "tiny-shakespeare", "partition": {"kind": "column"}}, False),
        ({"name": "tiny-shakespeare", "partition": {"kind": "dirichlet", "clients": 3, "alpha": 1}}, True),
        ({"name": "tiny-shakespeare", "partition": {"kind": "shards", "clients": 3}}, True),
        ({"target": "a:b", "partition": {"kind": "column"}}, False),
        ({**PARQUET, "partition": {"kind": "column"}}, True),
        ({**PARQUET, "partition": {"kind": "column"}, "client": "user"}, False),
    ],
)
def test_a_partition_suits_the_data(data: dict[str, Any], at_fault: bool) -> None:
    model = {"name": "transformer"} if data.get("name") == "tiny-shakespeare" else {"name": "mlp"}
    assert paths(data=data, model=model) == (["data.partition.kind"] if at_fault else [])


@pytest.mark.parametrize(
    ("data", "at_fault"),
    [
        ({"name": "digits", "limit": 10, "partition": {"kind": "iid", "clients": 11}}, True),
        ({"name": "digits", "limit": 11, "partition": {"kind": "iid", "clients": 11}}, False),
        ({"name": "synthetic", "examples": 5, "partition": {"kind": "iid", "clients": 6}}, True),
        ({"name": "digits", "limit": 30, "partition": {"kind": "shards", "clients": 11, "shards_per_client": 3}}, True),
        ({"name": "digits", "limit": 30, "partition": DIRICHLET}, True),
        ({"name": "digits", "limit": 32, "partition": DIRICHLET}, False),
    ],
)  # fmt: skip
def test_there_are_examples_for_every_client(data: dict[str, Any], at_fault: bool) -> None:
    assert paths(data=data) == (["data.partition.clients"] if at_fault else [])


def test_a_limit_is_no_more_than_what_is_generated() -> None:
    assert paths(data={"name": "synthetic", "examples": 50, "limit": 51}) == ["data.limit"]


@pytest.mark.parametrize(
    ("data", "model", "at_fault"),
    [
        ({"name": "digits"}, "cnn", False),
        ({"name": "digits"}, "transformer", True),
        ({"name": "cora"}, "resnet", True),
        ({"name": "synthetic", "kind": "images", "features": 12}, "cnn", False),
        ({"name": "synthetic"}, "cnn", True),
        ({"name": "tiny-shakespeare"}, "mlp", True),
        ({"name": "tiny-shakespeare"}, "transformer", False),
        ({**PARQUET, "shape": [1, 8, 8]}, "cnn", False),
        ({**PARQUET}, "cnn", True),
        ({"target": "a:b"}, "cnn", False),
    ],
)
def test_a_model_suits_the_data(data: dict[str, Any], model: str, at_fault: bool) -> None:
    assert paths(data=data, model={"name": model}) == (["model.name"] if at_fault else [])


@pytest.mark.parametrize(
    "address", ["local", "auto", "ray://head:10001", "10.0.0.1:6379", "ray://[::1]:10001", "a-b.c_d:1"]
)
def test_an_address_of_a_cluster_is_read(address: str) -> None:
    assert paths(cluster={"address": address}) == []


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("http://head:8265", "that is a job server's address: orchestrator submit EXP --address http://head:8265"),
        ("locl", "did you mean 'local'?"),
        ("head", "did you mean head:6379?"),
        ("ray://head", "did you mean ray://head:10001?"),
        ("ray://", "such as: ray://head:10001 or head:6379"),
        ("head:99999", "such as: ray://head:10001 or head:6379"),
        ("head:port", "such as: ray://head:10001 or head:6379"),
        ("head:0", "such as: ray://head:10001 or head:6379"),
        ("a b:1", "such as: ray://head:10001 or head:6379"),
    ],
)
def test_what_is_no_address_is_told(address: str, hint: str) -> None:
    [problem] = told(cluster={"address": address})
    assert (problem.path, problem.hint) == ("cluster.address", hint)


def test_no_workers_and_a_cluster_contradict_each_other() -> None:
    assert paths(cluster={"workers": 0}) == []
    assert paths(cluster={"workers": 0, "address": "auto"}) == ["cluster.workers"]


def test_cuda_needs_gpus_reserved() -> None:
    assert paths(cluster={"device": "cuda"}) == ["cluster.device"]
    assert paths(cluster={"device": "cuda", "resources_per_worker": {"CPU": 1, "GPU": 0.5}}) == []
    assert paths(cluster={"device": "cuda", "workers": 0}) == []


@pytest.mark.parametrize(
    ("resources", "hint"),
    [
        ({"cpu": 1}, "did you mean 'CPU'?"),
        ({"num_gpus": 1}, "did you mean 'GPU'?"),
        ({"Memory": 1e9}, "did you mean 'memory'?"),
        ({"GPU": 1.5}, "cluster.resources_per_worker.GPU=1"),
        ({"CPU": 1e-9}, "cluster.resources_per_worker.CPU=1"),
        ({"CPU": 1e30}, "cluster.resources_per_worker.CPU=1"),
        ({"object_store_memory": 1e9}, "known: CPU, GPU, memory, or your own"),
        ({"": 1}, "known: CPU, GPU, memory, or your own"),
    ],
)
def test_what_cannot_be_reserved_is_told(resources: dict[str, float], hint: str) -> None:
    [problem] = told(cluster={"resources_per_worker": resources})
    assert problem.path.startswith("cluster.resources_per_worker.")
    assert problem.hint == hint


def test_resources_of_ones_own_can_be_reserved() -> None:
    assert (
        paths(cluster={"resources_per_worker": {"CPU": 0.5, "GPU": 2, "memory": 1e9, "accelerator_type:A100": 0.1}})
        == []
    )


@pytest.mark.parametrize(
    "storage", ["ck", "/ck", "~/ck", "file:///ck", "s3://b/ck?region=x", "gs://b/ck", "abfss://c@a/x"]
)
def test_a_place_for_checkpoints_is_read(storage: str) -> None:
    assert paths(checkpoint={"storage": storage}) == []


@pytest.mark.parametrize(
    ("storage", "near"), [("S3://b/ck", "s3"), ("s3a://b/ck", "s3"), ("file2:/ck", "file"), ("http://h/ck", None)]
)
def test_an_unknown_file_system_is_told(storage: str, near: str | None) -> None:
    [problem] = told(checkpoint={"storage": storage})
    assert problem.path == "checkpoint.storage"
    assert problem.hint == f"did you mean {near}://?" if near else problem.hint.startswith("known: a path, or file://")
    assert paths(data={**PARQUET, "path": storage}) == ["data.path"]
    assert paths(data={**PARQUET, "test_path": storage}) == ["data.test_path"]


def test_run_directories_are_in_a_folder() -> None:
    assert paths(storage={"root": "s3://bucket/runs"}) == ["storage.root"]


def test_a_place_for_mlflow_that_can_never_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths(tracking={"uri": "mlruns"}) == ["tracking.uri"]
    assert paths(tracking={"uri": "mlruns", "enabled": False}) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://x")
    [problem] = told()
    assert (problem.where, problem.path) == ("environment", "MLFLOW_TRACKING_URI")


def test_a_combination_is_not_told_when_one_of_its_fields_is_told_already() -> None:
    assert paths(
        strategy=federated(algorithm={"cohort": 50}), data={**DIGITS, "partition": {"kind": "iid", "clients": 0}}
    ) == ["data.partition.clients"]
    assert paths(data={"name": "nowhere"}, model={"name": "transformer"}, cluster={"address": "x"}) == [
        "data.name",
        "cluster.address",
    ]


# ---------------------------------------------------------------------------------------------------- searches

LR = "strategy.client.optimizer.lr"


def search(space: Any, strategy: Any = None, evaluate: Any = None, **fields: Any) -> list[Problem]:
    return told(search={"space": space, **fields}, strategy=strategy or {}, evaluate=evaluate or {})


@pytest.mark.parametrize(
    "space",
    [
        {LR: {"loguniform": [1e-4, 1]}},
        {LR: {"uniform": [0.1, 1]}, "model.hidden.0": {"randint": [5, 50]}},
        {"strategy.client.batch_size": {"choice": [8, "full"]}},
        {"model": {"choice": [{"name": "mlp", "hidden": [5]}, {"name": "logistic"}]}},
        {"strategy.algorithm.cohort": {"grid": [5, 10, 20, "all"]}},
        {"data.partition.clients": {"randint": [1, 5]}, "seed": {"grid": [0, 1]}},
        {"strategy.client.optimizer.kwargs.nesterov": {"choice": [True, False]}},
        {"strategy.client.steps": {"randint": [1, 5]}},
    ],
)
def test_a_search_over_valid_values_is_read(space: Any) -> None:
    assert search(space) == []


@pytest.mark.parametrize(
    ("space", "path", "words"),
    [
        ({"strategy.client.optimizer.learning": {"choice": [1]}}, "", "no such field"),
        ({"lr": {"choice": [1]}}, "", "no such field"),
        ({"a..b": {"choice": [1]}}, "", "expected a dotted field"),
        ({"model.hidden.3": {"choice": [1]}}, "", "the list has 1 items"),
        ({LR: {"choice": [0.1, -1, "x"]}}, "choice.1", "got -1, expected a number above 0"),
        ({LR: {"uniform": [0, 1]}}, "uniform.0", "got 0.0, expected a number above 0"),
        ({"strategy.client.batch_size": {"uniform": [1, 64]}}, "uniform", "expected a whole number above 0"),
        ({"strategy.algorithm.cohort": {"choice": [5, 21]}}, "choice.1", "expected at most the 20 clients"),
        ({"strategy.algorithm.cohort": {"randint": [5, 50]}}, "randint.1", "expected at most the 20 clients"),
        ({"data.partition.kind": {"choice": ["iid", "dirichlet"]}}, "choice.1", "data.partition.alpha: is missing"),
        ({"model": {"choice": [{"name": "mlp"}, {"name": "cnnn"}]}}, "choice.1", "model.name: got 'cnnn'"),
        ({"name": {"choice": ["a"]}}, "", "is the same for all trials"),
        ({"search.trials": {"choice": [1]}}, "", "is the same for all trials"),
        ({"cluster.workers": {"choice": [1]}}, "", "is the same for all trials"),
    ],
)
def test_a_candidate_that_is_no_valid_value_is_told(space: dict[str, Any], path: str, words: str) -> None:
    field = next(iter(space))
    problem = search(space)[0]
    assert problem.path == f"search.space.{field}" + (f".{path}" if path else "")
    assert words in problem.message


@pytest.mark.parametrize(
    ("domain", "path"),
    [
        ({"uniform": [2, 1]}, "uniform"),
        ({"uniform": [1]}, "uniform"),
        ({"loguniform": [0, 1]}, "loguniform.0"),
        ({"randint": [1.5, 3]}, "randint.0"),
        ({"choice": []}, "choice"),
        ({"choice": [1], "grid": [1]}, "grid"),
        ({}, ""),
    ],
)
def test_a_domain_that_is_none_is_told(domain: Any, path: str) -> None:
    [problem] = search({LR: domain})
    assert problem.path == f"search.space.{LR}" + (f".{path}" if path else "")


def test_an_empty_space_is_told() -> None:
    assert [problem.path for problem in search({})] == ["search.space"]


def test_whole_numbers_in_an_interval_are_told_how() -> None:
    [problem] = search({"strategy.client.batch_size": {"uniform": [1, 64]}})
    assert problem.hint == "for whole numbers use randint: [1, 64]"


def test_a_metric_is_one_that_runs_record() -> None:
    [problem] = search({LR: {"choice": [0.1]}}, metric="accuracy")
    assert (problem.path, problem.hint) == ("search.metric", "did you mean 'test/accuracy'?")


@pytest.mark.parametrize(
    ("algorithm", "more", "expected"),
    [
        ({"name": "asha", "grace_rounds": 10}, {}, ["search.algorithm.grace_rounds"]),
        ({"name": "asha", "grace_rounds": 9}, {}, []),
        ({"name": "asha", "grace_rounds": 2}, {"evaluate": {"every": 3}}, ["evaluate.every"]),
        ({"name": "asha", "grace_rounds": 2}, {"evaluate": {"every": 3}, "metric": "train/loss"}, []),
        ({"name": "pbt", "interval_rounds": 10}, {}, ["search.algorithm.interval_rounds"]),
        ({"name": "pbt"}, {"trials": 1}, ["search.trials"]),
        ({"name": "pbt"}, {"space": {LR: {"grid": [0.1]}}}, [f"search.space.{LR}.grid"]),
        ({"name": "pbt"}, {"space": {"model.dropout": {"choice": [0.1]}}}, ["search.space.model.dropout"]),
        ({"name": "pbt"}, {}, []),
    ],
)
def test_a_search_algorithm_suits_the_search(algorithm: Any, more: dict[str, Any], expected: list[str]) -> None:
    found = search(**{"space": {LR: {"choice": [0.1, 0.2]}}, "algorithm": algorithm, **more})
    assert [problem.path for problem in found] == expected


def test_optuna_is_told_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else real(name, *rest)
    )
    [problem] = search({LR: {"choice": [0.1]}}, algorithm={"name": "optuna"})
    assert (problem.path, problem.hint) == ("search.algorithm.name", "pip install 'orchestrator[optuna]'")


def test_a_problem_of_the_experiment_is_not_told_again_for_every_candidate() -> None:
    problems = told(
        search={"space": {LR: {"choice": [0.1, 0.2, 0.3]}}}, strategy=federated(algorithm={"cohort": 21})
    )  # fmt: skip
    assert [problem.path for problem in problems] == ["strategy.algorithm.cohort"]
