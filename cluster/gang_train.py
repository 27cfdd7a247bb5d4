"""How a gang uses Ray Train: `TorchTrainer` starts the ranks, joins them in a process group, and ends them.

It runs in the hub's process, in a thread, and Ray Train's controller with it: as an actor of its own the controller
takes 3 s longer to start, and could outlive us. A callback tells the hub who the ranks are and which of them died.
Three of Ray Train's helpers are left out, because they outlive the run or hold up its end: the detached actor that asks
an autoscaler (a pending placement group does so as well), the detached actor that cleans up placement groups (it needs
a dashboard; the hub does it), and the watcher of preempted nodes. Ray Train retries nothing here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.config import LoggingConfig

from cluster import gang_rank
from cluster.gang_plan import Member, Plan
from cluster.host import Raised
from cluster.losses import Lost, classify

POLL_S = 0.2
"""How often Ray Train's controller asks the ranks how they are: bounds how soon a death and the end are seen."""

START_MARGIN_S = 60.0
"""Ray Train waits so much longer for places than the driver, which then can tell what is missing."""


class Listener(NamedTuple):
    """What is called with news from Ray Train, in its thread.

    Args:
        starts: before places are asked for; raises when the run is over already.
        placed: with the ranks, before they join their group. found: with what befell some, by rank.
    """

    starts: Callable[[], None]
    placed: Callable[[list[Member]], None]
    found: Callable[[dict[int, Lost | Raised]], None]


def fit(plan: Plan, listener: Listener) -> None:
    """Run the gang's program on all ranks to the end; it blocks.

    Raises:
        TrainingFailedError: Ray Train's account of what went wrong.
    """
    from ray._private.worker import _global_node

    os.environ.update(_switches(plan))
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # Ray Train wants storage and writes an empty marker; the session's folder ends with the cluster at the latest
    folder = tempfile.mkdtemp(prefix="gang-", dir=_global_node.get_session_dir_path())
    try:
        trainer = _Trainer(
            gang_rank.main,
            train_loop_config={"task": plan.task},
            torch_config=TorchConfig(backend=plan.backend, timeout_s=math.ceil(plan.group_timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=plan.num_ranks,
                use_gpu=plan.resources.get("GPU", 0) > 0,
                resources_per_worker=dict(plan.resources),
                placement_strategy=plan.strategy.upper(),
            ),
            run_config=RunConfig(
                name="gang",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                worker_runtime_env={"env_vars": dict(plan.environment)},
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        trainer.listener = listener
        trainer.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _switches(plan: Plan) -> dict[str, str]:
    """Return Ray Train's settings that exist as environment variables only; for the hub's own process."""
    return {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_S),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(plan.group_timeout_s),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(plan.start_timeout_s + START_MARGIN_S),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train blocks in a thread of its own
    }


_LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    listener: Listener

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        kept = [one for one in arguments["callbacks"] if not isinstance(one, _LEFT_OUT)]
        arguments["callbacks"] = [*kept, _Watch(self.listener)]
        arguments["scaling_policy"] = _FixedRanks(self.scaling_config)
        controller = TrainController(**arguments)
        asyncio.run(controller.run())
        return controller.get_result()


class _FixedRanks(FixedScalingPolicy):  # type: ignore[misc]
    """A fixed number of ranks, without the detached actor that asks an autoscaler for nodes."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class _Watch(WorkerGroupCallback):  # type: ignore[misc]
    """Tells the hub who the ranks are and which of them died."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        self._listener.starts()

    def before_init_train_context(self, workers: Sequence[Any]) -> dict[str, list[Any]]:
        self._listener.placed(
            [
                Member(one.distributed_context.world_rank, one.metadata.node_ip, one.metadata.pid, one.actor)
                for one in workers
            ]
        )
        return {}

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        found: dict[int, Lost | Raised] = {}
        for rank, error in worker_group_status.errors.items():
            failure = classify(getattr(error, "health_check_failure", error))
            found[rank] = failure if isinstance(failure, Lost) else failure._replace(traceback=str(error))
        if found:
            self._listener.found(found)
