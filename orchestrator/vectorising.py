"""What a run decides by itself before it starts, and keeps in its file: above all how it trains federated clients.

`auto` is decided by a rule that gives the same answer on every machine. `measured` times both on this one, so the
answer may differ elsewhere; what it was stands in `config.resolved.yaml`, and who runs that file gets the same bits.
ZeRO's stage `auto` is the smallest that fits a rank's memory, and its DeepSpeed file is read once and written out.
So does a graph pipeline's number of chunks, which goes by its stages where the file says none, lest a resume with other
stages change it.
"""

from __future__ import annotations

import torch

from orchestrator.config import Origins
from orchestrator.config.schema import Federated, GraphPipeline, Zero
from orchestrator.engines.virtual import virtual
from orchestrator.preparing import Prepared
from orchestrator.zero_sizes import settle_zero
from strategies.federated.folding import NUM_BLOCKS
from strategies.federated.pacing import Synchronous
from strategies.federated.sampling import uniform
from strategies.seeds import generator
from trainers import modules
from trainers.batched import Choice, choose, gather, measure
from trainers.batched.chain import parse
from trainers.batched.choosing import group_width
from trainers.local import LocalSettings, Task
from trainers.threads import intra_op_threads

SIDE_BY_SIDE = 25
"""Clients of a block that is trained side by side, where the cohort is large enough for four blocks of them; blocks of
seven took twice the time of these (benchmarks/local_speed.py)."""


def num_blocks(prepared: Prepared, choice: Choice) -> int:
    """Return the default number of blocks of a step: few and large ones only where clients train side by side."""
    if choice.kind == "loop":
        return NUM_BLOCKS
    settings = LocalSettings.from_section(prepared.experiment.strategy.client.model_dump())
    links = parse(prepared.model, prepared.dataset.input_shape)
    alone = group_width(prepared.model, settings, links) == 1
    return NUM_BLOCKS if alone else _large_blocks(_together(prepared))


def how_trained(prepared: Prepared) -> Choice:
    """Return how clients are trained, and why."""
    experiment = prepared.experiment
    strategy = experiment.strategy
    assert isinstance(strategy, Federated) and prepared.partition is not None
    asked = strategy.client.vectorise
    if asked in ("loop", "batched"):
        return Choice(asked, "as strategy.client.vectorise says")
    if prepared.dataset.client_shapes is not None:
        return Choice("loop", "clients differ in the shape of their input")
    settings = LocalSettings.from_section(strategy.client.model_dump())
    if asked == "measured":
        return _measured(prepared, settings)
    sizes = prepared.partition.sizes()
    return choose(prepared.model, settings, prepared.dataset, sizes, _block(prepared))


def settle(prepared: Prepared, where: Origins | None = None) -> tuple[Prepared, str]:
    """Return the experiment with the decision written into it, and a line that says so; empty for what is none.

    Raises:
        ConfigError: when ZeRO's stage is auto, and none fits.
    """
    experiment = prepared.experiment
    strategy = experiment.strategy
    if isinstance(strategy, GraphPipeline):
        kept = strategy.model_copy(update={"chunks": strategy.slots})
        return prepared._replace(experiment=experiment.model_copy(update={"strategy": kept})), ""
    if isinstance(strategy, Zero):
        return settle_zero(prepared, where)
    if not isinstance(strategy, Federated) or strategy.client.vectorise in ("loop", "batched"):
        return prepared, ""
    choice = how_trained(prepared)
    client = strategy.client.model_copy(update={"vectorise": choice.kind})
    changed = experiment.model_copy(update={"strategy": strategy.model_copy(update={"client": client})})
    line = f"clients        {'one by one' if choice.kind == 'loop' else 'side by side'}: {choice.reason}"
    return prepared._replace(experiment=changed), line


def _together(prepared: Prepared) -> int:
    """Return the participations of a step."""
    pace = virtual(prepared, num_bytes=0).pace
    return pace.cohort if isinstance(pace, Synchronous) else pace.buffer


def _large_blocks(together: int) -> int:
    return max(4, min(NUM_BLOCKS, together // SIDE_BY_SIDE))


def _block(prepared: Prepared) -> int:
    """Return how many clients a block has when they are trained side by side."""
    together = _together(prepared)
    return prepared.experiment.strategy.fold_block or -(-together // _large_blocks(together))


def _measured(prepared: Prepared, settings: LocalSettings) -> Choice:
    """Train one block of clients both ways and return the faster."""
    experiment, partition, dataset = prepared.experiment, prepared.partition, prepared.dataset
    assert partition is not None
    count = min(_block(prepared), partition.num_clients)
    clients = uniform(partition.num_clients, count, generator(experiment.seed, "measured clients"))
    rows = [partition.rows(client) for client in clients]
    start, seed = modules.snapshot(prepared.model), experiment.seed
    tasks = [Task(client, 1, start) for client in clients]
    to = getattr(torch, experiment.model.dtype), torch.device("cpu")
    block = gather(dataset, tasks, rows, settings, *to, run_seed=seed)
    with intra_op_threads(experiment.cluster.threads_per_worker):
        return measure(prepared.model, settings, dataset, tasks, block, run_seed=seed)
