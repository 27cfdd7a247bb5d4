"""What cannot be meant by an experiment without a server is refused before anything starts, with what to type."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.preparing import prepare
from tests.contract.federated_plays import play
from tests.contract.test_peers_runs import bristle, config

NINE_EACH = {"name": "digits", "partition": {"kind": "classes", "clients": 6, "per_client": 9, "examples": 3}}

REFUSED: list[tuple[dict[str, Any], str]] = [
    (config(aggregator={"name": "fltrust"}), r"strategy\.aggregator: got 'fltrust', which trusts a server's data"),
    (config(topology={"kind": "torus"}, data={"name": "digits", "partition": {"kind": "iid", "clients": 7}}),
     r"7 peers fill no grid"),
    (config(topology={"kind": "edges", "edges": [[0, 1], [2, 3], [4, 5]]}), r"falls into parts that never hear"),
    (config(partners={"kind": "jumps"}, topology={"kind": "ring"}), r"strategy\.partners: jumps need links"),
    (config(compression=[{"name": "top-k"}]), r"got 'top-k', which is made for changes of a model"),
    (config(attack={"name": "noise"}), r"got 'noise', which attacks an output layer"),
    (config(outliers=[{"peer": 6, "speed": 0.1}]), r"peer 6 is listed as an outlier, but peers are 0 to 5"),
    (config(cluster={"workers": 0, "device": "cuda"}), r"cluster\.device"),
    (config(evaluate={"clients": {"held_out": 0.2}}), r"evaluate\.clients\.held_out"),
    ({**bristle(), "model": {"name": "mlp", "hidden": [5]}}, r"model: \d+ layers are trained, expected the output"),
    (bristle(attack={"name": "optimal_little_is_enough"}), r"it has no aggregator to ask, since peers run Bristle"),
    (config(attack={"name": "optimal_little_is_enough", "knowledge": "own"}), r"it sees only what attackers have"),
    ({**bristle(attack={"name": "foreign_class", "attackers": 2, "join": True}), "data": NINE_EACH},
     r"strategy\.attack\.poison: got 'rotate'.* but peer 0 and 5 more lack one class alone"),
    (bristle(aggregator={"name": "median"}), r"got 'median', but Bristle integrates models itself"),
    (config(attack={"name": "noise", "attackers": 1}), r"got 'noise', which attacks an output layer"),
    (config(algorithm={"name": "mozi"}, aggregator={"name": "median"}), r"got 'median', but Mozi integrates models"),
    (bristle(algorithm={"name": "bristle", "test_examples": 500}), r"needs 500 test samples of class 0, but"),
]  # fmt: skip


@pytest.mark.parametrize("settings, message", REFUSED, ids=[message[:50] for _, message in REFUSED])
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(load_experiment(settings).experiment)


@pytest.mark.parametrize("aggregator", [{"name": "mean"}, {"name": "median"}], ids=lambda section: section["name"])
def test_models_that_are_no_numbers_are_rejected_and_counted(aggregator: dict[str, Any]) -> None:
    nan = {"name": "non_finite", "value": "nan", "attackers": 2, "join": True}
    played = play(config(attack=nan, aggregator=aggregator))
    assert played.last.values["robust/num_rejected"] == 2 * 6
    assert played.last.values["test/accuracy"] > 0.1
