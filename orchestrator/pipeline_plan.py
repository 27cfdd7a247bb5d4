"""What a pipeline would do, before it does it: the cut, the time of a step, the bubble, memory and bytes.

The layers are measured in this process; nothing is started. See `orchestrator.stages` for what the prediction leaves
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.config import Loaded
from orchestrator.config.schema import Pipeline
from orchestrator.gang_plan import GangPlan, common, milliseconds
from orchestrator.preparing import Prepared
from orchestrator.progress import size
from orchestrator.stages import Stages, divide, num_microbatches
from strategies.pipeline import timeline

if TYPE_CHECKING:
    from trainers.pipeline.costs import LayerCost

HINT = "strategy.stages=N, strategy.replicas=1, cluster.resources_per_worker.CPU=0.5, or cluster.workers=0"


@dataclass(frozen=True, kw_only=True)
class PipelinePlan(GangPlan):
    """What a pipeline would do."""

    stages: Stages

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """As `GangPlan.sections`."""
        yield "stages, from layers measured on this machine", list(self._stages())
        yield "one batch on paper, transfers left out", list(self._step())

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
                f"{stage:>5}  {len(own):>6}  {sum(cost.num_parameters for cost in own):>12,}  "
                f"{milliseconds(forward):>9}  {milliseconds(backward):>9}  {size(self.stages.fixed_bytes[stage]):>10}  "
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
        yield f"{'time':<28}{milliseconds(float(predicted.makespan_s)):>14}   {milliseconds(alone)} by one process"
        yield f"{'bubble':<28}{float(predicted.bubble):>14.1%}"
        yield f"{'micro-batches alive':<28}{', '.join(map(str, predicted.peak_live)):>14}   at most, by stage"
        if strategy.memory is not None:
            plain = sum(c.plain_activation_bytes for c in self.stages.costs)
            kept = sum(c.activation_bytes for c in self.stages.costs)
            told = f"of a micro-batch, in 8 bits; {size(plain)} as they are"
            yield f"{'activations kept':<28}{size(kept):>14}   {told}"
        yield f"{'sent between stages a step':<28}{size(sent):>14}   activations and gradients"
        if strategy.shard_optimizer:
            told = "replicas of a stage have a share each; above, the largest"
            yield f"{'optimizer states':<28}{'shared':>14}   {told}"
        yield ""
        yield from timeline(predicted).splitlines()


def plan_pipeline(loaded: Loaded, prepared: Prepared) -> PipelinePlan:
    """Work out what a pipeline would do.

    Raises:
        ConfigError: when the model cannot be cut as asked. PlacementError: when the cluster does not answer.
    """
    strategy = loaded.experiment.strategy
    assert isinstance(strategy, Pipeline)
    stages = divide(prepared, loaded.where)
    each = [stages.stage_bytes(rank % strategy.stages) for rank in range(strategy.num_ranks)]
    fields = common(loaded, prepared, each, prepared.dataset.num_bytes, "stages")
    return PipelinePlan(**fields, hint=HINT, stages=stages)


def _called(cost: LayerCost) -> str:
    return cost.name.split(" ")[0]
