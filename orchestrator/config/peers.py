"""The `peers` strategy of an experiment file: learning without a server."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Le, MinLen
from pydantic import Discriminator, Field, Tag

from orchestrator.config.attacks import Attack
from orchestrator.config.behaviours import Behaviour
from orchestrator.config.client import Client
from orchestrator.config.codecs import Codec
from orchestrator.config.fields import (
    AtLeastTwo,
    ByName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    Section,
)  # fmt: skip
from orchestrator.config.robust import Aggregator, Mean

UpToOne = Annotated[NonNegativeFloat, Le(1)]

# ---------------------------------------------------------------------------------------------------- topologies


class Complete(Section):
    """Everybody is linked to everybody."""

    kind: Literal["complete"] = "complete"


class Ring(Section):
    """Each peer is linked to the next, the last to the first."""

    kind: Literal["ring"]


class Torus(Section):
    """A grid whose opposite edges are joined."""

    kind: Literal["torus"]
    rows: AtLeastTwo | None = Field(None, description="rows of the grid; null: as near to a square as can be")
    columns: AtLeastTwo | None = Field(None, description="columns of the grid")


class Star(Section):
    """One peer is linked to all others."""

    kind: Literal["star"]
    center: NonNegativeInt = Field(0, description="which")


class RandomRegular(Section):
    """Everybody has the same number of links, drawn by the seed."""

    kind: Literal["random_regular"]
    degree: PositiveInt = Field(description="links of a peer")


class SmallWorld(Section):
    """A ring of near neighbours some of whose links go far (Watts and Strogatz)."""

    kind: Literal["small_world"]
    degree: PositiveInt = Field(4, description="links of a peer before; even")
    rewire: UpToOne = Field(0.1, description="probability that a link goes elsewhere")


class Exponential(Section):
    """Links to the peers 1, 2, 4, 8, ... further on."""

    kind: Literal["exponential"]
    one_peer: bool = Field(False, description="one of them in each iteration, in turn")


class Edges(Section):
    """Links that are listed."""

    kind: Literal["edges"]
    edges: Annotated[list[list[NonNegativeInt]], MinLen(1)] = Field(description="pairs of peers, counted from 0")
    directed: bool = Field(False, description="whether a pair is a link from the first to the second only")


TopologySection = Annotated[
    Complete | Ring | Torus | Star | RandomRegular | SmallWorld | Exponential | Edges, Field(discriminator="kind")
]


class Partners(Section):
    """To whom of its neighbours a peer sends."""

    kind: Literal["all", "random", "round_robin", "jumps"] = Field(
        "all", description="all; some at random; some in turn; or the peer 1, 2, 4, ... further on"
    )
    count: PositiveInt = Field(1, description="how many, of random and round_robin")


# ------------------------------------------------------------------------------------------------------- network


class ConstantLatency(Section):
    """All messages take as long."""

    kind: Literal["constant"] = "constant"
    seconds: NonNegativeFloat = Field(0.0, description="virtual seconds of a message")


class LognormalLatency(Section):
    """The logarithm of a message's time is normal."""

    kind: Literal["lognormal"]
    median_s: NonNegativeFloat = Field(description="median virtual seconds of a message")
    sigma: NonNegativeFloat = Field(0.5, description="spread of the logarithm")


class Network(Section):
    """What happens to messages on their way."""

    latency: Annotated[ConstantLatency | LognormalLatency, Field(discriminator="kind")] = Field(
        ConstantLatency(), description="how long they take"
    )
    loss: Rate = Field(0.0, description="probability that a message is lost")
    uplink_bytes_per_s: PositiveFloat | None = Field(None, description="a peer's; null: no limit")


class Late(Section):
    """Peers that come later than the others."""

    fraction: UpToOne = Field(0.0, description="part of the peers that is late")
    mean_s: PositiveFloat = Field(1.0, description="mean virtual seconds until they come; exponential")


class Outlier(Section):
    """One peer that is unlike the others."""

    peer: NonNegativeInt = Field(description="its number, from 0")
    speed: PositiveFloat | None = Field(None, description="its speed; null: that of the others")
    start_s: NonNegativeFloat = Field(0.0, description="virtual seconds until it comes")


class SynchronousPeers(Section):
    """Iterations with a barrier."""

    kind: Literal["synchronous"] = "synchronous"
    deadline_s: PositiveFloat | None = Field(
        None, description="virtual seconds after which the next iteration starts; null: all are waited for"
    )


class AsynchronousPeers(Section):
    """Every peer goes on when it is done."""

    kind: Literal["asynchronous"]
    max_age: NonNegativeInt | None = Field(
        None, description="iterations a message may lag behind its reader; null: any"
    )


# ---------------------------------------------------------------------------------------------------- algorithms


class Gossip(Section):
    """Decentralised SGD: a peer averages what it has heard with its own model, trains, and sends the result."""

    name: Literal["gossip"] = "gossip"
    iterations: PositiveInt = Field(100, description="actions of a peer")
    mixing: Literal["metropolis", "uniform", "heard"] = Field(
        "metropolis", description="what models count for when the aggregator is the mean"
    )


