"""Pipelines as data: schedules, their validator and simulator, their drawings, and where a model is cut."""

from __future__ import annotations

from strategies.pipeline.actions import Action, Job, Kind, Schedule, job, num_positions
from strategies.pipeline.balance import balance
from strategies.pipeline.gpipe import gpipe
from strategies.pipeline.interleaved import interleaved
from strategies.pipeline.names import SCHEDULES, schedule
from strategies.pipeline.one_f_one_b import one_f_one_b
from strategies.pipeline.simulate import Costs, Simulation, Span, simulate, uniform
from strategies.pipeline.timeline import timeline
from strategies.pipeline.validate import deadlock, problems
from strategies.pipeline.zero_bubble import zero_bubble

__all__ = [
    "SCHEDULES",
    "Action",
    "Costs",
    "Job",
    "Kind",
    "Schedule",
    "Simulation",
    "Span",
    "balance",
    "deadlock",
    "gpipe",
    "interleaved",
    "job",
    "num_positions",
    "one_f_one_b",
    "problems",
    "schedule",
    "simulate",
    "timeline",
    "uniform",
    "zero_bubble",
]
