"""What a run would do, before it does it: where workers go, what they hold in memory, what a round sends.

Nothing is started: the local machine is counted without Ray; only a cluster that is there already is asked for its
nodes. Memory is an estimate from one batch on this machine: it leaves out the caches of torch's libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.config import Loaded, load_experiment, to_yaml
from orchestrator.config.schema import Experiment, GraphPipeline, LocalLearning, Peers, Pipeline, Sharded, Zero
from orchestrator.errors import PlacementError
from orchestrator.progress import size

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from cluster.inventory import Node
    from cluster.placement import Placement
    from orchestrator.gang_plan import GangPlan
    from orchestrator.preparing import Prepared
    from strategies.partition import Drawn, Partition
    from trainers.data.base import Dataset
    from trainers.local import LocalSettings

PROCESS_BYTES = 350 * 2**20
"""Resident memory of a worker process with torch and pyarrow loaded and nothing in it (measured, torch 2.13 CPU)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, by what holds them.

    Args:
        activations: what autograd keeps of the largest training batch.
        evaluation: the same time's need of a batch of test examples; the two are never held together.
    """

    process: int
    model: int
    received: int
    gradients: int
    optimizer: int
    activations: int
    evaluation: int
    fold: int
    client: int

    @property
    def total(self) -> int:
        return int(sum(vars(self).values())) - min(self.activations, self.evaluation)


@dataclass(frozen=True)
class Traffic:
    """Bytes of one round between server and clients, and the steps that its clients make."""

    model: int
    down: int
    up: int
    num_clients: int
    mean_steps: float
    most_steps: int


@dataclass(frozen=True)
class Plan:
    """What a run would do. `problems` says what keeps it from starting; empty when it can.

    Args:
        text: the resolved experiment. changed: what overrides changed.
        nodes, placement: the machines and which worker goes where; empty and None without workers.
        driver_bytes: data set, partition and models in the driver and the object store.
    """

    experiment: Experiment
    text: str
    changed: list[str]
    num_parameters: int
    memory: Memory
    traffic: Traffic
    driver_bytes: Mapping[str, int]
    nodes: list[Node] = field(default_factory=list)
    placement: Placement | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return PlacementError.exit_code if self.problems else 0

    def render(self, console: Console) -> None:
        """Print the plan."""
        from orchestrator.plan_page import page

        for line in page(self):
            console.print(line, markup=False)


def plan(source: Experiment | Loaded | Any) -> Plan | GangPlan:
    """Work out what a run would do.

    Raises:
        ConfigError: when the experiment cannot be run whatever the cluster is.
        PlacementError: when the cluster named in the experiment does not answer.
    """
    from orchestrator.preparing import prepare
    from trainers.local import LocalSettings

    if isinstance(source, Experiment):
        loaded = Loaded(source, [], to_yaml(source), load_experiment(source).where)
    else:
        loaded = source if isinstance(source, Loaded) else load_experiment(source)
    prepared = prepare(loaded)
    experiment = loaded.experiment
    if isinstance(experiment.strategy, Pipeline):
        from orchestrator.pipeline_plan import plan_pipeline

        return plan_pipeline(loaded, prepared)
    if isinstance(experiment.strategy, GraphPipeline):
        from orchestrator.graph_plan import plan_graph

        return plan_graph(loaded, prepared)
    if isinstance(experiment.strategy, LocalLearning):
        from orchestrator.local_plan import plan_local

        return plan_local(loaded, prepared)
    if isinstance(experiment.strategy, Zero):
        from orchestrator.zero_plan import plan_zero

        return plan_zero(loaded, prepared)
    if isinstance(experiment.strategy, Sharded):
        from orchestrator.sharded_plan import plan_sharded

        return plan_sharded(loaded, prepared)
    settings = LocalSettings.from_section(experiment.strategy.client.model_dump())
    memory = _memory(prepared, settings)
    if isinstance(experiment.strategy, Peers):
        traffic, driver = _peers(prepared, settings)
    else:
        traffic = _traffic(prepared, settings)
        driver = _driver(prepared, traffic)
    nodes, placement = placement_of(experiment)
    return Plan(
        experiment,
        loaded.text,
        loaded.changed,
        sum(parameter.numel() for parameter in prepared.model.parameters()),
        memory,
        traffic,
        driver,
        nodes,
        placement,
        _problems(nodes, placement, memory, driver),
    )


# ---------------------------------------------------------------------------------------------------- placement


def placement_of(experiment: Experiment) -> tuple[list[Node], Placement | None]:
    from cluster import inventory, placement
    from orchestrator.executors import placement_errors

    section = experiment.cluster
    workers = experiment.num_workers
    if workers == 0:
        return [inventory.local()], None
    if section.address == "local":
        from cluster.connect import inside_job

        if not inside_job():
            nodes = [inventory.local()]
            return nodes, placement.place([section.resources_per_worker] * workers, nodes, section.placement)
    from cluster.connect import connect

    with placement_errors(section), connect(section.address, log_to_driver=False):
        nodes = inventory.of_cluster()
    return nodes, placement.place([section.resources_per_worker] * workers, nodes, section.placement)


def _problems(nodes: list[Node], placed: Placement | None, memory: Memory, driver: Mapping[str, int]) -> list[str]:
    from cluster import placement

    problems = []
    if placed is not None and not placed.fits:
        problems.append(placement.reason(placed, len(nodes)))
        return problems
    for index, node in enumerate(nodes):
        workers = 1 if placed is None else sum(where == index for where in placed.assignment)
        need, have = workers * memory.total, node.total.get("memory", 0.0)
        if node.id == "local":
            need += sum(driver.values())
        if need > have > 0:
            what = "training in this process" if placed is None else f"{workers} workers on {node.address}"
            problems.append(f"{what} would need about {size(need)} of memory, the node has {size(have)}")
    return problems


# ------------------------------------------------------------------------------------------- memory and traffic


def _memory(prepared: Prepared, settings: LocalSettings) -> Memory:
    """Estimate one worker's memory: run its largest batch forward and count what autograd keeps for backward."""
    import torch

    from trainers import modules

    sizes = prepared.partition.sizes()
    largest = int(sizes.max())
    batch = min(settings.batch_size or largest, largest)
    tree = sum(tensor.numel() * tensor.element_size() for tensor in modules.tensors(prepared.model).values())
    trained = [parameter for parameter in prepared.model.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    x, y = prepared.dataset.train_x, prepared.dataset.train_y
    as_tensors = x[:1].size * getattr(torch, _dtype(prepared)).itemsize + 8 * y[:1].size
    row = x[:1].nbytes + y[:1].nbytes + as_tensors
    kept, widest = _activations(prepared)
    return Memory(
        process=PROCESS_BYTES,
        model=tree,
        received=tree,
        gradients=gradients,
        optimizer=_optimizer_bytes(prepared, settings),
        activations=int(kept * batch),
        evaluation=int(2 * widest * prepared.experiment.evaluate.batch_size),
        fold=2 * tree,
        client=largest * row,
    )


def _activations(prepared: Prepared) -> tuple[float, float]:
    """Bytes an example that autograd saves in a forward pass, and those of the largest tensor, counted on a few."""
    import copy

    import torch

    from trainers.data import to_labels, to_tensor
    from trainers.local import loss_of

    tried = min(8, len(prepared.dataset.train_y))
    x = to_tensor(prepared.dataset.train_x[:tried], prepared.dataset, getattr(torch, _dtype(prepared)))
    y = to_labels(prepared.dataset.train_y[:tried])
    model = copy.deepcopy(prepared.model).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model(x), y)  # held, so that no storage is freed and its address used again
    del loss
    return sum(seen.values()) / tried, max(seen.values(), default=0) / tried


