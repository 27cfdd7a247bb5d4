"""Client behaviour: speed, availability, dropout, pauses and local steps, models of their own put together here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from strategies.federated.behaviour import availability, speed, work
from strategies.federated.behaviour.base import Behaviour
from strategies.federated.behaviour.speed import communication_s, constant_speed, duration_s, lognormal_speed
from strategies.federated.behaviour.traces import Trace, traced_waits

__all__ = [
    "IDEAL", "Behaviour", "Trace", "behaviour", "communication_s", "constant_speed", "duration_s", "lognormal_speed",
    "trace_paths",
]  # fmt: skip

IDEAL = Behaviour(
    lambda client: 1.0, work.steps_of_settings, work.never_drops, work.constant_pause(0.0), availability.always
)
"""Clients of speed 1 that are always there and never rest."""


def behaviour(run_seed: int, section: Mapping[str, Any], traces: Mapping[str, Trace] | None = None) -> Behaviour:
    """Build the behaviour that an experiment file's section describes.

    Args:
        section: `orchestrator.config.behaviours.Behaviour` as a plain dict. Parts that it leaves out are ideal.
        traces: path -> trace, for every path of `trace_paths(section)`.

    Raises:
        ValueError: when a value cannot be used, or a trace lacks speeds. KeyError: when a trace is not given.
    """
    known = traces or {}
    velocity = _speed(run_seed, section.get("speed") or {"kind": "constant"}, known)
    waits = _waits(run_seed, section.get("availability") or {"kind": "always"}, known)
    stops = section.get("stops") or {"fraction": 0.0}
    if stops["fraction"]:
        waits = availability.stopping(run_seed, waits, fraction=stops["fraction"], mean_s=stops["mean_s"])
    rate = section.get("dropout") or 0.0
    return Behaviour(
        speed=velocity,
        num_steps=_num_steps(run_seed, section.get("steps") or {"kind": "settings"}, velocity),
        drops=work.dropout(run_seed, rate) if rate else work.never_drops,
        pause_s=_pause(run_seed, section.get("pause") or {"kind": "constant", "seconds": 0.0}),
        waits_s=waits,
    )


def trace_paths(section: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the traces that a section reads, each path once."""
    parts = [section.get(name) or {} for name in ("speed", "availability")]
    return tuple(dict.fromkeys(part["path"] for part in parts if part.get("kind") == "trace"))


def _speed(run_seed: int, section: Mapping[str, Any], traces: Mapping[str, Trace]) -> Callable[[int], float]:
    match section["kind"]:
        case "constant":
            return speed.constant(run_seed)
        case "lognormal":
            return speed.lognormal(run_seed, sigma=section["sigma"])
        case "classes":
            return speed.by_class(
                run_seed,
                shares=[one["share"] for one in section["classes"]],
                speeds=[one["speed"] for one in section["classes"]],
            )
        case "trace":
            return speed.traced(traces[section["path"]])
        case kind:
            raise ValueError(f"no speed is called {kind!r}")


def _waits(run_seed: int, section: Mapping[str, Any], traces: Mapping[str, Trace]) -> availability.Waits:
    match section["kind"]:
        case "always":
            return availability.always
        case "diurnal":
            return availability.diurnal(
                run_seed, period_s=section["period_s"], share=section["share"], spread=section["spread"]
            )
        case "sessions":
            return availability.sessions(run_seed, on_s=section["on_s"], off_s=section["off_s"])
        case "trace":
            return traced_waits(traces[section["path"]], period_s=section.get("period_s"))
        case kind:
            raise ValueError(f"no availability is called {kind!r}")


def _num_steps(
    run_seed: int, section: Mapping[str, Any], velocity: Callable[[int], float]
) -> Callable[[int, int], int | None]:
    match section["kind"]:
        case "settings":
            return work.steps_of_settings
        case "uniform":
            return work.uniform_steps(run_seed, low=section["low"], high=section["high"])
        case "lognormal":
            return work.lognormal_steps(run_seed, median=section["median"], sigma=section["sigma"])
        case "by-speed":
            return work.steps_by_speed(velocity, steps=section["steps"])
        case kind:
            raise ValueError(f"no number of steps is called {kind!r}")


def _pause(run_seed: int, section: Mapping[str, Any]) -> Callable[[int, int], float]:
    match section["kind"]:
        case "constant":
            pause = work.constant_pause(section["seconds"])
        case "exponential":
            pause = work.exponential_pause(run_seed, mean_s=section["mean_s"])
        case "lognormal":
            pause = work.lognormal_pause(run_seed, median_s=section["median_s"], sigma=section["sigma"])
        case kind:
            raise ValueError(f"no pause is called {kind!r}")
    biased = section.get("classes") or []
    if not biased:
        return pause
    return work.pause_by_class(
        run_seed, pause, shares=[one["share"] for one in biased], factors=[one["factor"] for one in biased]
    )
