"""The `strategy.algorithm:` section: one class a server rule, with the arguments that its paper has.

A section's fields beside `name`, `rounds` and `cohort` are the keyword arguments of the rule of the same name in
`strategies.federated.SERVER_RULES`. A section that names no algorithm is FedAvg's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from orchestrator.config.fields import ByName, NonNegativeFloat, PositiveFloat, PositiveInt, Rate, Section

Weighting = Literal["examples", "uniform"]

# ------------------------------------------------------------------------------------------------ server optimizers


class ServerSgd(Section):
    """Gradient descent at the server, with or without momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Rate = Field(0.0, description="part of the last step that goes on")
    nesterov: bool = Field(False, description="Nesterov's form of momentum")


class ServerAdam(Section):
    """Adam at the server, without bias correction."""

    name: Literal["adam"]
    beta1: Rate = Field(0.9, description="how much of the mean change lasts a step")
    beta2: Rate = Field(0.99, description="how much of the mean squared change lasts a step")
    tau: PositiveFloat = Field(1e-3, description="added to the root of the squares; large values adapt less")


class ServerYogi(Section):
    """Yogi at the server: like Adam, but the squares shrink slowly."""

    name: Literal["yogi"]
    beta1: Rate = Field(0.9, description="how much of the mean change lasts a step")
    beta2: Rate = Field(0.99, description="how fast the squares follow; 0 at once")
    tau: PositiveFloat = Field(1e-3, description="added to the root of the squares; large values adapt less")


class ServerAdagrad(Section):
    """Adagrad at the server: squares add up for ever."""

    name: Literal["adagrad"]
    beta1: Rate = Field(0.0, description="how much of the mean change lasts a step")
    tau: PositiveFloat = Field(1e-3, description="added to the root of the squares; large values adapt less")


ServerOptimizer = Annotated[ServerSgd | ServerAdam | ServerYogi | ServerAdagrad, Field(discriminator="name")]

# ------------------------------------------------------------------------------------------------------- algorithms


