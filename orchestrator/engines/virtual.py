"""What of an experiment concerns virtual time: its clients' behaviour, who samples them, and the pace of the server."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from orchestrator.config.schema import Experiment, Federated
from orchestrator.preparing import Prepared
from strategies.federated import DEFAULT_PACING
from strategies.federated.behaviour import Behaviour, Trace, behaviour, communication_s, trace_paths
from strategies.federated.pacing import Pace, pacing
from strategies.federated.sampling import Sampler, sampler
from strategies.federated.timeline import Population
from strategies.partition import Drawn, Partition
from trainers.cohort import holdout
from trainers.local import LocalSettings

_REMEMBERED = 1 << 16


class Virtual(NamedTuple):
    """Everything that a plan of the next step needs beside the state."""

    pace: Pace
    population: Population
    sampler: Sampler


def virtual(prepared: Prepared, num_bytes: int) -> Virtual:
    """Return the virtual side of a federated experiment.

    Args:
        num_bytes: of a model on the wire, for how long transfers take.

    Raises:
        DataError: when a trace cannot be read. ValueError: when the parts do not go together.
    """
    experiment = prepared.experiment
    strategy = experiment.strategy
    assert isinstance(strategy, Federated) and prepared.partition is not None
    link = strategy.behaviour.link.model_dump()
    num_clients, algorithm = prepared.partition.num_clients, strategy.algorithm
    population = Population(
        experiment.seed,
        num_clients,
        behaviour_of(experiment),
        steps_of(experiment, prepared.partition),
        prepared.partition.sizes_of,
        strategy.behaviour.step_s,
        communication_s(num_bytes, num_bytes, **link),
    )
    pace = pacing(
        strategy.pacing.model_dump(),
        num_clients=num_clients,
        cohort=num_clients if algorithm.cohort == "all" else algorithm.cohort,
        made_for=DEFAULT_PACING[algorithm.name],
        buffer=getattr(algorithm, "buffer", None),
    )
    return Virtual(pace, population, sampler(strategy.sampler.model_dump()))


def behaviour_of(experiment: Experiment) -> Behaviour:
    """Return how the participants of an experiment behave.

    Raises:
        DataError: when a trace cannot be read. ValueError: when a value cannot be used.
    """
    section = experiment.strategy.behaviour.model_dump()
    speeds = section["speed"].get("path")
    traces = {path: _trace(path, speeds=path == speeds) for path in trace_paths(section)}
    return behaviour(experiment.seed, section, traces)


def _trace(path: str, *, speeds: bool) -> Trace:
    from trainers.data.traces import load_trace  # Parquet's reader brings pandas along, half a second

    return load_trace(path, speeds=speeds)


def steps_of(experiment: Experiment, partition: Partition | Drawn) -> Callable[[int], int]:
    """Return `client -> local steps` that the experiment's `client` section says, examples held out aside."""
    settings = LocalSettings.from_section(experiment.strategy.client.model_dump())
    fraction = experiment.evaluate.clients.held_out

    @lru_cache(_REMEMBERED)
    def steps_of(client: int) -> int:
        num_examples = int(partition.sizes_of(np.array([client]))[0])
        return settings.num_steps(num_examples - holdout.num_held(num_examples, fraction))

    return steps_of
