"""Pipelines as data: schedules, their validator and simulator, their drawings, and where a model is cut."""

from __future__ import annotations

from strategies.pipeline.actions import Action, Job, Kind, Schedule, job, num_positions, placement_of
from strategies.pipeline.balance import balance
from strategies.pipeline.gpipe import gpipe
from strategies.pipeline.interleaved import interleaved
from strategies.pipeline.names import SCHEDULES, chunks_of, placement, schedule, splits_backward
from strategies.pipeline.one_f_one_b import one_f_one_b
from strategies.pipeline.placement import Placement
from strategies.pipeline.simulate import Costs, Simulation, Span, simulate, uniform
from strategies.pipeline.timeline import timeline
from strategies.pipeline.validate import deadlock, problems
from strategies.pipeline.zero_bubble import zero_bubble
from strategies.pipeline.zero_bubble_v import zero_bubble_v

__all__ = [
    "SCHEDULES",
    "Action",
    "Costs",
    "Job",
    "Kind",
    "Placement",
    "Schedule",
    "Simulation",
    "Span",
    "balance",
    "chunks_of",
    "deadlock",
    "gpipe",
    "interleaved",
    "job",
    "num_positions",
    "one_f_one_b",
    "placement",
    "placement_of",
    "problems",
    "schedule",
    "simulate",
    "splits_backward",
    "timeline",
    "uniform",
    "zero_bubble",
    "zero_bubble_v",
]
