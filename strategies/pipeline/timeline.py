"""Schedules drawn in ASCII, for docstrings, error messages and the terminal.

The report's picture, in colour and with a time axis, is drawn elsewhere from the same spans.
"""

from __future__ import annotations

from string import ascii_lowercase

from strategies.pipeline.actions import Action, Orders, num_positions
from strategies.pipeline.simulate import Simulation, Time

LEGEND = "F2: forward of micro-batch 2; B2: its backward; a dot: the stage waits."
SPLIT = "F2: forward of micro-batch 2; B2: its input gradients; W2: its weight gradients; a dot: the stage waits."
CHUNKS = "F2b: of the rank's second chunk."
SCALED = " '=' goes on with the action, 'r' recomputes."


def timeline(what: Orders | Simulation, width: int = 100, legend: bool = True) -> str:
    """Draw a schedule tick by tick, or a simulation to scale, one line a stage.

    Args:
        width: columns that the makespan of a simulation takes.
    """
    drawn = _simulation(what, width) if isinstance(what, Simulation) else _schedule(what)
    if not legend:
        return drawn
    actions = _actions(what)
    text = SPLIT if any(action.kind == "W" for row in actions for action in row) else LEGEND
    if num_positions(actions) > len(actions):
        text += ("\n" if text is SPLIT else " ") + CHUNKS
    return text + SCALED * isinstance(what, Simulation) + "\n\n" + drawn


def _actions(what: Orders | Simulation) -> Orders:
    return [[span.action for span in row] for row in what.spans] if isinstance(what, Simulation) else what


def _labels(actions: Orders) -> dict[Action, str]:
    chunked = num_positions(actions) > len(actions)
    return {
        x: f"{x.kind}{x.microbatch}" + (ascii_lowercase[x.chunk % 26] if chunked else "")
        for row in actions
        for x in row
    }


def _schedule(schedule: Orders) -> str:
    labels = _labels(schedule)
    num_ticks = 1 + max((action.tick for row in schedule for action in row), default=-1)
    cell = max([len(str(num_ticks - 1)), *map(len, labels.values())])
    head = max(len(f"stage {len(schedule) - 1}"), len("tick"))
    lines = ["tick".ljust(head) + "".join(f" {tick:>{cell}}" for tick in range(num_ticks))]
    for stage, row in enumerate(schedule):
        at = {action.tick: labels[action] for action in row}
        cells = "".join(f" {at.get(tick, '.'):>{cell}}" for tick in range(num_ticks))
        lines.append(f"stage {stage}".ljust(head) + cells)
    return "\n".join(lines)


def _simulation(simulation: Simulation, width: int) -> str:
    labels = _labels(_actions(simulation))
    head = len(f"stage {len(simulation.spans) - 1}")

    def column(time: Time) -> int:
        return round(time * width / simulation.makespan_s) if simulation.makespan_s else 0

    lines = []
    for stage, (spans, recomputed) in enumerate(zip(simulation.spans, simulation.recomputed, strict=True)):
        row = ["."] * width
        for begin, end, _ in recomputed:
            row[column(begin) : column(end)] = "r" * (column(end) - column(begin))
        for begin, end, action in spans:
            room = column(end) - column(begin)
            row[column(begin) : column(end)] = labels[action][:room].ljust(room, "=")
        lines.append(f"stage {stage}".ljust(head) + " " + "".join(row))
    return "\n".join([*lines, f"makespan {float(simulation.makespan_s):.4g} s, bubble {float(simulation.bubble):.1%}"])
