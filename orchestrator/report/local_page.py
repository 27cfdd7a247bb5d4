"""What the page of a local-learning run has that others have not: modules, their losses, and workers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from orchestrator.report import charts, gantt, scales, trace
from orchestrator.report.charts import Axis, Line
from orchestrator.report.page import Figure, Section, Tile
from orchestrator.report.pipeline_page import timelines
from orchestrator.report.reading import Facts, finite
from orchestrator.report.step_time import step_time
from orchestrator.report.timeline import Timeline

_HEAD = (
    "module", "worker", "of the model", "parameters", "auxiliary", "forward", "learning", "kept for backward",
    "last loss", "process",
)  # fmt: skip
_MOST_CURVES = 8


def is_local(facts: Facts) -> bool:
    """Return whether this is a run of local learning."""
    return facts.strategy.get("kind") == "local-learning"


def tiles(facts: Facts) -> list[Tile]:
    """Return the numbers that only local learning has."""
    found = step_time(facts)
    sent = finite(facts, "comm/boundary_bytes")
    if sent:
        each = f"{scales.size(sum(sent) / len(sent))} a step" if sum(sent) else "all in one process"
        found.append(Tile("sent between workers", scales.size(sum(sent)), each))
    kept = [bytes_ for index in range(len(_modules(facts))) for bytes_ in finite(facts, f"modules/saved_bytes_{index}")]
    whole = (facts.partition or {}).get("backpropagation_bytes")
    if kept and isinstance(whole, int) and whole > 0:
        note = f"of any module; backpropagation keeps {scales.memory(whole)}"
        found.append(Tile("kept for backward at most", scales.memory(max(kept)), note))
    return found


def section(facts: Facts) -> Section | None:
    """Return the section on modules and workers, or None when this is no run of local learning."""
    if not is_local(facts):
        return None
    found = timelines(facts)
    figures = []
    losses = _losses(facts)
    if losses:
        picture = charts.lines(losses, charts.steps(facts.unit), Axis("mean loss since the last evaluation"))
        left_out = len(_modules(facts)) - len(losses)
        caption = f"{left_out} modules between these are left out." if left_out > 0 else ""
        figures.append(Figure("Loss of each module", picture, caption=caption))
    if found.done:
        done = found.done._replace(
            names=tuple(f"worker {number}" for number in range(len(found.done.stages))), item="batch"
        )
        title = f"Measured: {scales.duration(done.length_s)}, idle {scales.percent(done.bubble)}"
        drawn = gantt.draw([(title, done)])
        figures.append(Figure(f"The last batches before step {done.step}", drawn, caption=_caption(done), wide=True))
    rows = list(_rows(facts))
    if not rows and not figures and not found.problems:
        return None
    note = " ".join([*_note(facts), *found.problems])
    return Section("modules", "Modules", figures=figures, note=note, head=_HEAD if rows else (), rows=rows)


# ---------------------------------------------------------------------------------------------------- the parts


def _rows(facts: Facts) -> Iterator[list[str | Markup]]:
    shares = (facts.partition or {}).get("shares")
    shares = shares if isinstance(shares, list) and all(isinstance(share, int) for share in shares) else []
    owners = [worker for worker, share in enumerate(shares) for _ in range(share)]
    for index, told in enumerate(_modules(facts)):
        worker = owners[index] if index < len(owners) else None
        names = [str(name) for name in told.get("names", ())]
        between = " \N{HORIZONTAL ELLIPSIS} "
        yield [
            str(index),
            "" if worker is None else _worker(facts, worker),
            names[0] if len(names) == 1 else between.join((names[0], names[-1])) if names else "",
            _show(told.get("num_parameters"), scales.count),
            _show(told.get("num_auxiliary"), scales.count),
            _show(told.get("forward_s"), scales.duration),
            _show(told.get("learn_s"), scales.duration),
            _show(_last(facts, f"modules/saved_bytes_{index}"), scales.memory),
            _show(_last(facts, f"modules/loss_{index}"), scales.plain),
            _show(_last(facts, f"workers/memory_bytes_{worker}"), scales.memory),
        ]


def _worker(facts: Facts, worker: int) -> str:
    """Return a worker's number, and how many processes it is where that is more than one."""
    counts = (facts.partition or {}).get("replicas")
    count = counts[worker] if isinstance(counts, list) and worker < len(counts) else 1
    return f"{worker} ({count} processes)" if isinstance(count, int) and count > 1 else str(worker)


def _note(facts: Facts) -> Iterator[str]:
    strategy = facts.strategy
    rule = strategy.get("rule")
    name = rule.get("name", "auglocal") if isinstance(rule, Mapping) else "auglocal"
    regime = strategy.get("regime", "lossless")
    if (facts.partition or {}).get("stream") == "none":
        yield f"Rule {name}: modules hear nothing from each other while they train."
    elif regime == "asynchronous":
        yield f"Rule {name}, asynchronous: each worker at its own pace on what its ring buffer has; not reproducible."
        for worker in range(1, len(_modules(facts))):
            age, again = (_last(facts, f"workers/{what}_{worker}") for what in ("staleness", "reused"))
            if age is not None and again is not None:
                yield (
                    f"Worker {worker} trained on batches {age:.1f} behind the newest in the mean, "
                    f"{scales.percent(again)} of them used before."
                )
    else:
        yield f"Rule {name}, lossless: each batch once and in order, with the bits of one process."
        if facts.partition and max(facts.partition.get("replicas", [1])) > 1:
            yield "Processes of one worker share its batches; the time line and the memory are of the first of them."
        workers = range(len((facts.partition or {}).get("shares") or ()))
        held = [most for worker in workers if (most := _last(facts, f"workers/held_bytes_{worker}")) is not None]
        if held:
            yield "A lost worker is started again alone; for it the others held of what they sent, at most, "
            yield f"{', '.join(map(scales.memory, held))}, worker by worker."
    yield (
        "In the table, forward and learning are of one batch, measured before the run; kept for backward is the most "
        "that autograd held in the first batch; process is the largest resident memory of the worker so far."
    )


def _caption(done: Timeline) -> str:
    said = ["Backward is learning: a module\N{RIGHT SINGLE QUOTATION MARK}s own, after its output was sent."]
    if done.in_turns:
        said.append("No two workers computed at the same time, as in one process (cluster.workers=0).")
    return " ".join([*said, f"{trace.FILE} opens in ui.perfetto.dev."])


def _losses(facts: Facts) -> list[Line]:
    """Return a curve a module; of many, some with the first and the last."""
    known = [index for index in range(len(_modules(facts))) if f"modules/loss_{index}" in facts.series]
    if len(known) > _MOST_CURVES:
        known = [known[round(place * (len(known) - 1) / (_MOST_CURVES - 1))] for place in range(_MOST_CURVES)]
    series = [(index, facts.series[f"modules/loss_{index}"]) for index in known]
    return [Line(f"module {index}", found.step, found.value) for index, found in series]


def _modules(facts: Facts) -> Sequence[Mapping[str, Any]]:
    told = (facts.partition or {}).get("modules")
    return [each for each in told if isinstance(each, Mapping)] if isinstance(told, list) else []


def _show(value: Any, how: scales.Format) -> str:
    return how(float(value)) if isinstance(value, int | float) else ""


def _last(facts: Facts, metric: str) -> float | None:
    values = finite(facts, metric)
    return values[-1] if values else None
