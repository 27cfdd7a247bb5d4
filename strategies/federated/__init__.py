"""Federated learning: server rules, cohort sampling, client behaviour, folding and the virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from strategies.base import ServerRule
from strategies.federated.fedavg import fedavg

SERVER_RULES: Mapping[str, Callable[..., ServerRule]] = {"fedavg": fedavg}
"""Name in an experiment file -> function that builds the rule from the section's own arguments."""


def server_rule(name: str, *, num_clients: int, **arguments: Any) -> ServerRule:
    """Build a server rule by name. Raises KeyError for a name that is not in `SERVER_RULES`."""
    return SERVER_RULES[name](num_clients, **arguments)
