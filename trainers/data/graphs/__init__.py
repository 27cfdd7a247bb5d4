"""Graphs by name, users' own graphs, and the folders that workers map them from."""

from trainers.data.graphs.base import GraphData
from trainers.data.graphs.registry import load
from trainers.data.graphs.validate import validate

__all__ = ["GraphData", "load", "validate"]
