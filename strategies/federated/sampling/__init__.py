"""Which clients take part: samplers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from strategies.federated.sampling.base import Candidates, Feedback, Sampler
from strategies.federated.sampling.listed import fixed_sampler, round_robin_sampler
from strategies.federated.sampling.oort import oort_sampler
from strategies.federated.sampling.power_of_choice import power_of_choice_sampler
from strategies.federated.sampling.uniform import uniform, uniform_sampler
from strategies.federated.sampling.weighted import weighted_sampler

__all__ = ["SAMPLERS", "Candidates", "Feedback", "Sampler", "sampler", "uniform"]

SAMPLERS: Mapping[str, Callable[..., Sampler]] = {
    "uniform": uniform_sampler,
    "weighted": weighted_sampler,
    "fixed": fixed_sampler,
    "round-robin": round_robin_sampler,
    "oort": oort_sampler,
    "power-of-choice": power_of_choice_sampler,
}
"""Name in an experiment file -> function that builds the sampler from the section's other fields."""


def sampler(section: Mapping[str, Any]) -> Sampler:
    """Build a sampler from its section. Raises KeyError for a name that is not in `SAMPLERS`."""
    return SAMPLERS[section["name"]](**{key: value for key, value in section.items() if key != "name"})
