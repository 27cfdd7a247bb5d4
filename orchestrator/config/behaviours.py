"""The `behaviour:`, `sampler:` and `pacing:` sections of a federated strategy: clients and rounds in virtual time.

`strategies.federated` builds each from the section as a plain dict: `behaviour`, `sampler` and `pacing`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Le, MinLen
from pydantic import Field, model_validator

from orchestrator.config.fields import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    Section,
    Text,
)  # fmt: skip

UpToOne = Annotated[NonNegativeFloat, Le(1)]
DAY_S = 86400.0
Share = Annotated[PositiveInt, Le(1000)]

# --------------------------------------------------------------------------------------------------------- speed


class ConstantSpeed(Section):
    """All clients are equally fast."""

    kind: Literal["constant"] = "constant"


class LognormalSpeed(Section):
    """Clients differ in speed; its logarithm is normal."""

    kind: Literal["lognormal"]
    sigma: NonNegativeFloat = Field(0.5, description="spread of the logarithm of a client's speed")


class SpeedClass(Section):
    """Clients of one speed."""

    share: Share = Field(1, description="how many they are, relative to the other classes; whole numbers")
    speed: PositiveFloat = Field(description="local steps in the time that speed 1 takes for one")


class ClassSpeed(Section):
    """Clients are of a few classes; speeds 5 and 1 are 5:1 biased arrivals."""

    kind: Literal["classes"]
    classes: Annotated[list[SpeedClass], MinLen(1)] = Field(description="the classes, in shares of the clients")


class TraceSpeed(Section):
    """Clients are as fast as the devices of a table."""

    kind: Literal["trace"]
    path: Text = Field(description="Parquet with columns client, start_s, end_s, speed; client i is device i mod n")


Speed = Annotated[ConstantSpeed | LognormalSpeed | ClassSpeed | TraceSpeed, Field(discriminator="kind")]

# -------------------------------------------------------------------------------------------------- availability


class Always(Section):
    """Clients can always take part."""

    kind: Literal["always"] = "always"


class Diurnal(Section):
    """Each client can take part during one stretch of every day."""

    kind: Literal["diurnal"]
    period_s: PositiveFloat = Field(DAY_S, description="virtual seconds of a day")
    share: Annotated[PositiveFloat, Le(1)] = Field(0.5, description="part of the day a client is available")
    spread: UpToOne = Field(
        1.0, description="part of the day over which clients' mornings are spread; 0: one time zone"
    )


class Sessions(Section):
    """Clients come and go at random; both times are exponential."""

    kind: Literal["sessions"]
    on_s: PositiveFloat = Field(description="mean virtual seconds a client stays")
    off_s: PositiveFloat = Field(description="mean virtual seconds it is away")


class TraceAvailability(Section):
    """Clients are available when the devices of a table were."""

    kind: Literal["trace"]
    path: Text = Field(description="Parquet with columns client, start_s, end_s; client i is device i mod n")
    period_s: PositiveFloat | None = Field(None, description="the table begins again after this long; null: never")


Availability = Annotated[Always | Diurnal | Sessions | TraceAvailability, Field(discriminator="kind")]

# ------------------------------------------------------------------------------------------------- pauses, steps


class PauseClass(Section):
    """Clients that pause alike."""

    share: Share = Field(1, description="how many they are, relative to the other classes; whole numbers")
    factor: PositiveFloat = Field(description="their pauses are this many times as long")


class PauseSection(Section):
    """What every kind of pause has."""

    classes: list[PauseClass] = Field([], description="classes of clients with longer and shorter pauses")


class ConstantPause(PauseSection):
    """A free-running client rests equally long each time."""

    kind: Literal["constant"] = "constant"
    seconds: NonNegativeFloat = Field(0.0, description="virtual seconds")


class ExponentialPause(PauseSection):
    """A free-running client comes back at random times, as in a Poisson process."""

    kind: Literal["exponential"]
    mean_s: PositiveFloat = Field(description="mean virtual seconds")


class LognormalPause(PauseSection):
    """The logarithm of a pause is normal."""

    kind: Literal["lognormal"]
    median_s: PositiveFloat = Field(description="median virtual seconds")
    sigma: NonNegativeFloat = Field(1.0, description="spread of the logarithm")


Pause = Annotated[ConstantPause | ExponentialPause | LognormalPause, Field(discriminator="kind")]


class SettingsSteps(Section):
    """As `client.epochs` or `client.steps` say."""

    kind: Literal["settings"] = "settings"


class UniformSteps(Section):
    """A whole number drawn for each participation."""

    kind: Literal["uniform"]
    low: PositiveInt = Field(1, description="fewest local steps")
    high: PositiveInt = Field(description="most local steps")

    @model_validator(mode="after")
    def _in_order(self) -> UniformSteps:
        if self.low > self.high:
            raise ValueError(f"low is at most high, but {self.low} > {self.high}")
        return self


class LognormalSteps(Section):
    """The logarithm of the number of local steps is normal, drawn for each participation."""

    kind: Literal["lognormal"]
    median: PositiveFloat = Field(description="median number of local steps")
    sigma: NonNegativeFloat = Field(0.5, description="spread of the logarithm")


class StepsBySpeed(Section):
    """Fast clients do more steps, so that all take about as long."""

    kind: Literal["by-speed"]
    steps: PositiveFloat = Field(description="local steps of a client of speed 1")


Steps = Annotated[SettingsSteps | UniformSteps | LognormalSteps | StepsBySpeed, Field(discriminator="kind")]


class Stops(Section):
    """Clients that leave for ever."""

    fraction: UpToOne = Field(0.0, description="part of the clients that leaves at some time")
    mean_s: PositiveFloat = Field(1000.0, description="mean virtual seconds until they do; exponential")


class Link(Section):
    """What transfers add to a participation, at the size of the whole model."""

    downlink_bytes_per_s: PositiveFloat | None = Field(None, description="a client's; null: transfers take no time")
    uplink_bytes_per_s: PositiveFloat | None = Field(None, description="a client's; null: transfers take no time")


class Behaviour(Section):
    """How clients behave, on the virtual clock."""

    step_s: PositiveFloat = Field(0.01, description="virtual seconds of one local step at speed 1")
    speed: Speed = Field(ConstantSpeed(), description="how fast each client is")
    availability: Availability = Field(Always(), description="when a client can start")
    dropout: Rate = Field(0.0, description="probability that a client vanishes in the middle of a participation")
    pause: Pause = Field(ConstantPause(), description="how long a free-running client rests between participations")
    steps: Steps = Field(SettingsSteps(), description="local steps of a participation")
    stops: Stops = Field(Stops(), description="clients that leave for ever")
    link: Link = Field(Link(), description="how long transfers take")


# ------------------------------------------------------------------------------------------------------ samplers


class UniformSampler(Section):
    """Every client is as likely."""

    name: Literal["uniform"] = "uniform"


class WeightedSampler(Section):
    """A client is as likely as it has examples."""

    name: Literal["weighted"]


class FixedSampler(Section):
    """The same clients in every round."""

    name: Literal["fixed"]
    clients: Annotated[list[NonNegativeInt], MinLen(1)] = Field(description="their numbers, from 0")

    @model_validator(mode="after")
    def _differ(self) -> FixedSampler:
        twice = sorted({client for client in self.clients if self.clients.count(client) > 1})
        if twice:
            raise ValueError(f"clients are named once each, but {', '.join(map(str, twice[:5]))} twice")
        return self


class RoundRobinSampler(Section):
    """All clients in turn."""

    name: Literal["round-robin"]


class OortSampler(Section):
    """Clients with high loss that are not too slow, and some never tried (Lai et al. 2021)."""

    name: Literal["oort"]
    exploration: UpToOne = Field(0.9, description="part of the first cohort that is new; epsilon")
    exploration_decay: Annotated[PositiveFloat, Le(1)] = Field(0.98, description="what it shrinks by each round")
    exploration_min: UpToOne = Field(0.2, description="least part of a cohort that is new")
    penalty: NonNegativeFloat = Field(2.0, description="how much slow clients lose; alpha")
    cut_off: Annotated[PositiveFloat, Le(1)] = Field(0.95, description="of the last admitted score: who may be drawn")
    clip: Fraction = Field(0.95, description="quantile of utilities above which they count no more")
    percentile: Annotated[PositiveFloat, Le(100)] = Field(50.0, description="of durations: the preferred one at first")
    pacer_window: PositiveInt = Field(20, description="rounds whose utility is compared")
    pacer_delta: NonNegativeFloat = Field(5.0, description="what the percentile grows by when utility fell")


class PowerOfChoiceSampler(Section):
    """Of some candidates drawn by size, those with the highest loss (Cho et al. 2020)."""

    name: Literal["power-of-choice"]
    candidates: PositiveInt = Field(description="clients drawn by size; d of the paper, at least the cohort")
    fresh_losses: bool = Field(
        False, description="true measures the present model on all candidates (pow-d); false remembers (rpow-d)"
    )


Sampler = Annotated[
    UniformSampler | WeightedSampler | FixedSampler | RoundRobinSampler | OortSampler | PowerOfChoiceSampler,
    Field(discriminator="name"),
]

# -------------------------------------------------------------------------------------------------------- pacing


class AutoPacing(Section):
    """What the algorithm is made for."""

    kind: Literal["auto"] = "auto"


class SynchronousPacing(Section):
    """A cohort starts together, and the server waits for it."""

    kind: Literal["synchronous"]
    over_selection: Annotated[PositiveFloat, Le(100)] = Field(
        1.0, description="this many times the cohort starts; the first of them count, the late are discarded"
    )
    deadline_s: PositiveFloat | None = Field(None, description="virtual seconds after which the server waits no more")
    min_clients: PositiveInt = Field(1, description="arrivals that even the deadline waits for")

    @model_validator(mode="after")
    def _not_less(self) -> SynchronousPacing:
        if self.over_selection < 1:
            raise ValueError(f"over_selection is at least 1, got {self.over_selection:g}")
        return self


class StalePacing(Section):
    """What every pacing without a barrier has."""

    buffer: PositiveInt | None = Field(None, description="arrivals the server acts on; null: the algorithm's, or 10")
    max_staleness: NonNegativeInt | None = Field(None, description="server steps an arrival may be old; null: any")
    stale: Literal["drop", "accept"] = Field("drop", description="what becomes of arrivals older than that")


class BufferedPacing(StalePacing):
    """The server keeps clients in flight and acts when a buffer is full."""

    kind: Literal["buffered"]
    concurrency: PositiveInt | None = Field(None, description="clients in flight; null: algorithm.cohort")


class AnarchicPacing(StalePacing):
    """Clients take part when they like; the server acts when a buffer is full."""

    kind: Literal["anarchic"]


Pacing = Annotated[
    AutoPacing | SynchronousPacing | BufferedPacing | AnarchicPacing,
    Field(discriminator="kind"),
]
