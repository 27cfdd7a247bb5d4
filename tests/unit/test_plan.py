"""A plan: where workers go, what they hold, what a round sends; computed without starting anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cluster import inventory
from cluster.inventory import Node
from orchestrator.cli import main
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError, PlacementError
from orchestrator.planning import Plan, plan
from orchestrator.preparing import prepare
from trainers import modules, wire

ROOT = Path(__file__).parents[2]
RAW: dict[str, Any] = {
    "name": "x",
    "data": {"name": "synthetic", "examples": 600, "features": 64, "classes": 10,
             "partition": {"kind": "iid", "clients": 6}},
    "model": {"name": "mlp", "hidden": [200]},
    "strategy": {"algorithm": {"cohort": 3, "rounds": 4}, "client": {"epochs": 2, "batch_size": 30}},
}  # fmt: skip
PARAMETERS = 64 * 200 + 200 + 200 * 10 + 10


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine of 4 CPUs and 16 GiB."""
    total = {"CPU": 4.0, "memory": 16.0 * 2**30}
    monkeypatch.setattr(inventory, "local", lambda min_cpus=None: Node("local", "127.0.0.1", total, total))
    yield


def planned(*overrides: str) -> Plan:
    return plan(load_experiment(RAW, overrides))


def text_of(drawn: Plan) -> str:
    console = Console(soft_wrap=True, highlight=False, width=200)
    with console.capture() as capture:
        drawn.render(console)
    return capture.get()


def test_a_run_that_fits_has_no_problems() -> None:
    drawn = planned("cluster.workers=4")
    assert (drawn.exit_code, drawn.problems, drawn.num_parameters) == (0, [], PARAMETERS)
    assert drawn.placement is not None and drawn.placement.assignment == (0, 0, 0, 0)


def test_workers_that_do_not_fit_are_told_as_need_versus_have() -> None:
    drawn = planned("cluster.workers=7")
    assert drawn.exit_code == 3
    assert drawn.problems == ["4 of 7 workers fit on 1 node: short of 3 CPU"]
    row = next(line for line in text_of(drawn).splitlines() if line.startswith("CPU"))
    assert row.split() == ["CPU", "1", "7", "4", "4", "4", "3"]


@pytest.mark.parametrize("resources", ["{CPU: 5}", "{GPU: 1}", "{CPU: 1, TPU: 1}", "{CPU: 1, memory: 1e12}"])
def test_what_no_node_has_is_told(resources: str) -> None:
    assert planned("cluster.workers=1", f"cluster.resources_per_worker={resources}").exit_code == 3


def test_without_workers_nothing_is_placed() -> None:
    drawn = planned("cluster.workers=0")
    assert drawn.placement is None and drawn.exit_code == 0
    assert "in this process, without Ray" in text_of(drawn)


def test_workers_beyond_the_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    total = {"CPU": 64.0, "memory": 2.0 * 2**30}
    monkeypatch.setattr(inventory, "local", lambda min_cpus=None: Node("local", "127.0.0.1", total, total))
    drawn = planned("cluster.workers=64")
    assert drawn.exit_code == 3
    assert "64 workers on 127.0.0.1 would need about" in drawn.problems[0] and "has 2.0 GiB" in drawn.problems[0]
    assert planned("cluster.workers=2").exit_code == 0


def test_a_cluster_that_does_not_answer_is_told() -> None:
    with pytest.raises(PlacementError) as caught:
        planned("cluster.address='127.0.0.1:1'")
    assert "127.0.0.1:1" in caught.value.message


def test_traffic_is_the_wire_size_of_the_model_for_each_client() -> None:
    drawn = planned()
    size = wire.encode(modules.tensors(prepare(load_experiment(RAW)).model)).size
    assert drawn.traffic.model == size
    assert (drawn.traffic.down, drawn.traffic.up, drawn.traffic.num_clients) == (3 * size, 3 * size, 3)
    assert planned("strategy.algorithm.cohort=all").traffic.num_clients == 6


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], 8),
        (["strategy.client.batch_size=full"], 2),
        (["strategy.client.epochs=1", "strategy.client.steps=5"], 5),
        (["strategy.client.batch_size=1000"], 2),
    ],
)
def test_steps_of_a_client_are_counted(overrides: list[str], steps: int) -> None:
    drawn = planned(*overrides)
    assert (drawn.traffic.mean_steps, drawn.traffic.most_steps) == (steps, steps)


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        ("{name: sgd}", 0),
        ("{name: sgd, momentum: 0.9}", 1),
        ("{name: adam}", 2),
        ("{name: adam, kwargs: {amsgrad: true}}", 3),
    ],
)
def test_optimizer_state_is_counted_in_copies_of_the_model(optimizer: str, copies: int) -> None:
    assert planned(f"strategy.client.optimizer={optimizer}").memory.optimizer == copies * 4 * PARAMETERS


def test_memory_of_a_model_doubles_in_double_precision() -> None:
    single, double = planned().memory, planned("model.dtype=float64").memory
    assert (single.model, double.model) == (4 * PARAMETERS, 8 * PARAMETERS)
    assert single.gradients == single.model


def test_activations_are_what_backward_needs_of_a_batch() -> None:
    """An MLP keeps its input, the hidden layer after ReLU, the log-probabilities and the labels."""
    floats, labels = 64 + 200 + 10, 10 + 1
    memory = planned("strategy.client.batch_size=32").memory
    assert 32 * 4 * (64 + 200) <= memory.activations <= 32 * (4 * floats + 8 * labels)
    assert planned("strategy.client.batch_size=64").memory.activations == 2 * memory.activations


def test_activations_are_not_of_more_examples_than_a_client_has() -> None:
    assert (
        planned("strategy.client.batch_size=100000").memory.activations
        == planned("strategy.client.batch_size=full").memory.activations
    )


def test_planning_changes_neither_the_model_nor_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    planned("model={name: cnn}", "data={name: digits}", "model.dropout=0.5")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_plan_shows_the_resolved_experiment_and_what_changed() -> None:
    shown = text_of(planned("seed=9"))
    assert "seed: 9\n" in shown and "seed: 0 -> 9" in shown
    assert shown.rstrip().endswith("fits. Nothing was started.")


def test_an_experiment_and_a_mapping_can_be_planned() -> None:
    assert plan(load_experiment(RAW).experiment).num_parameters == plan(RAW).num_parameters == PARAMETERS


def test_what_cannot_be_run_anywhere_is_told_first() -> None:
    with pytest.raises(ConfigError):
        planned("strategy.client.optimizer.name=x", "cluster.workers=100")


@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"]])
def test_the_command_prints_the_plan_and_exits_with_3_when_it_does_not_fit(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exp.yaml").write_text("name: x\ndata: {name: digits}\nmodel: {name: mlp}\n")
    for workers, code, verdict in ((2, 0, "fits."), (9, 3, "does not fit:\n  4 of 9 workers fit")):
        with pytest.raises(SystemExit) as ended:
            main([*command, "exp.yaml", f"cluster.workers={workers}"])
        assert ended.value.code == code
        assert verdict in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exp.yaml"]


def test_a_local_plan_never_imports_ray() -> None:
    script = (
        "import sys; from orchestrator.planning import plan; "
        "plan({'name': 'x', 'data': {'name': 'digits'}, 'model': {'name': 'mlp'}}); "
        "assert 'ray' not in sys.modules and 'mlflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
