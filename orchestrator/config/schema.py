"""The experiment file, field by field. Checks of single values live here; checks across sections in `checks.py`.

Every section forbids keys it does not know. A field's description is what `orchestrator validate` prints
beside a problem, so it says what the field means and its unit; `docs/experiment-file.md` is made from it.
A new strategy adds a section here, and nothing else of the configuration changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from orchestrator.config.algorithms import Algorithm, FedAvg
from orchestrator.config.attacks import Attack
from orchestrator.config.behaviours import (
    AutoPacing,
    Behaviour,
    ConstantSpeed,
    LognormalSpeed,
    Pacing,
    Sampler,
    UniformSampler,
)
from orchestrator.config.client import Client
from orchestrator.config.codecs import Codec
from orchestrator.config.fields import (
    ExperimentName,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    Resources,
    Section,
    Text,
)  # fmt: skip
from orchestrator.config.gang import GangSection
from orchestrator.config.graph_pipeline import GraphPipeline
from orchestrator.config.graphs import GraphOgb, GraphParquet, GraphSection, PowerLaw, Sbm
from orchestrator.config.grid import RunGrid
from orchestrator.config.inputs import (
    BristleCnn,
    ByColumn,
    Cifar10,
    Cnn,
    Data,
    DataSection,
    Digits,
    Dirichlet,
    Downloaded,
    EmnistLetters,
    Iid,
    Letters,
    Logistic,
    Mlp,
    Model,
    ModelSection,
    OwnData,
    OwnModel,
    Parquet,
    Partition,
    Planetoid,
    Pretrain,
    ResNet,
    Shakespeare,
    Shards,
    Synthetic,
    TransformerLM,
    Vgg,
    Vit,
)  # fmt: skip
from orchestrator.config.local_learning import LocalLearning
from orchestrator.config.optimizer import Optimizer
from orchestrator.config.peers import Peers
from orchestrator.config.pipeline import LearningRate, Loss, Pipeline
from orchestrator.config.robust import Aggregator, Mean
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
from orchestrator.config.sharded import Sharded
from orchestrator.config.zero import Zero

__all__ = [
    "Asha", "Behaviour", "BristleCnn", "ByColumn", "Checkpoint", "Choice", "Cifar10", "Client", "Cluster", "Cnn",
    "ConstantSpeed", "Data", "DataSection", "Digits", "Dirichlet", "Domain", "Downloaded", "EmnistLetters", "Evaluate",
    "Experiment", "FedAvg", "Federated", "GangSection", "GraphOgb", "GraphParquet", "GraphPipeline", "GraphSection",
    "Grid", "Iid", "LearningRate", "Letters", "LocalLearning", "LogUniform", "Logistic", "LognormalSpeed", "Loss",
    "Mean", "Mlp", "Model", "ModelSection", "Optimizer", "Optuna", "OwnData", "OwnModel", "Parquet", "Partition",
    "Pbt", "Peers", "Pipeline", "Planetoid", "PowerLaw", "Pretrain", "RandInt", "RandomSearch", "ResNet", "RunGrid",
    "Sbm", "Search", "Section", "Shakespeare", "Sharded", "Shards", "Storage", "Strategy", "Synthetic", "Tracking",
    "TransformerLM", "Uniform", "Vgg", "Vit", "Zero",
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ strategy


class Federated(Section):
    """A server and many clients that train on their own data."""

    kind: Literal["federated"] = "federated"
    algorithm: Algorithm = Field(FedAvg(), description="the server's rule")
    client: Client = Field(Client(), description="what a client does")
    aggregator: Aggregator = Field(Mean(), description="how updates become one")
    attack: Attack | None = Field(None, description="clients that work against the others")
    sampler: Sampler = Field(UniformSampler(), description="who takes part")
    pacing: Pacing = Field(AutoPacing(), description="when the server acts")
    behaviour: Behaviour = Field(Behaviour(), description="clients on the virtual clock")
    compression: list[Codec] = Field([], description="codecs that updates pass, in order")
    error_feedback: bool = Field(False, description="clients add what compression left out to their next update")
    downlink: list[Codec] = Field([], description="codecs that the model passes on its way to clients")
    aggregate_keys: Text | None = Field(
        None, description="pattern of the tensors that are sent and aggregated; the others stay with their client"
    )
    fold_block: PositiveInt | None = Field(
        None, description="clients folded together; null: a sixteenth of the cohort. Part of what makes bits equal"
    )
    on_failure: Literal["raise", "drop", "retry"] = Field(
        "raise", description="when a client's code raises or its update is not finite"
    )

    @property
    def num_steps(self) -> int:
        return self.algorithm.rounds

    @property
    def unit(self) -> str:
        """What a step is called."""
        return "round"

    @property
    def steps_field(self) -> str:
        """Where `num_steps` is said."""
        return "strategy.algorithm.rounds"


def by_kind(value: Any) -> str | None:
    """Return which strategy a section is; one that says nothing is federated."""
    return value.get("kind", "federated") if isinstance(value, dict) else getattr(value, "kind", None)


Strategy = Annotated[
    Annotated[Federated, Tag("federated")]
    | Annotated[Peers, Tag("peers")]
    | Annotated[Pipeline, Tag("pipeline")]
    | Annotated[GraphPipeline, Tag("graph-pipeline")]
    | Annotated[LocalLearning, Tag("local-learning")]
    | Annotated[Zero, Tag("zero")]
    | Annotated[Sharded, Tag("sharded")],
    Discriminator(by_kind),
]


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

    every: PositiveInt | None = Field(
        None, description="rounds or steps between checkpoints; null: 5 rounds, or a tenth of a pipeline's steps"
    )
    keep: PositiveInt = Field(3, description="newest checkpoints kept")
    storage: Text | None = Field(None, description="folder or object-store URI; default the run directory")


class EvaluateClients(Section):
    """Measuring each client's own model on examples that it holds out."""

    held_out: Rate = Field(0.0, description="fraction of a client's examples kept from training; 0 measures nothing")
    sample: PositiveInt | Literal["all"] = Field("all", description="clients measured at a time, drawn anew each time")
    keep_best: bool = Field(False, description="keep the best model of each client")


