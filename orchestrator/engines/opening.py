"""From an experiment to the engine that runs it, with the workers that it runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.executor import Notify
from orchestrator.config import Origins
from orchestrator.config.schema import GangSection, GraphPipeline, Peers, Pipeline, Sharded, Zero
from orchestrator.engines.base import Engine
from orchestrator.executors import open_executor, open_gang
from orchestrator.interrupts import Interrupts
from orchestrator.preparing import Prepared

if TYPE_CHECKING:
    from orchestrator.engines.course import Course


@contextmanager
def open_engine(
    prepared: Prepared, interrupts: Interrupts, notify: Notify, sys_path: tuple[str, ...], where: Origins | None = None
) -> Iterator[Engine]:
    """Connect to the cluster, find a place for every worker, and yield the engine; no worker is started yet.

    Args:
        sys_path: folders where workers find the user's own modules.

    Raises:
        ConfigError: when the model cannot be divided as asked. PlacementError: when there is no room.
    """
    experiment = prepared.experiment
    if isinstance(experiment.strategy, GangSection):
        from orchestrator.engines.gang import GangEngine

        course = _course(prepared, where)
        with open_gang(experiment, notify, sys_path) as gang:
            if experiment.strategy.replaces:
                from orchestrator.engines.replacing import ReplacingEngine

                yield ReplacingEngine(prepared, course, gang, interrupts, notify)
            else:
                yield GangEngine(prepared, course, gang, interrupts, notify)
    elif isinstance(experiment.strategy, Peers):
        from orchestrator.engines.peers import PeersEngine

        with open_executor(experiment, notify) as executor:
            yield PeersEngine(prepared, executor, sys_path)
    else:
        from orchestrator.engines.rounds import RoundsEngine

        with open_executor(experiment, notify) as executor:
            yield RoundsEngine(experiment, prepared, executor, sys_path)


def _course(prepared: Prepared, where: Origins | None) -> Course:
    """Cut the model, and what else there is to cut, for a gang; a new kind of gang adds its lines here."""
    strategy = prepared.experiment.strategy
    if isinstance(strategy, Pipeline):
        from orchestrator import stages
        from orchestrator.engines.pipeline_course import PipelineCourse

        return PipelineCourse(prepared, stages.divide(prepared, where))
    if isinstance(strategy, GraphPipeline):
        from orchestrator import graph_stages
        from orchestrator.engines.graph_course import GraphCourse

        return GraphCourse(prepared, graph_stages.divide(prepared, where))
    if isinstance(strategy, Zero):
        from orchestrator.engines.zero_course import ZeroCourse

        return ZeroCourse(prepared)
    if isinstance(strategy, Sharded):
        from orchestrator import sharded_layouts
        from orchestrator.engines.sharded_course import ShardedCourse

        return ShardedCourse(prepared, sharded_layouts.divide(prepared, where))
    from orchestrator import local_stages
    from orchestrator.engines.local_course import LocalCourse

    return LocalCourse(prepared, local_stages.divide(prepared, where))