class _Rule(Section):
    name: str
    rounds: PositiveInt = Field(10, description="server steps")
    cohort: PositiveInt | Literal["all"] = Field("all", description="clients that take part in a round")

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the rule, as plain values."""
        return self.model_dump(exclude={"name", "rounds", "cohort"})


class FedAvg(_Rule):
    """Federated averaging: the server moves to the weighted mean of what its clients trained."""

    name: Literal["fedavg"] = "fedavg"
    server_lr: PositiveFloat = Field(1.0, description="how far the server moves towards the mean; 1 is FedAvg")
    weighting: Weighting = Field("examples", description="what a client counts for")
    server_optimizer: ServerOptimizer = Field(ServerSgd(), description="how the server steps")


class FedAvgM(_Rule):
    """Federated averaging with momentum at the server."""

    name: Literal["fedavgm"]
    server_lr: PositiveFloat = Field(1.0, description="how far the server moves along its momentum")
    momentum: Rate = Field(0.9, description="part of the last step that goes on")
    nesterov: bool = Field(False, description="Nesterov's form of momentum")
    weighting: Weighting = Field("examples", description="what a client counts for")


class FedAdam(_Rule):
    """Federated averaging with Adam at the server."""

    name: Literal["fedadam"]
    server_lr: PositiveFloat = Field(0.01, description="learning rate of the server")
    beta1: Rate = Field(0.9, description="how much of the mean change lasts a round")
    beta2: Rate = Field(0.99, description="how much of the mean squared change lasts a round")
    tau: PositiveFloat = Field(1e-3, description="added to the root of the squares; large values adapt less")
    weighting: Weighting = Field("examples", description="what a client counts for")


class FedYogi(_Rule):
    """Federated averaging with Yogi at the server."""

    name: Literal["fedyogi"]
    server_lr: PositiveFloat = Field(0.01, description="learning rate of the server")
    beta1: Rate = Field(0.9, description="how much of the mean change lasts a round")
    beta2: Rate = Field(0.99, description="how fast the squares follow; 0 at once")
    tau: PositiveFloat = Field(1e-3, description="added to the root of the squares; large values adapt less")
    weighting: Weighting = Field("examples", description="what a client counts for")


class FedAdagrad(_Rule):
    """Federated averaging with Adagrad at the server."""

    name: Literal["fedadagrad"]
    server_lr: PositiveFloat = Field(0.1, description="learning rate of the server")
    beta1: Rate = Field(0.0, description="how much of the mean change lasts a round")
    tau: PositiveFloat = Field(1e-3, description="added to the root of the squares; large values adapt less")
    weighting: Weighting = Field("examples", description="what a client counts for")


class FedProx(_Rule):
    """Federated averaging whose clients are pulled back towards the model they received."""

    name: Literal["fedprox"]
    mu: NonNegativeFloat = Field(0.01, description="weight of the pull, mu/2 times the squared distance")
    server_lr: PositiveFloat = Field(1.0, description="how far the server moves towards the mean")
    weighting: Weighting = Field("examples", description="what a client counts for")
    server_optimizer: ServerOptimizer = Field(ServerSgd(), description="how the server steps")


class Scaffold(_Rule):
    """SCAFFOLD: control variates keep clients from drifting apart; clients step with plain SGD."""

    name: Literal["scaffold"]
    server_lr: PositiveFloat = Field(1.0, description="how far the server moves towards the mean")
    server_optimizer: ServerOptimizer = Field(ServerSgd(), description="how the server steps")


class FedNova(_Rule):
    """FedNova: changes are divided by the local work behind them; clients step with SGD, with momentum or without."""

    name: Literal["fednova"]
    mu: NonNegativeFloat = Field(0.0, description="weight of a proximal term as in fedprox; 0 for none")
    server_lr: PositiveFloat = Field(1.0, description="how far the server moves towards the mean")
    weighting: Weighting = Field("examples", description="what a client counts for")
    server_optimizer: ServerOptimizer = Field(ServerSgd(), description="how the server steps")


class FedDyn(_Rule):
    """FedDyn: each client's objective is bent so that its minimum is where the population's is."""

    name: Literal["feddyn"]
    alpha: PositiveFloat = Field(0.01, description="weight of the regulariser, alpha/2 times the squared distance")
    server_lr: PositiveFloat = Field(1.0, description="how much of a round's move is made")
    server_optimizer: ServerOptimizer = Field(ServerSgd(), description="how the server steps")


class FedBuff(_Rule):
    """FedBuff: the server steps whenever a buffer is full; stale updates count less."""

    name: Literal["fedbuff"]
    server_lr: PositiveFloat = Field(1.0, description="how far the server moves towards the mean")
    staleness_exponent: NonNegativeFloat = Field(
        0.5, description="an update t server steps old counts (1 + t)^-this; 0 counts all alike"
    )
    server_optimizer: ServerOptimizer = Field(ServerSgd(), description="how the server steps")


class WorkerMomentum(_Rule):
    """Distributed SGD whose clients send running means of their gradients; clients step with plain SGD."""

    name: Literal["worker-momentum"]
    server_lr: PositiveFloat = Field(0.1, description="learning rate of the server, for gradients")
    momentum: Rate = Field(0.9, description="part of a client's last vector that goes on")
    server_optimizer: ServerOptimizer = Field(ServerSgd(), description="how the server steps")


class AfaCd(_Rule):
    """Anarchic averaging, cross-device: the server steps along the mean of the gradients that arrived."""

    name: Literal["afa-cd"]
    server_lr: PositiveFloat = Field(1.0, description="learning rate of the server, for gradients")
    scale: Literal["server", "server*client"] = Field(
        "server", description="what stands before the gradient: server_lr, or server_lr times the client's lr"
    )
    server_optimizer: ServerOptimizer = Field(ServerSgd(), description="how the server steps")


class AfaCs(_Rule):
    """Anarchic averaging, cross-silo: the server steps along the mean of every worker's last gradient."""

    name: Literal["afa-cs"]
    server_lr: PositiveFloat = Field(1.0, description="learning rate of the server, for gradients")
    scale: Literal["server", "server*client"] = Field(
        "server", description="what stands before the gradient: server_lr, or server_lr times the client's lr"
    )
    unheard: Literal["zero", "heard"] = Field(
        "zero", description="a worker not heard from counts as a gradient of zero, or only those heard from count"
    )
    server_optimizer: ServerOptimizer = Field(ServerSgd(), description="how the server steps")


Algorithm = Annotated[
    Annotated[FedAvg, Tag("fedavg")]
    | Annotated[FedAvgM, Tag("fedavgm")]
    | Annotated[FedAdam, Tag("fedadam")]
    | Annotated[FedYogi, Tag("fedyogi")]
    | Annotated[FedAdagrad, Tag("fedadagrad")]
    | Annotated[FedProx, Tag("fedprox")]
    | Annotated[Scaffold, Tag("scaffold")]
    | Annotated[FedNova, Tag("fednova")]
    | Annotated[FedDyn, Tag("feddyn")]
    | Annotated[FedBuff, Tag("fedbuff")]
    | Annotated[WorkerMomentum, Tag("worker-momentum")]
    | Annotated[AfaCd, Tag("afa-cd")]
    | Annotated[AfaCs, Tag("afa-cs")],
    Discriminator(ByName("fedavg").tag),
]
