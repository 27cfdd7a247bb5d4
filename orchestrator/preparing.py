"""From an experiment to what a run starts with: the data in memory, its partition, and the model, all checked.

Everything here happens before Ray starts or a folder is made, so that a mistake costs seconds. All that can be
found out without the data is reported at once; then the data is loaded, and then divided and fed to the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from cluster.inventory import memory_bytes
from orchestrator import kept_data
from orchestrator.config import Loaded, Origins
from orchestrator.config.fields import Section
from orchestrator.config.optimizer import Optimizer
from orchestrator.config.schema import (
    Experiment,
    Federated,
    GraphPipeline,
    Letters,
    LocalLearning,
    OwnModel,
    Peers,
    Pipeline,
    PowerLaw,
    Sbm,
    Sharded,
    Synthetic,
    Zero,
)
from orchestrator.errors import ConfigError, Problem
from orchestrator.federated_checks import federated_problems
from orchestrator.peers_checks import peers_problems
from orchestrator.pretraining import Begun, source_problems
from strategies.partition import NEEDS_LABELS, Drawn, Partition, partition
from strategies.seeds import generator, integer
from trainers import models, optimizers
from trainers.data.base import DataError, Dataset, partition_labels
from trainers.data.graphs import registry as graphs
from trainers.data.graphs.base import GraphData
from trainers.data.graphs.generated import needed_bytes
from trainers.graph.convolutions import graph_chain
from trainers.models import ModelError
from trainers.targets import TargetError, resolve


class Prepared(NamedTuple):
    """What a run starts with.

    Args:
        partition: of the data among clients; None where a strategy has none.
        begun: what the model has learned from other data, once it has; see `orchestrator.pretraining`.
    """

    experiment: Experiment
    dataset: Any
    partition: Partition | Drawn | None
    model: nn.Module
    begun: Begun | None = None


def prepare(source: Experiment | Loaded, *, weights: bool = True) -> Prepared:
    """Load the data, divide it, and build the model, which is not pretrained yet.

    Args:
        source: the experiment; loaded from a file, problems say in which line.
        weights: whether the model begins with `model.weights`; a run that goes on from a whole state needs them not.

    Raises:
        ConfigError: when optimizer, targets, data, partition or model cannot be had as the experiment says.
    """
    experiment, where = (source.experiment, source.where) if isinstance(source, Loaded) else (source, Origins())
    problems = [
        *_optimizers(experiment, where),
        *_targets(experiment, where),
        *_loss(experiment, where),
        *_device(experiment, where),
    ]
    problems += _oversized(experiment, where)
    if problems:
        raise ConfigError(problems)
    dataset = _dataset(experiment, where)
    if isinstance(dataset, GraphData):
        prepared = Prepared(experiment, dataset, None, _graph_model(experiment, dataset, where))
        return _begun(prepared, where) if weights else prepared
    problems = [*_batch(experiment, dataset, where)]
    divided = built = None
    try:
        divided = _partition(experiment, dataset, where) if isinstance(experiment.strategy, Federated | Peers) else None
    except ConfigError as error:
        problems += error.problems
    try:
        built = _model(experiment, dataset, where)
    except ConfigError as error:
        problems += error.problems
    else:
        problems += source_problems(experiment, dataset, built, where)
    if problems or built is None:
        raise ConfigError(problems)
    prepared = Prepared(experiment, dataset, divided, built)
    if weights:
        prepared = _begun(prepared, where)
    if divided is not None:
        found = federated_problems if isinstance(experiment.strategy, Federated) else peers_problems
        problems = list(found(prepared, where))
        if problems:
            raise ConfigError(problems)
    return prepared


def prepare_shapes(source: Experiment | Loaded) -> nn.Module:
    """Return the experiment's model for its data, without memory where it can be built so.

    Raises:
        ConfigError: when data or model cannot be had.
    """
    experiment, where = (source.experiment, source.where) if isinstance(source, Loaded) else (source, Origins())
    dataset = _dataset(experiment, where)
    shape = (dataset.num_features,) if isinstance(dataset, GraphData) else dataset.input_shape
    fields = {"input_shape": shape, "num_classes": dataset.num_classes, "seed": integer(experiment.seed, "model")}
    try:
        try:
            with torch.device("meta"):
                return models.build(experiment.model_section, **fields)
        except ModelError:
            return models.build(experiment.model_section, **fields)
    except ModelError as error:
        raise ConfigError([Problem(where("model"), "model", error.message, error.hint)]) from error


# ---------------------------------------------------------------------------------------- without the data


def _optimizers(experiment: Experiment, where: Origins) -> Iterator[Problem]:
    strategy, first = experiment.strategy, experiment.model.pretrain
    own = isinstance(strategy, Federated | Peers)
    trains, at = (strategy.client, "strategy.client") if own else (strategy, "strategy")
    yield from _optimizer(trains.optimizer, f"{at}.optimizer", experiment, where)
    if first is not None:
        yield from _optimizer(first.optimizer, "model.pretrain.optimizer", experiment, where)


def _optimizer(asked: Optimizer, here: str, experiment: Experiment, where: Origins) -> Iterator[Problem]:
    """Look the optimizer and its arguments up in torch; with arguments that only torch knows, take a first step."""
    section = asked.model_dump()
    parameter = nn.Parameter(torch.zeros(2, 2, dtype=getattr(torch, experiment.model.dtype)))
    try:
        optimizers.resolve(section)
        if section["kwargs"]:  # those that only the optimizer itself looks at
            optimizer = optimizers.build(section, [("weight", parameter)])
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    except optimizers.OptimizerError as error:
        given = [key for key in ("name", "momentum", "weight_decay") if repr(section.get(key, "")) in error.message]
        given += [key for key in ("momentum", "weight_decay") if repr(key) in error.message]
        given += [f"kwargs.{key}" for key in section["kwargs"] if repr(key) in error.message]
        path = f"{here}.{given[0]}" if given else here
        yield Problem(where(path), path, error.message, error.hint)
    except Exception as error:  # torch raises whatever it likes for arguments of the wrong type
        yield Problem(
            where(here),
            here,
            f"{section['name']} refuses its arguments: {error}",
            "see torch.optim, or docs/optimizers.md",
        )


def _targets(experiment: Experiment, where: Origins) -> Iterator[Problem]:
    """Import users' own functions and hold their arguments against their signatures."""
    for name, section in _sections(experiment).items():
        if not hasattr(section, "target"):
            continue
        added = {"input_shape", "num_classes"} if name == "model" else set()
        try:
            function = resolve(section.target)
        except TargetError as error:
            yield Problem(where(f"{name}.target"), f"{name}.target", error.message, error.hint)
            continue
        except SystemExit as error:
            message = f"importing it ended the program: exit({error.code})"
            yield Problem(where(f"{name}.target"), f"{name}.target", message, "guard it by: if __name__ == '__main__'")
            continue
        yield from _arguments(function, section.kwargs, added, f"{name}.kwargs", where)


