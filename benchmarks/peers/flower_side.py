"""Flower's simulation on Ray (`pip install "flwr[simulation]"`), two actors of one CPU.

    python -m benchmarks.peers.flower_side TASK ROUNDS default|tuned

Written against its public interface: its own `FedAvg` on the server, of which only the choice of clients is replaced.
Flower numbers its nodes at random, so a message says in its config which client of the round it stands for. The
`ClientApp` keeps model and data for the life of its actor, actors have one thread, nothing is evaluated
(`fraction_evaluate=0`), logging is at warnings, telemetry and Ray's dashboard and log forwarding are off. Tuned, the
server also asks for answers every 10 ms instead of its 100 ms. `run_simulation` is what `flwr run` calls in the end;
it is called here directly, which its authors have deprecated for users.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")

import flwr
import ray
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from benchmarks.peers.flower_client import app
from benchmarks.peers.task import Laps, Task, arguments, finish

ACTORS = 2


class Cohorts(FedAvg):
    """FedAvg that asks the clients which the task names, and says the seconds of each round."""

    def __init__(self, task: Task) -> None:
        super().__init__(fraction_evaluate=0.0)
        self._task, self.laps = task, Laps()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round > 1:
            self.laps.lap()
        nodes = list(grid.get_node_ids())[: self._task.cohort]
        said = {"folder": str(self._task.folder), "tuned": self._task.tuned, "round": server_round - 1}
        for place, node in enumerate(nodes):
            record = RecordDict({"arrays": arrays, "config": ConfigRecord({**said, "place": place})})
            yield Message(content=record, message_type=MessageType.TRAIN, dst_node_id=node)


def main() -> None:
    folder, rounds, tuned = arguments()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    task = Task(folder, rounds, tuned)
    model = task.initialised(nn.Sequential(*task.layers()))
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < task.num_clients:
            time.sleep(0.01)  # nodes register while this thread starts
        if tuned:
            grid.pull_interval = 0.01  # type: ignore[attr-defined]
        strategy = Cohorts(task)
        strategy.laps.start()
        result = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=task.rounds)
        strategy.laps.lap()
        model.load_state_dict(result.arrays.to_torch_state_dict())

    run_simulation(
        server, app, task.num_clients, backend_config={
            "init_args": {"num_cpus": ACTORS, "include_dashboard": False, "log_to_driver": False, "logging_level": 40},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )  # fmt: skip
    finish(task, model, flwr=flwr.__version__, ray=ray.__version__)


if __name__ == "__main__":
    main()
