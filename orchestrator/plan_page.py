"""A plan as lines of text: the experiment, what changed, placement, memory, traffic, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestrator.progress import size

if TYPE_CHECKING:
    from orchestrator.gang_plan import GangPlan
    from orchestrator.planning import Plan


def page(plan: Plan) -> Iterator[str]:
    """Yield the lines of a plan, section by section."""
    yield from section("experiment", plan.text.rstrip().splitlines())
    if plan.changed:
        yield from section("changed", plan.changed)
    yield from section("placement", placement_lines(plan))
    yield from section("memory of one worker, estimated", _memory(plan))
    yield from section("memory of the driver and its object store", _rows(plan.driver_bytes))
    yield from section(f"one {plan.experiment.strategy.unit}", _round(plan))
    yield from verdict(plan.problems, "cluster.workers=N, cluster.resources_per_worker.CPU=0.5, or cluster.workers=0")


def verdict(problems: list[str], hint: str) -> Iterator[str]:
    """Yield whether the plan fits, and else why not and what to ask for."""
    if not problems:
        yield "fits. Nothing was started."
        return
    yield "does not fit:"
    yield from (f"  {problem}" for problem in problems)
    yield f"  ask for less: {hint}"


def section(title: str, lines: list[str]) -> Iterator[str]:
    yield f"-- {title} {'-' * max(0, 76 - len(title))}"
    yield from lines
    yield ""


def placement_lines(plan: Plan | GangPlan) -> list[str]:
    from cluster import placement

    cluster = plan.experiment.cluster
    if plan.placement is None:
        return ["no workers: trains in this process, without Ray"]
    lines = [f"{cluster.address}: {placement.reason(plan.placement, len(plan.nodes))}", ""]
    lines += placement.table(plan.placement).splitlines()
    lines.append("")
    for index, node in enumerate(plan.nodes):
        held = [str(worker) for worker, where in enumerate(plan.placement.assignment) if where == index]
        need = []
        for name, each in cluster.resources_per_worker.items():
            have = placement.amount(node.total.get(name, 0.0), name)
            need.append(f"{name} {placement.amount(len(held) * each, name)} of {have}")
        lines.append(f"node {node.address}: {len(held)} workers{_named(held)}; {', '.join(need)}")
    return lines


def _named(workers: list[str]) -> str:
    if not workers:
        return ""
    return f" ({', '.join(workers)})" if len(workers) <= 8 else f" ({workers[0]} ... {workers[-1]})"


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    rows = {
        "process": memory.process,
        "model": memory.model,
        "received model": memory.received,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "activations": max(memory.activations, memory.evaluation),
        "fold of updates": memory.fold,
        "largest client's data": memory.client,
    }
    lines = _rows(rows)
    workers = plan.experiment.cluster.workers
    if workers:
        lines.append(f"{'all workers':<24}{size(workers * memory.total):>12}")
    return lines


def _rows(rows: Mapping[str, int]) -> list[str]:
    lines = [f"{name:<24}{size(value):>12}" for name, value in rows.items()]
    return [*lines, f"{'together':<24}{size(sum(rows.values())):>12}"]


def _round(plan: Plan) -> list[str]:
    traffic = plan.traffic
    strategy = plan.experiment.strategy
    batch, count, unit = strategy.client.batch_size, strategy.num_steps, strategy.unit
    who, peers = ("peer", True) if strategy.kind == "peers" else ("client", False)
    sent = {"sent to each other" if peers else "sent up": traffic.up}
    if not peers:
        sent = {"sent down": traffic.down, **sent}
    return [
        f"{'parameters':<24}{plan.num_parameters:>12,}",
        f"{'message' if peers else 'model on the wire':<24}{size(traffic.model):>12}",
        f"{who + 's':<24}{traffic.num_clients:>12,}",
        *(f"{name:<24}{size(n):>12}   {size(n * count)} in {count} {unit}s" for name, n in sent.items()),
        f"{'steps of a ' + who:<24}{traffic.mean_steps:>12.1f}   at most {traffic.most_steps}, "
        f"of {batch if batch != 'full' else 'all its'} examples",
        f"{'steps of all':<24}{traffic.mean_steps * traffic.num_clients:>12,.0f}",
    ]