class Mozi(Section):
    """MOZI: a peer keeps models that are near its own and do as well on examples of its own, trains, and sends."""

    name: Literal["mozi"]
    iterations: PositiveInt = Field(100, description="actions of a peer")
    share: Annotated[PositiveFloat, Le(1)] = Field(0.5, description="of the models heard, those that are near enough")
    own_weight: UpToOne = Field(0.5, description="what the own model counts for; the mean of those kept has the rest")
    examples: PositiveInt = Field(100, description="of a peer's own, drawn anew each time, that models are tried on")


class Terciles(Section):
    """Near, middle and far models, in the paper's shares."""

    name: Literal["terciles"] = "terciles"
    num_wanted: PositiveInt = Field(10, description="models that are looked at; F of the paper")
    exploration: UpToOne = Field(0.4, description="how far those may be; alpha of the paper")
    rounding: Literal["largest-remainder", "authors"] = Field(
        "largest-remainder", description="how shares become numbers; the authors' may be one model more"
    )


class Nearest(Section):
    """The nearest models and some others, as in most of the authors' runs."""

    name: Literal["nearest"]
    num_nearest: PositiveInt = Field(20, description="of the nearest")
    num_explored: NonNegativeInt = Field(5, description="of the others")


class UniformChoice(Section):
    """Models at random, as in the authors' last commit."""

    name: Literal["uniform"]
    num_wanted: PositiveInt = Field(10, description="models that are looked at")


class AllModels(Section):
    """Every model that was heard."""

    name: Literal["all"]


Prioritizer = Annotated[Terciles | Nearest | UniformChoice | AllModels, Field(discriminator="name")]


class PaperForeign(Section):
    """The paper's rule: by how well a sender does on the classes that both own."""

    name: Literal["bristle"] = "bristle"


class Agreement(Section):
    """Bristle+: only what enough senders say alike counts."""

    name: Literal["agreement"]
    similarity: Annotated[PositiveFloat, Le(1)] = Field(0.8, description="cosine from which two columns agree")
    quorum: UpToOne = Field(0.3, description="share of all say that must agree before a column is followed")
    inertia: NonNegativeFloat = Field(1.0, description="share of all say that is added to what a peer has agreed on")
    settling: NonNegativeInt = Field(30, description="iterations after which inertia counts")


Foreign = Annotated[PaperForeign | Agreement, Field(discriminator="name")]


class Bristle(Section):
    """Bristle: peers train an output layer and weigh others' by how well they do on classes of their own."""

    name: Literal["bristle"]
    iterations: PositiveInt = Field(300, description="actions of a peer")
    prioritizer: Prioritizer = Field(Terciles(), description="which of the models heard are looked at")
    test_examples: PositiveInt = Field(10, description="test samples of each class that a peer owns")
    metric: Literal["f1", "recall"] = Field("f1", description="how well a model does on a class")
    penalty: Literal["none", "cumulative"] = Field(
        "none", description="whether a peer pays for those before it, as in early versions"
    )
    foreign: Foreign = Field(PaperForeign(), description="what merges classes that a peer cannot test")
    intersection: Literal["protocol", "known", "none"] = Field(
        "protocol", description="how peers learn how many classes they share: privately, from the simulator, not at all"
    )


PeerAlgorithm = Annotated[
    Annotated[Gossip, Tag("gossip")] | Annotated[Bristle, Tag("bristle")] | Annotated[Mozi, Tag("mozi")],
    Discriminator(ByName("gossip").tag),
]


class Peers(Section):
    """Peers that learn from each other, without a server."""

    kind: Literal["peers"]
    algorithm: PeerAlgorithm = Field(Gossip(), description="what a peer does with what it hears")
    client: Client = Field(Client(), description="what a peer does with its own data in one action")
    aggregator: Aggregator = Field(Mean(), description="how models become one; of gossip")
    topology: TopologySection = Field(Complete(), description="who is linked to whom")
    partners: Partners = Field(Partners(), description="to whom of them a peer sends")
    network: Network = Field(Network(), description="what happens to messages")
    pacing: Annotated[SynchronousPeers | AsynchronousPeers, Field(discriminator="kind")] = Field(
        SynchronousPeers(), description="whether peers wait for each other"
    )
    behaviour: Behaviour = Field(Behaviour(), description="peers on the virtual clock")
    late: Late = Field(Late(), description="peers that come late")
    outliers: list[Outlier] = Field([], description="single peers that are slow, fast or late")
    attack: Attack | None = Field(None, description="peers that work against the others")
    compression: list[Codec] = Field([], description="codecs that messages pass, in order")

    @property
    def num_steps(self) -> int:
        return self.algorithm.iterations

    @property
    def unit(self) -> str:
        """What a step is called."""
        return "iteration"

    @property
    def steps_field(self) -> str:
        """Where `num_steps` is said."""
        return "strategy.algorithm.iterations"
