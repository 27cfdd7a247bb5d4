"""What a run came to, read from its directory: its model, its clients, and where its checkpoints are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import shard_sets
from orchestrator.checkpoints import CheckpointStore
from orchestrator.config import Loaded, load_experiment
from orchestrator.config.schema import Experiment
from orchestrator.engines.base import RunState
from orchestrator.errors import ResumeError
from orchestrator.files import write_whole
from orchestrator.peer_results import links_table, peer_model
from orchestrator.rundir import RunDirectory

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Args:
        run_dir: its directory. status: FINISHED, or STOPPED when a search ended it early.
        step: the last step. metrics: the last value of every metric. unit: what a step is called.
    """

    run_dir: Path
    status: str
    step: int
    metrics: Mapping[str, float]
    unit: str = "round"

    def history(self) -> pa.Table:
        """Return every metric of every step: columns step, wall_s, virtual_s, scope, name, value."""
        return RunDirectory.open(self.run_dir).metrics()

    def weights(self) -> dict[str, Tensor]:
        """Return the model of the newest checkpoint, by parameter name."""
        return model_of(newest(*self._opened()))

    def client(self, client: int | str) -> dict[str, Tensor]:
        """Return what the run remembers of a client, as of the newest checkpoint; empty when that is nothing.

        Of a peer it is the model, by parameter name, with those parameters that nobody trains.

        Args:
            client: its number, or its name in the data.

        Raises:
            ResumeError: when there is no such client, or no whole checkpoint.
        """
        from trainers import wire

        loaded, directory = self._opened()
        number = _number_of(client, loaded) if isinstance(client, str) else client
        if loaded.experiment.strategy.kind == "peers":
            return peer_model(newest(loaded, directory), number)
        store = checkpoint_store(loaded.experiment, directory)
        state = store.newest()
        (payload,) = store.client_store(directory.path, state.step if state else None).read([number])
        return {} if payload is None else wire.decode(payload)

    def links(self) -> pa.Table:
        """Return what peers have sent to each other until the newest checkpoint; no rows where there are no peers.

        Columns sender, receiver, num_messages and num_bytes; messages that were lost count, too.

        Raises:
            ResumeError: when there is no whole checkpoint.
        """
        return links_table(newest(*self._opened()).server)

    def _opened(self) -> tuple[Loaded, RunDirectory]:
        directory = RunDirectory.open(self.run_dir)
        return load_experiment(directory.path / "config.resolved.yaml"), directory


def checkpoint_store(experiment: Experiment, directory: RunDirectory) -> CheckpointStore:
    setting = experiment.checkpoint.storage
    location = f"{setting.rstrip('/')}/{directory.manifest['id']}" if setting else directory.path / "checkpoints"
    return CheckpointStore(location, experiment.checkpoint.keep)


def newest(loaded: Loaded, directory: RunDirectory) -> RunState:
    """Return the newest whole checkpoint of a run.

    Raises:
        ResumeError: when there is none.
    """
    state = checkpoint_store(loaded.experiment, directory).newest()
    if state is None:
        raise ResumeError(f"{directory.path} holds no checkpoint", "run it again with a smaller checkpoint.every")
    return state


def model_of(state: RunState) -> dict[str, Tensor]:
    """Return the model of a state, by parameter name; of shards, put together."""
    if state.shards is not None:
        return dict(shard_sets.trees_of(state.shards, "model").get("model", {}))
    return dict(state.model or {})


def final_weights(store: CheckpointStore, directory: RunDirectory) -> tuple[Path, ...]:
    """Return a file with the model of the newest checkpoint; of shards, one that is written for the purpose."""
    from trainers import wire

    steps = store.steps()
    if not steps:
        return ()
    path = Path(store.location) / f"step-{steps[-1]:06d}" / "model.arrow"
    if path.exists():
        return (path,)
    try:
        state = store.load(steps[-1])
    except ResumeError:
        return ()  # it was whole when it was written: who asks for it is told what happened since
    if state.shards is None:
        return ()
    path = directory.path / "model.arrow"
    write_whole(path, wire.encode(model_of(state)).to_pybytes())
    return (path,)


def _number_of(name: str, loaded: Loaded) -> int:
    """Return the number of the client of that name."""
    from orchestrator.partition_summary import client_names
    from orchestrator.preparing import prepare

    names = client_names(loaded.experiment, prepare(loaded))
    if name not in names:
        raise ResumeError(f"no client is called {name!r}; there are {len(names)}, such as {', '.join(names[:3])}")
    return names.index(name)