def _optimizer_bytes(prepared: Prepared, settings: LocalSettings) -> int:
    """Bytes of the optimizer's state."""
    import torch

    from trainers import optimizers

    trained = [parameter for parameter in prepared.model.parameters() if parameter.requires_grad]
    copies = optimizers.copies(settings.optimizer, getattr(torch, _dtype(prepared)))
    return int(copies * sum(parameter.numel() * parameter.element_size() for parameter in trained))


def _traffic(prepared: Prepared, settings: LocalSettings) -> Traffic:
    from trainers import modules, wire

    num_bytes = int(wire.encode(modules.tensors(prepared.model)).size)
    cohort = prepared.experiment.strategy.algorithm.cohort
    count = prepared.partition.num_clients if cohort == "all" else cohort
    mean, most = _steps(prepared.partition.sizes(), settings)
    return Traffic(num_bytes, count * num_bytes, count * num_bytes, count, mean, most)


def _steps(sizes: np.ndarray, settings: LocalSettings) -> tuple[float, int]:
    """Return the mean and the largest number of local steps of clients with so many examples."""
    import numpy as np

    distinct, times = np.unique(sizes, return_counts=True)
    steps = np.array([settings.num_steps(int(number)) for number in distinct])
    return float((steps * times).sum() / times.sum()), int(steps.max())


def _driver(prepared: Prepared, traffic: Traffic) -> dict[str, int]:
    from orchestrator.engines.defence import guard

    held = {**_data(prepared.dataset, prepared.partition), "models": 4 * traffic.model}
    if guard(prepared).defence is not None:
        held["updates side by side"] = 3 * traffic.up
    return held


def _data(dataset: Dataset, partition: Partition | Drawn) -> dict[str, int]:
    return {"data set": dataset.num_bytes, "partition": sum(getattr(part, "nbytes", 0) for part in partition)}


def _peers(prepared: Prepared, settings: LocalSettings) -> tuple[Traffic, dict[str, int]]:
    """Return what peers send in their first iteration, and what the driver holds of them."""
    from orchestrator.engines.society import society
    from strategies.peers.gossip import opening, plan_step
    from trainers import wire

    made = society(prepared)
    first = made.first()
    message, num_peers = wire.size(made.message(first)), made.peers.num_peers
    step, _ = plan_step(made.peers, made.pace, opening(made.peers, made.pace))
    sizes = made.shared["partition"].sizes()
    mean, most = _steps(sizes[sizes > 0], settings)
    states = num_peers * sum(tensor.numel() * tensor.element_size() for tensor in first.values())
    held = _data(made.shared["dataset"], made.shared["partition"])
    held |= {"states of peers": 2 * states, "messages": 2 * num_peers * message}
    return Traffic(message, 0, step.attempted * message, num_peers, mean, most), held


def _dtype(prepared: Prepared) -> str:
    return str(prepared.experiment.model.dtype)
