"""The experiment file: what it may hold, how it is read and checked, and how it is written back."""

from orchestrator.config.loading import Loaded, Origins, load_experiment, to_yaml
from orchestrator.config.overrides import format_override

__all__ = ["Loaded", "Origins", "format_override", "load_experiment", "to_yaml"]