def _sections(experiment: Experiment) -> dict[str, Section]:
    """Return the sections that say what data and models are, by their place."""
    first = experiment.model.pretrain
    sections: dict[str, Section] = {"data": experiment.data, "model": experiment.model}
    return {**sections, "model.pretrain.data": first.data} if first is not None else sections


def _loss(experiment: Experiment, where: Origins) -> Iterator[Problem]:
    """Import a gang's own loss."""
    strategy = experiment.strategy
    if isinstance(strategy, Pipeline | Zero | Sharded) and strategy.loss.target is not None:
        try:
            resolve(strategy.loss.target)
        except TargetError as error:
            path = "strategy.loss.target"
            yield Problem(where(path), path, error.message, error.hint)


def _arguments(
    function: Callable[..., Any], kwargs: Mapping[str, Any], added: set[str], path: str, where: Origins
) -> Iterator[Problem]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C: only calling it tells
        return
    named = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    listed = ", ".join(named) or "no arguments"
    for key in kwargs:
        if key not in named and not free:
            yield Problem(
                where(f"{path}.{key}"), f"{path}.{key}", "the target takes no such argument", f"it takes: {listed}"
            )
    for name in named:
        if parameters[name].default is inspect.Parameter.empty and name not in kwargs and name not in added:
            yield Problem(where(path), f"{path}.{name}", "is missing, and the target needs it", f"it takes: {listed}")


def _device(experiment: Experiment, where: Origins) -> Iterator[Problem]:
    cluster = experiment.cluster
    if cluster.device == "cuda" and cluster.workers == 0 and not torch.cuda.is_available():
        message = "got 'cuda', but torch finds no CUDA device in this process"
        yield Problem(where("cluster.device"), "cluster.device", message, "cluster.device=cpu, or workers on GPU nodes")


def _oversized(experiment: Experiment, where: Origins) -> Iterator[Problem]:
    """Refuse generated data that this machine cannot hold, before anything tries to make it."""
    for path, section in _sections(experiment).items():
        if not isinstance(section, Synthetic | Letters | Sbm | PowerLaw):
            continue
        if isinstance(section, Sbm | PowerLaw):
            need, field = needed_bytes(section.vertices, section.degree, section.features), "vertices"
        else:
            if isinstance(section, Letters):
                numbers, each = section.size**2, 1 if section.size == 28 else 4
            else:
                numbers, each = (section.features**2 if section.kind == "images" else section.features), 8
            need, field = (section.examples + section.test_examples) * numbers * each, "examples"
        have = memory_bytes()
        if need > have:
            message = f"needs {_gib(need)} of memory, this machine has {_gib(have)}"
            here = f"{path}.{field}"
            yield Problem(where(here), here, message, f"ask for fewer {field} or features")


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"


# ------------------------------------------------------------------------------------------- with the data


def _dataset(experiment: Experiment, where: Origins) -> Dataset | GraphData:
    section = experiment.data.model_dump()
    try:
        if isinstance(experiment.strategy, GraphPipeline):
            return graphs.load(section, seed=experiment.seed)
        return kept_data.load(section, seed=experiment.seed)
    except DataError as error:
        raise ConfigError([Problem(where("data"), "data", error.message, error.hint)]) from error
    except MemoryError as error:
        message = f"does not fit into this machine's memory: {error}"
        raise ConfigError([Problem(where("data"), "data", message, "give a smaller part of it")]) from error


