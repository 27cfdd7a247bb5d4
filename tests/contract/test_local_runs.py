"""Local learning as a run: the bits of the serial program for every rule and number of workers, cut and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.life import Trial
from orchestrator.run import resume_run
from strategies.local import RULES
from tests.contract.local_runs import STEPS, dataset, equal, flat, named, serially, settings
from trainers.decoupled.inline import InlineReplay, InlineWorkers
from trainers.decoupled.settings import build

TAKES_MODULES = ("auglocal", "dgl", "predsim")


def rule_of(name: str, modules: int) -> dict[str, Any]:
    return {"name": name, **({"modules": modules} if name in TAKES_MODULES else {})}


def config(root: Path, **strategy: Any) -> dict[str, Any]:
    return {
        "name": "local",
        "seed": 5,
        "data": {"target": "tests.contract.local_runs:data"},
        "model": {"target": "tests.contract.local_runs:toy"},
        "strategy": {
            "kind": "local-learning", "modules": 3, "steps": 9, "batch_size": 7,
            "optimizer": {"name": "adamw", "lr": 0.01}, **strategy,
        },
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 2},
        "evaluate": {"every": 3, "batch_size": 6},
        "storage": {"root": str(root)},
    }  # fmt: skip


def state(run: Any) -> dict[str, torch.Tensor]:
    from orchestrator.checkpoints import CheckpointStore

    newest = CheckpointStore(run.run_dir / "checkpoints", 3).newest()
    trees = {"model": newest.model, **newest.server}
    return {f"{tree}/{name}": tensor for tree, tensors in trees.items() for name, tensor in tensors.items()}


def figures(run: Any, *scopes: str) -> list[tuple[int, str, float]]:
    rows = run.history().to_pylist()
    return [(row["step"], row["name"], row["value"]) for row in rows if row["scope"] in scopes]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_every_rule_on_any_number_of_workers_is_the_serial_program(name: str, workers: int) -> None:
    given = settings((), rule_of(name, workers))
    built = build(given, dataset())
    made = len(built.modules)
    given = given._replace(shares=(*[1] * (workers - 1), made - workers + 1))
    states, losses, accuracy = serially(given)
    run = InlineWorkers(given, dataset())
    told = [run.step(number)["train/loss"] for number in range(1, STEPS + 1)]
    assert told == losses
    assert run.evaluate(STEPS)["test/accuracy"] == accuracy
    mine, theirs = flat(run.export()), named(given, states)
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    assert all(name in dict(built.model.state_dict()) for name in mine.keys() - theirs.keys())


@pytest.mark.parametrize("noise", [None, {"eta": 0.01, "gamma": 0.55}])
def test_several_modules_of_a_worker_learn_as_apart(noise: dict[str, float] | None) -> None:
    rule = {"name": "auglocal", "depth": 1, "modules": "each"}
    ends = []
    for shares in ((5,), (2, 3), (1, 1, 1, 1, 1)):
        run = InlineWorkers(settings(shares, rule, clip_value=0.1, gradient_noise=noise), dataset())
        for number in range(1, STEPS + 1):
            run.step(number)
        ends.append(flat(run.export()))
    assert equal(ends[0], ends[1]) and equal(ends[0], ends[2])


def test_checkpoints_name_the_models_own_tensors_and_what_modules_have_beside_it() -> None:
    given = settings((1, 1), {"name": "auglocal", "depth": 1, "modules": 2})
    built, run = build(given, dataset()), InlineWorkers(given, dataset())
    run.step(1)
    trees = run.export()
    floats = [name for name, tensor in built.model.state_dict().items() if tensor.is_floating_point()]
    assert sorted(trees["model"]) == sorted(floats)
    assert {name.split(".")[1] for name in trees["auxiliary"]} == {"0"}
    trained = {name for name, _ in built.model.named_parameters()}
    assert trained <= trees["optimizer.momentum_buffer"].keys()
    assert trees["optimizer.momentum_buffer"].keys() - trained <= trees["auxiliary"].keys()


EACH = {"name": "dgl", "modules": "each"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return orchestrator.run(config(tmp_path_factory.mktemp("whole"), rule=EACH), quiet=True)


@pytest.mark.parametrize("change", [[], ["strategy.modules=2", "strategy.queue=1"]])
def test_a_run_that_is_cut_and_resumed_ends_with_the_bits_of_one_that_is_not(
    whole: Any, tmp_path: Path, change: list[str]
) -> None:
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 4)
    cut = orchestrator.run(config(tmp_path, rule=EACH), quiet=True, trial=trial)
    assert cut.step == 4
    resumed = resume_run(cut.run_dir, overrides=change, quiet=True)
    assert resumed.step == 9 and equal(state(resumed), state(whole))
    assert figures(resumed, "train", "test") == figures(whole, "train", "test")
    assert {"auxiliary", "optimizer.exp_avg", "counters", "model"} == {name.split("/")[0] for name in state(whole)} - {
        "optimizer.exp_avg_sq",
        "optimizer.step",
    }


def test_the_report_of_a_run_has_each_modules_loss_and_memory(whole: Any) -> None:
    told = {name for _, name, _ in figures(whole, "modules")}
    assert told == {f"{what}_{module}" for what in ("loss", "saved_bytes") for module in range(5)}
    page = (whole.run_dir / "report.html").read_text()
    assert all(text in page for text in ("Loss of each module", "worker 2", "Rule dgl, lossless", "kept for backward"))
    assert (whole.run_dir / "timeline.trace.json").exists()
    assert len(figures(whole, "train")) == 9 and [s for s, n, _ in figures(whole, "test") if n == "loss"] == [
        0,
        3,
        6,
        9,
    ]


def test_another_number_of_modules_is_refused_where_it_is_another_run(tmp_path: Path) -> None:
    short = orchestrator.run(config(tmp_path, steps=1), quiet=True)
    with pytest.raises(orchestrator.ResumeError, match=r"auxiliary networks.*one for each of the 3 modules"):
        resume_run(short.run_dir, overrides=["strategy.modules=2"], quiet=True)


def test_an_asynchronous_run_in_one_process_is_cut_and_resumed_with_the_same_bits(tmp_path: Path) -> None:
    changes = {"regime": "asynchronous", "buffer": 2, "slowdown": {1: 3.0}, "max_reuse": 1}
    straight = orchestrator.run(config(tmp_path / "a", **changes), quiet=True)
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 4)
    cut = orchestrator.run(config(tmp_path, **changes), quiet=True, trial=trial)
    resumed = resume_run(cut.run_dir, quiet=True)
    assert equal(state(resumed), state(straight))
    assert figures(resumed, "train", "test") == figures(straight, "train", "test")
    told = {name for _, name, _ in figures(straight, "workers")}
    assert {"staleness_1", "reused_2", "unused_1"} <= told


@pytest.mark.parametrize("slowdown", [(1.0, 1.0, 1.0), (1.0, 4.0, 1.0), (4.0, 1.0, 1.0)])
def test_asynchronous_workers_do_their_quota_each_whoever_is_slow(slowdown: tuple[float, ...]) -> None:
    rule = {"name": "auglocal", "depth": 1, "modules": 3}
    given = settings((1, 1, 1), rule, regime="asynchronous", buffer=2, quota=4, steps=8, slowdown=slowdown, queue=1)
    run, ahead = InlineReplay(given, dataset()), []
    for number in range(1, 9):
        run.step(number)
        ahead.append([worker.num_steps - number for worker in run.workers])
    assert ahead[3] == ahead[7] == [0, 0, 0]
    assert all(abs(lead) < 4 for leads in ahead for lead in leads) and any(any(leads) for leads in ahead)


def test_an_asynchronous_run_without_speed_differences_still_is_not_the_serial_program() -> None:
    given = settings((1, 1), {"name": "auglocal", "depth": 1, "modules": 2}, regime="asynchronous", queue=1)
    run = InlineReplay(given, dataset())
    for number in range(1, STEPS + 1):
        run.step(number)
    mine, theirs = flat(run.export()), named(given, serially(given)[0])
    differ = {name for name in theirs if not torch.equal(mine[name], theirs[name])}
    assert differ and all(not name.startswith("auxiliary.0") for name in differ)


@pytest.mark.parametrize(
    ("strategy", "path", "message"),
    [
        ({"modules": 9}, "strategy.modules", "modules must be from 1 to"),
        ({"rule": {"name": "dgl", "modules": 2}}, "strategy.modules", "3 processes for the 2 modules that dgl makes"),
        ({"rule": {"name": "dgl", "modules": [1, 1, 9]}}, "strategy.rule.modules", "must have 5 units together"),
        ({"rule": {"name": "auglocal", "depth": 1, "min_depth": 2}}, "strategy.rule", "1 <= min_depth <= depth"),
        ({"rule": {"name": "auglocal", "wide": 1}}, "strategy.rule.wide", "unknown key"),
        ({"rule": {"name": "auglokal"}}, "strategy.rule.name", "did you mean .auglocal."),
        ({"batch_size": 45}, "strategy.batch_size", "at most the 44 examples"),
        ({"max_reuse": 2}, "strategy.max_reuse", "a lossless run has no ring buffer"),
        ({"slowdown": {1: 2.0}}, "strategy.slowdown", "does not depend on speed"),
        ({"slowdown": {7: 2.0}, "regime": "asynchronous"}, "strategy.slowdown", "expected 0 to 2"),
        ({"queue": 2, "regime": "asynchronous"}, "strategy.queue", "a ring buffer, not a queue"),
        ({"optimizer": {"name": "sgdd"}}, "strategy.optimizer.name", "no optimizer"),
        ({"replicas": {3: 2}}, "strategy.replicas", "worker 3, expected 0 to 2"),
        ({"replicas": {1: 2}, "rule": {"name": "predsim"}}, "strategy.replicas", "does not learn by the mean"),
        ({"replicas": {1: 2}, "regime": "asynchronous"}, "strategy.replicas", "would have different batches"),
        ({"replicas": {1: 2}, "memory": {"activations": "int8"}}, "strategy.replicas", "other ranges of activations"),
        ({"replicas": {1: 4}}, "strategy.replicas", "fewer than 2 examples"),
        ({"replicas": {1: 0}}, "strategy.replicas.1", "a whole number above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_told_with_its_field(tmp_path: Path, strategy: Any, path: str, message: str) -> None:
    with pytest.raises(orchestrator.ConfigError, match=message) as caught:
        orchestrator.run(config(tmp_path, **strategy), quiet=True)
    assert path in [problem.path for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("data", {"name": "sbm"}, "is a graph, but a local-learning strategy trains on rows"),
        ("data", {"name": "tiny-shakespeare"}, "text to be predicted"),
        ("data", {"name": "digits", "partition": {"kind": "iid", "clients": 3}}, "local learning has none"),
        ("model", {"name": "gcn"}, "aggregates over a whole graph"),
        ("model", {"name": "logistic"}, "at least 2 units"),
        ("model", {"name": "mlp", "pretrain": {"data": {"name": "digits"}, "freeze": "^0"}}, "own loss"),
        ("cluster", {"workers": 5}, "each of the 3 modules is one process"),
        ("cluster", {"workers": 3, "device": "cuda"}, "through gloo"),
    ],
)
def test_what_cannot_be_combined_with_local_learning_is_refused(tmp_path, section, value, message) -> None:
    given = {**config(tmp_path), "model": {"name": "mlp"}, section: value}
    with pytest.raises(orchestrator.ConfigError, match=message):
        orchestrator.run(given, quiet=True)


def test_a_module_that_raises_is_named_with_its_step(tmp_path: Path) -> None:
    given = config(tmp_path, modules=2, rule={"name": "dgl"})
    given["model"]["target"] = "tests.contract.local_runs:breaking"
    with pytest.raises(orchestrator.WorkerError, match=r"module 1, at step 5 with h \[7, 8\], raised .*patience"):
        orchestrator.run(given, quiet=True)


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(orchestrator.WorkerError, match=r"diverged at step \d+: module 0 has loss") as caught:
        orchestrator.run(config(tmp_path, optimizer={"name": "sgd", "lr": 1e30}), quiet=True)
    assert "clip_norm" not in str(caught.value) and "strategy.optimizer.lr" in str(caught.value)
