"""What ranks are told alike, whatever their strategy: the fields that the `Settings` of gangs have in common."""

from __future__ import annotations

from typing import Any

from orchestrator.config.schema import Experiment, GraphPipeline, LocalLearning, Pipeline, Sharded, Zero
from strategies.seeds import integer


def shared(experiment: Experiment) -> dict[str, Any]:
    """Return what all of them have: the model, seeds, and how a step moves the weights."""
    strategy = experiment.strategy
    assert isinstance(strategy, GraphPipeline | LocalLearning | Pipeline | Sharded | Zero)
    return {
        "model": experiment.model.model_dump(),
        "seed": experiment.seed,
        "model_seed": integer(experiment.seed, "model"),
        "optimizer": strategy.optimizer.model_dump(),
        "learning_rate": strategy.learning_rate.model_dump(),
        "clip_value": strategy.clip_value,
        "gradient_noise": strategy.gradient_noise and strategy.gradient_noise.model_dump(),
    }


def shared_by_batches(experiment: Experiment) -> dict[str, Any]:
    """Return what those have whose step is the gradient of one loss over some batches."""
    strategy = experiment.strategy
    assert isinstance(strategy, Pipeline | Sharded | Zero)
    return shared(experiment) | {
        "batch_size": strategy.batch_size,
        "accumulate": strategy.accumulate,
        "clip_norm": strategy.clip_norm,
        "loss": strategy.loss.model_dump(),
        "precision": strategy.precision,
        "steps": strategy.steps,
    }