def _batch(experiment: Experiment, dataset: Dataset, where: Origins) -> Iterator[Problem]:
    """Hold the batch of a gang against the data."""
    strategy, have = experiment.strategy, len(dataset.train_y)
    if isinstance(strategy, Pipeline | LocalLearning | Zero | Sharded) and strategy.batch_size > have:
        path = "strategy.batch_size"
        message = f"got {strategy.batch_size}, expected at most the {have} examples of {dataset.name}"
        yield Problem(where(path), path, message, f"{path}={have}")


def _partition(experiment: Experiment, dataset: Dataset, where: Origins) -> Partition | Drawn:
    section = experiment.data.partition
    here = "data.partition"
    try:
        labels = partition_labels(dataset) if section.kind in NEEDS_LABELS else None
        divided = partition(
            section.model_dump(),
            labels,
            dataset.client_of,
            len(dataset.train_y),
            generator(experiment.seed, "partition"),
            experiment.seed,
        )
    except (ValueError, MemoryError) as error:
        field = next((name for name in ("examples", "clients", "min_size") if name in section.model_fields_set), "kind")
        raise ConfigError([Problem(where(f"{here}.{field}"), f"{here}.{field}", str(error))]) from error
    cohort = getattr(experiment.strategy.algorithm, "cohort", "all")
    if cohort != "all" and cohort > divided.num_clients:
        path = "strategy.algorithm.cohort"
        message = f"got {cohort}, expected at most the {divided.num_clients} clients of {dataset.name}"
        raise ConfigError([Problem(where(path), path, message, f"{path}={divided.num_clients}, or cohort: all")])
    return divided


def _model(experiment: Experiment, dataset: Dataset, where: Origins) -> nn.Module:
    section = experiment.model_section
    shape, classes = dataset.input_shape, dataset.num_classes
    seed = integer(experiment.seed, "model")
    try:
        if isinstance(experiment.strategy, Zero) and experiment.num_workers and experiment.model.pretrain is None:
            shapes = models.shapes(section, dataset, seed=seed)
            if shapes is not None:  # each rank will hold its part: nobody needs a whole one
                return shapes
        if not isinstance(experiment.model, OwnModel):
            with torch.device("meta"):  # sizes without memory
                shapes = models.build(experiment.model.model_dump(), input_shape=shape, num_classes=classes, seed=seed)
            need, have = sum(p.numel() * p.element_size() for p in shapes.parameters()), memory_bytes()
            if need > have:
                message = f"needs {_gib(need)} of memory for its weights, this machine has {_gib(have)}"
                raise ModelError(message, "make it narrower")
        model = models.build(section, input_shape=shape, num_classes=classes, seed=seed)
        models.check(model, dataset, section)
        if isinstance(experiment.strategy, Pipeline):
            _chain(model, experiment.strategy, where)
    except ModelError as error:
        raise ConfigError([Problem(where("model"), "model", error.message, error.hint)]) from error
    except (RuntimeError, MemoryError, OverflowError) as error:  # torch's way to say that memory is out
        message = f"cannot be built: {str(error).splitlines()[0]}"
        raise ConfigError([Problem(where("model"), "model", message, "make it smaller")]) from error
    return model


def _begun(prepared: Prepared, where: Origins) -> Prepared:
    """Put the weights that the experiment names into the model."""
    if prepared.experiment.model.weights is None:
        return prepared
    from orchestrator.weights import begin_with

    return begin_with(prepared, where)


def _graph_model(experiment: Experiment, data: GraphData, where: Origins) -> nn.Module:
    strategy = experiment.strategy
    assert isinstance(strategy, GraphPipeline)
    try:
        model = models.build(
            experiment.model.model_dump(),
            input_shape=(data.num_features,),
            num_classes=data.num_classes,
            seed=integer(experiment.seed, "model"),
        )
        models.check_on_graph(model, data.num_features, data.num_classes)
        num_layers = len(graph_chain(model).layers)
        if num_layers < strategy.stages:
            path, message = "strategy.stages", f"got {strategy.stages} stages to cut {num_layers} layers into"
            raise ConfigError([Problem(where(path), path, message, f"at most {num_layers}, or a deeper model")])
    except ModelError as error:
        raise ConfigError([Problem(where("model"), "model", error.message, error.hint)]) from error
    return model


def _chain(model: nn.Module, strategy: Pipeline, where: Origins) -> None:
    """Refuse a model that cannot be cut into as many pieces as asked for."""
    from trainers.pipeline.layers import chain

    num_layers = len(chain(model).layers)
    if num_layers < strategy.num_positions:
        path = "strategy.stages"
        message = f"got {strategy.num_positions} pieces to cut {num_layers} layers into"
        raise ConfigError([Problem(where(path), path, message, f"at most {num_layers}, or a deeper model")])
