"""The experiment file, field by field. Checks of single values live here; checks across sections in `checks.py`.

Every section forbids keys it does not know. A field's description is what `orchestrator validate` prints
beside a problem, so it says what the field means and its unit; `docs/experiment-file.md` is made from it.
A new strategy adds a section here, and nothing else of the configuration changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.config.fields import (
    ExperimentName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    Resources,
    Section,
    Text,
)  # fmt: skip
from orchestrator.config.inputs import (
    ByColumn,
    Cnn,
    Data,
    DataSection,
    Digits,
    Dirichlet,
    Downloaded,
    Iid,
    Logistic,
    Mlp,
    Model,
    ModelSection,
    OwnData,
    OwnModel,
    Parquet,
    Partition,
    Planetoid,
    ResNet,
    Shakespeare,
    Shards,
    Synthetic,
    TransformerLM,
)  # fmt: skip
from orchestrator.config.search import (
    Asha,
    Choice,
    Domain,
    Grid,
    LogUniform,
    Optuna,
    Pbt,
    RandInt,
    RandomSearch,
    Search,
    Uniform,
)  # fmt: skip

__all__ = [
    "Asha", "Behaviour", "ByColumn", "Checkpoint", "Choice", "Client", "Cluster", "Cnn", "ConstantSpeed", "Data",
    "DataSection", "Digits", "Dirichlet", "Domain", "Downloaded", "Evaluate", "Experiment", "FedAvg", "Federated",
    "Grid", "Iid", "LogUniform", "Logistic", "LognormalSpeed", "Mean", "Mlp", "Model", "ModelSection", "Optimizer",
    "Optuna", "OwnData", "OwnModel", "Parquet", "Partition", "Pbt", "Planetoid", "RandInt", "RandomSearch", "ResNet",
    "Search", "Section", "Shakespeare", "Shards", "Storage", "Synthetic", "Tracking", "TransformerLM", "Uniform",
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ strategy


class Optimizer(Section):
    """A client's optimizer: any of torch.optim."""

    name: Text = Field("sgd", description="any class of torch.optim, in lower case")
    lr: PositiveFloat = Field(0.1, description="learning rate")
    momentum: Rate | None = Field(None, description="null leaves torch's own default")
    weight_decay: NonNegativeFloat | None = Field(None, description="null leaves torch's own default")
    kwargs: dict[str, Any] = Field({}, description="further arguments of the torch.optim class")


class Client(Section):
    """What one client does when it takes part."""

    epochs: PositiveInt = Field(1, description="local passes over the client's data")
    steps: PositiveInt | None = Field(None, description="local optimizer steps, in place of epochs")
    batch_size: PositiveInt | Literal["full"] = Field(32, description="examples of one local step")
    optimizer: Optimizer = Field(Optimizer(), description="how a local step moves the weights")
    clip_norm: PositiveFloat | None = Field(None, description="largest gradient norm of a step")


class FedAvg(Section):
    """Federated averaging: the server moves to the weighted mean of what its clients trained."""

    name: Literal["fedavg"] = "fedavg"
    rounds: PositiveInt = Field(10, description="server steps")
    cohort: PositiveInt | Literal["all"] = Field("all", description="clients that take part in a round")
    server_lr: PositiveFloat = Field(1.0, description="how far the server moves towards the mean; 1 is FedAvg")
    weighting: Literal["examples", "uniform"] = Field("examples", description="what a client counts for")


class Mean(Section):
    """The weighted mean of the updates."""

    name: Literal["mean"] = "mean"


class ConstantSpeed(Section):
    """All clients are equally fast."""

    kind: Literal["constant"] = "constant"


class LognormalSpeed(Section):
    """Clients differ in speed; its logarithm is normal."""

    kind: Literal["lognormal"]
    sigma: NonNegativeFloat = Field(0.5, description="spread of the logarithm of a client's speed")


class Behaviour(Section):
    """When clients finish, on the virtual clock; it changes no weights of synchronous rules."""

    step_s: PositiveFloat = Field(0.01, description="virtual seconds of one local step at speed 1")
    speed: Annotated[ConstantSpeed | LognormalSpeed, Field(discriminator="kind")] = Field(
        ConstantSpeed(), description="how fast each client is"
    )


class Federated(Section):
    """A server and many clients that train on their own data."""

    kind: Literal["federated"] = "federated"
    algorithm: FedAvg = Field(FedAvg(), description="the server's rule")
    client: Client = Field(Client(), description="what a client does")
    aggregator: Mean = Field(Mean(), description="how updates become one")
    behaviour: Behaviour = Field(Behaviour(), description="clients on the virtual clock")
    fold_block: PositiveInt | None = Field(
        None, description="clients folded together; default a tenth of the cohort. Part of what makes bits equal"
    )
    on_failure: Literal["raise", "drop", "retry"] = Field(
        "raise", description="when a client's code raises or its update is not finite"
    )


# --------------------------------------------------------------------------------------------- everything else


class Cluster(Section):
    """Where the work is done."""

    address: Text = Field("local", description="local, auto, ray://host:port or host:port")
    workers: NonNegativeInt = Field(2, description="worker processes; 0 trains inside this process, without Ray")
    resources_per_worker: Resources = Field({"CPU": 1.0}, description="what each worker reserves, in Ray's names")
    threads_per_worker: PositiveInt = Field(1, description="intra-op threads; part of what makes bits equal")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where tensors live")
    placement: Literal["pack", "spread"] = Field("pack", description="on few nodes, or on as many as there are")
    start_timeout_s: PositiveFloat = Field(120.0, description="longest wait for the workers to start, in seconds")
    stall_timeout_s: PositiveFloat = Field(1800.0, description="longest wait for any worker to answer, in seconds")


class Tracking(Section):
    """MLflow."""

    enabled: bool = Field(True, description="false records in the run directory only")
    uri: Text | None = Field(None, description="null: MLFLOW_TRACKING_URI when set, else SQLite in the run root")
    experiment: Text | None = Field(None, description="MLflow experiment; default the experiment's name")
    flush_timeout_s: PositiveFloat = Field(30.0, description="longest wait for the server when the run ends")


class Checkpoint(Section):
    """What a run can be resumed from."""

    every: PositiveInt = Field(5, description="rounds between checkpoints")
    keep: PositiveInt = Field(3, description="newest checkpoints kept")
    storage: Text | None = Field(None, description="folder or object-store URI; default the run directory")


class Evaluate(Section):
    """Measuring the model on the test data."""

    every: PositiveInt = Field(1, description="rounds between evaluations; the last round is always evaluated")
    batch_size: PositiveInt = Field(500, description="test examples of one forward pass")


class Storage(Section):
    """Where run directories are made."""

    root: Text = Field("runs", description="folder that holds run directories")


class Experiment(Section):
    """One experiment file."""

    name: ExperimentName = Field(description="begins the name of run directories")
    seed: NonNegativeInt = Field(0, description="the same seed gives the same run, bit for bit")
    data: Data = Field(description="what is trained on")
    model: Model = Field(description="what is trained")
    strategy: Federated = Field(Federated(), description="how it is trained")
    cluster: Cluster = Field(Cluster(), description="where the work is done")
    tracking: Tracking = Field(Tracking(), description="MLflow")
    checkpoint: Checkpoint = Field(Checkpoint(), description="what a run can be resumed from")
    evaluate: Evaluate = Field(Evaluate(), description="measuring on the test data")
    storage: Storage = Field(Storage(), description="where run directories are made")
    search: Search | None = Field(None, description="fields to vary; only `orchestrator tune` reads it")
