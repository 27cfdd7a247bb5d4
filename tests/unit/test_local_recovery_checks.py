"""What cannot be combined with starting a lost worker again alone is refused, with the reason and what to change."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError


def experiment(**strategy: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [16, 16]},
        "strategy": {"kind": "local-learning", "recovery": "alone", **strategy},
    }


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"regime": "asynchronous"}, "depended on its speed"),
        ({"replicas": {1: 2}}, "joined in a group"),
        ({"rule": {"name": "counter-current"}}, "sent down is not held"),
    ],
)
def test_a_worker_that_would_not_find_again_what_it_was_given_cannot_come_back_alone(
    changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        load_experiment(experiment(**changes))
    assert "strategy.recovery=together" in str(refused.value)


def test_a_lossless_run_may_start_a_lost_worker_again_alone() -> None:
    assert load_experiment(experiment()).experiment.strategy.replaces
    assert not load_experiment(experiment(recovery="together")).experiment.strategy.replaces
