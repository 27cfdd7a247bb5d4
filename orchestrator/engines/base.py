"""What a run's life asks of an engine, whatever the strategy: states between steps, and reports of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from orchestrator.client_store import ClientStore
from strategies.base import State, Tree
from strategies.federated.clock import Clock
from trainers.cohort import ClientReport

if TYPE_CHECKING:
    from orchestrator.checkpoints import CheckpointStore


class ShardSet(NamedTuple):
    """A state that ranks wrote by themselves: files of pieces (`trainers.shards`) in one folder.

    Args:
        folder: a path that all ranks see, or a URI. files: name, num_bytes and sha256 of each, as `ShardFile`.
    """

    folder: str
    files: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class RunState:
    """All that the next step depends on, besides the experiment.

    Args:
        step: steps done. model: the model after them; None where it stayed with the workers, between checkpoints.
        server: what a rule or an optimizer remembers, slot -> tree.
        clock: virtual time, and the participations under way.
        versions: what those that began at earlier steps received.
        shards: model and optimizer, where ranks wrote them; then `model` is None and `server` empty.
    """

    step: int
    model: Tree | None
    server: State
    clock: Clock = field(default_factory=Clock)
    versions: Mapping[int, Tree] = field(default_factory=dict)
    shards: ShardSet | None = None

    @property
    def now_s(self) -> float:
        """Virtual time, in seconds."""
        return self.clock.now_s

    @property
    def whole(self) -> bool:
        """Whether a checkpoint can be made of it."""
        return self.model is not None or self.shards is not None


class StepReport(NamedTuple):
    """One step: the state after it, its figures by metric name, who took part, and events to be recorded.

    Args:
        events: `(kind, fields)`.
        export: makes the state whole where it is not; returns None when the engine has gone on.
    """

    state: RunState
    values: Mapping[str, float]
    clients: tuple[ClientReport, ...] = ()
    events: tuple[tuple[str, Mapping[str, object]], ...] = ()
    export: Callable[[], RunState | None] | None = None

    @property
    def whole(self) -> RunState | None:
        """The state, whole; None where it cannot be had."""
        if self.state.whole:
            return self.state
        return None if self.export is None else self.export()


class Engine(Protocol):
    """Runs the steps of an experiment.

    Args:
        clients: what the run remembers of its clients, as of the state that `steps` begins with; set before `start`.
            An engine without clients leaves it alone.
        store: where checkpoints go; set before `start`, for ranks that write them by themselves.
    """

    clients: ClientStore | None
    store: CheckpointStore | None

    def summary(self) -> dict[str, Any]:
        """Return what of the run is divided among whom, for `partition.json`."""
        ...

    def initial_state(self) -> RunState:
        """Return the state before the first step."""
        ...

    def start(self) -> None:
        """Share the data and build the workers."""
        ...

    def steps(self, state: RunState) -> Iterator[StepReport]:
        """Yield one report a step, from `state` to the last; the last one's state is whole."""
        ...

    def finish_early(self) -> None:
        """End after the step under way, or soon after it, with a whole state; `steps` then yields no more."""
        ...