class Evaluate(Section):
    """Measuring the model on the test data."""

    every: PositiveInt | None = Field(
        None, description="rounds or steps between evaluations, besides the last; null: 1, or a tenth of a pipeline's"
    )
    batch_size: PositiveInt = Field(500, description="test examples of one forward pass")
    clients: EvaluateClients = Field(EvaluateClients(), description="measuring clients' own models; federated only")


class Storage(Section):
    """Where run directories are made."""

    root: Text = Field("runs", description="folder that holds run directories")


class Experiment(Section):
    """One experiment file."""

    name: ExperimentName = Field(description="begins the name of run directories")
    seed: NonNegativeInt = Field(0, description="the same seed gives the same run, bit for bit")
    data: Data = Field(description="what is trained on")
    model: Model = Field(description="what is trained")
    strategy: Strategy = Field(Federated(), description="how it is trained")
    cluster: Cluster = Field(Cluster(), description="where the work is done")
    tracking: Tracking = Field(Tracking(), description="MLflow")
    checkpoint: Checkpoint = Field(Checkpoint(), description="what a run can be resumed from")
    evaluate: Evaluate = Field(Evaluate(), description="measuring on the test data")
    storage: Storage = Field(Storage(), description="where run directories are made")
    search: Search | None = Field(None, description="fields to vary; only `orchestrator tune` reads it")
    grid: RunGrid | None = Field(None, description="every combination of values as a run, with heat maps")

    @property
    def model_section(self) -> dict[str, Any]:
        """What models are built from: the section, and the rule by which clients train, where there is one."""
        section = self.model.model_dump()
        rule = self.strategy.client.rule if isinstance(self.strategy, Federated) else None
        return section if rule is None else {**section, "local_rule": {"name": rule.name, **rule.alone()}}

    @property
    def num_workers(self) -> int:
        """Processes that train, besides this one; 0 when this one does."""
        ranks = self.strategy.num_ranks if isinstance(self.strategy, GangSection) else self.cluster.workers
        return ranks if self.cluster.workers else 0

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations."""
        return self.evaluate.every or (1 if isinstance(self.strategy, Federated) else -(-self.strategy.num_steps // 10))

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""
        return self.checkpoint.every or (5 if isinstance(self.strategy, Federated) else self.evaluate_every)
