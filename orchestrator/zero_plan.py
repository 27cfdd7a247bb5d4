"""What ZeRO would do, before it does it: what a rank holds at every stage, and the smallest stage that fits.

Nothing is started and no model is built: see `orchestrator.zero_sizes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.config import Loaded
from orchestrator.config.schema import Experiment, Zero
from orchestrator.gang_plan import GangPlan, problems
from orchestrator.memory_checks import insist_parts
from orchestrator.planning import PROCESS_BYTES, placement_of
from orchestrator.preparing import Prepared
from orchestrator.progress import size
from orchestrator.zero_sizes import Limit, Sizes, fitting, limit, sizes
from strategies.zero.memory import STAGES

HINT = "strategy.ranks=N, strategy.stage=3, cluster.resources_per_worker.CPU=0.5, or cluster.workers=0"
_COLUMNS = ("parameters", "gradients", "optimizer", "gathered", "activations")


@dataclass(frozen=True, kw_only=True)
class ZeroPlan(GangPlan):
    """What ZeRO would do.

    Args:
        sizes: of the model. limit: of a rank. stage: that would be taken; None when none fits.
    """

    sizes: Sizes
    limit: Limit
    stage: int | None

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """As `GangPlan.sections`."""
        yield "what a rank holds, by the formulas of ZeRO", list(self._table())
        yield "model", list(self._model())

    def _table(self) -> Iterator[str]:
        strategy = self.experiment.strategy
        assert isinstance(strategy, Zero)
        moved = "  offloaded" if strategy.offload != "none" else ""
        yield f"{'stage':>5}  " + "  ".join(f"{head:>11}" for head in (*_COLUMNS, "together")) + moved
        for stage in STAGES:
            found = self.sizes.held(strategy, stage)
            line = f"{stage:>5}  " + "  ".join(f"{size(getattr(found, name)):>11}" for name in _COLUMNS)
            line += f"  {size(found.total):>11}" + (f"  {size(found.offloaded):>9}" if moved else "")
            yield line + ("  <- this run" if stage == self.stage else "")
        on_cpu = self.experiment.cluster.device == "cpu"
        least = fitting(strategy, self.sizes, self.limit, on_cpu=on_cpu)
        if self.limit.bytes is None:
            yield "what a rank may hold is not known: strategy.rank_memory=N says it, in bytes"
        elif least is None:
            yield f"no stage fits {size(self.limit.bytes)}, {self.limit.said}"
        else:
            yield f"the smallest stage that fits {size(self.limit.bytes)}, {self.limit.said}: {least}"
        yield f"beside it, a process holds {size(PROCESS_BYTES)}, and a node the data once: {size(self.data_bytes)}"

    def _model(self) -> Iterator[str]:
        strategy, model = self.experiment.strategy, self.sizes.model
        assert isinstance(strategy, Zero)
        frozen = f"{model.total - model.trained:,} of them are not trained" if model.trained != model.total else ""
        yield f"{'parameters':<28}{model.total:>14,}   {frozen}".rstrip()
        yield f"{'largest module':<28}{model.largest:>14,}   parameters of its own, which stage 3 gathers at a time"
        rows = -(-strategy.batch_size // strategy.ranks)
        accumulated = f", {strategy.accumulate} batches a step" if strategy.accumulate > 1 else ""
        yield f"{'examples of a rank':<28}{rows:>14,}   of a batch{accumulated}"
        if strategy.memory is not None and self.sizes.counted:
            told = f"of a batch, in 8 bits; {size(self.sizes.plain_activation_bytes)} as they are"
            yield f"{'activations kept':<28}{size(model.activation_bytes):>14}   {told}"
        if not self.sizes.counted:
            yield "activations could not be counted without building the model: they are left out above"


def plan_zero(loaded: Loaded, prepared: Prepared) -> ZeroPlan:
    """Work out what ZeRO would do.

    Raises:
        ConfigError: when a pattern of `memory` finds nothing. PlacementError: when the cluster does not answer.
    """
    experiment, dataset = prepared.experiment, prepared.dataset
    strategy = experiment.strategy
    assert isinstance(strategy, Zero)
    insist_parts(strategy.memory, {0: ("", prepared.model)}, loaded.where)
    found, allowed = sizes(prepared), limit(experiment, dataset)
    on_cpu = experiment.cluster.device == "cpu"
    stage = fitting(strategy, found, allowed, on_cpu=on_cpu) if strategy.stage == "auto" else strategy.stage
    nodes, placed = placement_of(experiment)
    held = found.held(strategy, 3 if stage is None else stage)
    each = held.on_device if strategy.offload == "nvme" else held.total
    ranks = strategy.ranks if experiment.cluster.workers else 1
    told = list(problems([each] * ranks, dataset.num_bytes, nodes, placed)) if on_cpu else []
    if stage is None:
        told.append(f"no stage fits {size(allowed.bytes or 0)}, {allowed.said}: stage 3 needs {size(held.total)}")
    elif allowed.bytes is not None and strategy.rank_memory is not None and each > allowed.bytes:
        told.append(f"stage {stage} needs {size(each)} a rank, and strategy.rank_memory is {size(allowed.bytes)}")
    return ZeroPlan(
        experiment=experiment,
        text=loaded.text,
        changed=loaded.changed,
        num_parameters=found.model.total,
        hint=HINT,
        sizes=found,
        limit=allowed,
        stage=stage,
        data_bytes=dataset.num_bytes,
        nodes=nodes,
        placement=placed,
        problems=told,
    )


def summarise(experiment: Experiment, found: Sizes) -> dict[str, Any]:
    """Return what each rank is expected to hold at every stage, ready for JSON."""
    strategy = experiment.strategy
    assert isinstance(strategy, Zero)
    return {
        "kind": "zero",
        "ranks": strategy.ranks,
        "stage": strategy.stage,
        "offload": strategy.offload,
        "num_parameters": found.model.total,
        "num_trained": found.model.trained,
        "activations_counted": found.counted,
        "expected": {str(stage): found.held(strategy, stage)._asdict() for stage in STAGES},
    }
