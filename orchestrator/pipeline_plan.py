"""What a pipeline would do, before it does it: the cut, the time of a step, the bubble, memory and bytes.

The layers are measured in this process; nothing is started. See `orchestrator.stages` for what the prediction leaves
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.config import Loaded
from orchestrator.config.schema import Experiment, Pipeline
from orchestrator.errors import PlacementError
from orchestrator.plan_page import placement_lines, section, verdict
from orchestrator.planning import PROCESS_BYTES, placement_of
from orchestrator.preparing import Prepared
from orchestrator.progress import size
from orchestrator.stages import Stages, divide, num_microbatches
from strategies.pipeline import timeline

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.inventory import Node
    from cluster.placement import Placement
    from trainers.pipeline.costs import LayerCost

HINT = "strategy.stages=N, strategy.replicas=1, cluster.resources_per_worker.CPU=0.5, or cluster.workers=0"


@dataclass(frozen=True)
class PipelinePlan:
    """What a pipeline would do. `problems` says what keeps it from starting; empty when it can.

    Args:
        text: the resolved experiment. changed: what overrides changed.
        data_bytes: of the data set, which every rank holds. nodes, placement: as in `planning.Plan`.
    """

    experiment: Experiment
    text: str
    changed: list[str]
    num_parameters: int
    stages: Stages
    data_bytes: int
    nodes: list[Node] = field(default_factory=list)
    placement: Placement | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return PlacementError.exit_code if self.problems else 0

    def render(self, console: Console) -> None:
        """Print the plan."""
        for line in self._page():
            console.print(line, markup=False)

    def _page(self) -> Iterator[str]:
        yield from section("experiment", self.text.rstrip().splitlines())
        if self.changed:
            yield from section("changed", self.changed)
        yield from section("placement", placement_lines(self))
        yield from section("stages, from layers measured on this machine", list(self._stages()))
        yield from section("one batch on paper, transfers left out", list(self._step()))
        yield from verdict(self.problems, HINT)

    def _stages(self) -> Iterator[str]:
        strategy = self.experiment.strategy
        assert isinstance(strategy, Pipeline)
        yield f"{'stage':>5}  {'layers':>6}  {'parameters':>12}  {'forward':>9}  {'backward':>9}  {'state':>10}  " + (
            f"{'activations':>11}  {'recomputes':<11}  layers"
        )
        for stage in range(strategy.stages):
            own = self.stages.of_stage(stage)
            forward, backward = sum(cost.forward_s for cost in own), sum(cost.backward_s for cost in own)
            pieces = [self.stages.of_position(position) for position in self.stages.placement.positions(stage)]
            yield (
                f"{stage:>5}  {len(own):>6}  {sum(cost.num_parameters for cost in own):>12,}  {_ms(forward):>9}  "
                f"{_ms(backward):>9}  {size(self.stages.fixed_bytes[stage]):>10}  "
                f"{size(self.stages.predicted.peak_bytes[stage]):>11}  {self.stages.recompute[stage]:<11}  "
                + ", ".join(f"{_called(piece[0])} ... {_called(piece[-1])}" for piece in pieces)
            )

    def _step(self) -> Iterator[str]:
        strategy, predicted = self.experiment.strategy, self.stages.predicted
        assert isinstance(strategy, Pipeline)
        held_by = [self.stages.placement.stage(position) for position in range(len(self.stages.layers))]
        cuts = [p for p in range(1, len(held_by)) if held_by[p - 1] != held_by[p]]
        boundaries = sum(self.stages.of_position(position)[0].input_bytes for position in cuts)
        sent = 2 * boundaries * num_microbatches(strategy) * strategy.replicas * strategy.accumulate
        alone = sum(c.forward_s + c.backward_s for c in self.stages.costs) * num_microbatches(strategy)
        yield f"{'parameters':<28}{self.num_parameters:>14,}"
        yield f"{'time':<28}{_ms(float(predicted.makespan_s)):>14}   {_ms(alone)} by one process"
        yield f"{'bubble':<28}{float(predicted.bubble):>14.1%}"
        yield f"{'micro-batches alive':<28}{', '.join(map(str, predicted.peak_live)):>14}   at most, by stage"
        yield f"{'sent between stages a step':<28}{size(sent):>14}   activations and gradients"
        yield ""
        yield from timeline(predicted).splitlines()


def plan_pipeline(loaded: Loaded, prepared: Prepared) -> PipelinePlan:
    """Work out what a pipeline would do.

    Raises:
        ConfigError: when the model cannot be cut as asked. PlacementError: when the cluster does not answer.
    """
    experiment = loaded.experiment
    stages = divide(prepared, loaded.where)
    dataset = prepared.dataset
    data_bytes = sum(a.nbytes for a in (dataset.train_x, dataset.train_y, dataset.test_x, dataset.test_y))
    nodes, placement = placement_of(experiment)
    return PipelinePlan(
        experiment,
        loaded.text,
        loaded.changed,
        sum(parameter.numel() for parameter in prepared.model.parameters()),
        stages,
        data_bytes,
        nodes,
        placement,
        list(_problems(experiment, stages, data_bytes, nodes, placement)),
    )


def _problems(
    experiment: Experiment, stages: Stages, data_bytes: int, nodes: list[Node], placed: Placement | None
) -> Iterator[str]:
    from cluster import placement

    strategy = experiment.strategy
    assert isinstance(strategy, Pipeline)
    if placed is not None and not placed.fits:
        yield placement.reason(placed, len(nodes))
        return
    need = [PROCESS_BYTES + stages.stage_bytes(rank % strategy.stages) for rank in range(strategy.num_ranks)]
    for index, node in enumerate(nodes):
        held = [n for rank, n in enumerate(need) if placed is None or placed.assignment[rank] == index]
        total, have = sum(held) + data_bytes, node.total.get("memory", 0.0)
        if total > have > 0:
            yield f"{len(held)} stages on {node.address} would need about {size(total)}, the node has {size(have)}"


def _called(cost: LayerCost) -> str:
    return cost.name.split(" ")[0]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
