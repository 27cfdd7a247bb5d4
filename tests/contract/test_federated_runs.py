"""Every federated run is a function of its experiment: cut or whole, on one worker or three, the bits are the same.

The table pairs every algorithm with every pace, and crosses what else may be chosen with rules that remember.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from strategies.federated import SERVER_RULES
from tests.contract.federated_plays import Play, Shuffled, config, differ, play, same

PACES: dict[str, dict[str, Any]] = {
    "synchronous": {"kind": "synchronous"},
    "buffered": {"kind": "buffered", "buffer": 3, "concurrency": 5},
    "anarchic": {"kind": "anarchic", "buffer": 3},
}
LIVELY = {
    "speed": {"kind": "classes", "classes": [{"share": 1, "speed": 5}, {"share": 1, "speed": 1}]},
    "steps": {"kind": "uniform", "low": 1, "high": 4},
    "pause": {"kind": "exponential", "mean_s": 0.02},
    "dropout": 0.2,
}
TOP_K = {"compression": [{"name": "top-k", "keep": 0.3}], "error_feedback": True}
FEDZIP = {"compression": [{"name": "fedzip", "keep": 0.4, "encoding": "differences"}, {"name": "zstd"}]}
MEASURED = {"evaluate": {"every": 2, "clients": {"held_out": 0.25, "keep_best": True}}}
PERSONAL = {"aggregate_keys": r"^1\.", **MEASURED}
ANARCHIC = {"pacing": PACES["anarchic"], "behaviour": LIVELY}
BUFFERED = {"pacing": PACES["buffered"], "behaviour": LIVELY}


def codec(name: str, **arguments: Any) -> dict[str, Any]:
    return {"compression": [{"name": name, **arguments}]}


CASES: dict[str, dict[str, Any]] = {
    **{
        f"{rule}-{pace}": config(rule, pacing=section, behaviour=LIVELY)
        for rule in SERVER_RULES
        for pace, section in PACES.items()
    },
    # codecs, error feedback, the downlink
    "fedzip": config(**FEDZIP),
    "fedzip-tree-with-feedback-scaffold-anarchic": config(
        "scaffold", compression=[{"name": "fedzip", "scope": "tree", "keep": 0.2}], error_feedback=True, **ANARCHIC
    ),
    "fedzip-with-feedback-afa-cs-anarchic": config("afa-cs", **FEDZIP, error_feedback=True, **ANARCHIC),
    "top-k-with-feedback-buffered": config("fedbuff", **TOP_K, **BUFFERED),
    "random-k": config(**codec("random-k", keep=0.5)),
    "qsgd-scaffold": config("scaffold", **codec("qsgd")),
    "terngrad-anarchic": config("afa-cd", **codec("terngrad"), **ANARCHIC),
    "signsgd-with-feedback": config(**codec("signsgd"), error_feedback=True),
    "powersgd-with-feedback": config("fednova", **codec("powersgd"), error_feedback=True),
    "int8-at-random": config("fedadam", **codec("int8", stochastic=True)),
    "downlink-at-random-scaffold-anarchic": config(
        "scaffold", downlink=[{"name": "int8", "stochastic": True}, {"name": "zstd"}], **ANARCHIC
    ),
    "both-ways": config("fedprox", **TOP_K, downlink=[{"name": "fp16"}]),
    # tensors that stay with their clients, and clients' own models
    "personal": config(**PERSONAL),
    "personal-scaffold-feedback-anarchic": config("scaffold", **TOP_K, **PERSONAL, **ANARCHIC),
    "personal-afa-cs-buffered": config("afa-cs", **PERSONAL, **BUFFERED),
    "best-models": config("fedyogi", **MEASURED),
    "best-models-of-some": config(evaluate={"every": 1, "clients": {"held_out": 0.3, "keep_best": True, "sample": 3}}),
    # who takes part
    "weighted": config(sampler={"name": "weighted"}, **BUFFERED),
    "fixed": config("scaffold", sampler={"name": "fixed", "clients": [6, 1, 3, 0]}),
    "round-robin": config("feddyn", sampler={"name": "round-robin"}),
    "oort": config(sampler={"name": "oort", "pacer_window": 1}),
    "oort-buffered": config("fedbuff", sampler={"name": "oort"}, **BUFFERED),
    "power-of-choice": config(sampler={"name": "power-of-choice", "candidates": 6}),
    "power-of-choice-fresh": config(sampler={"name": "power-of-choice", "candidates": 6, "fresh_losses": True}),
    "power-of-choice-fresh-personal": config(
        sampler={"name": "power-of-choice", "candidates": 6, "fresh_losses": True}, **PERSONAL
    ),
    # who comes when
    "over-selection-and-deadline": config(
        "scaffold",
        pacing={"kind": "synchronous", "over_selection": 1.5, "deadline_s": 0.04, "min_clients": 2},
        behaviour=LIVELY,
    ),
    "stale-are-dropped-anarchic": config(
        "afa-cs", pacing={"kind": "anarchic", "buffer": 2, "max_staleness": 1}, behaviour=LIVELY
    ),
    "stale-are-dropped-buffered": config(
        "fedbuff", pacing={"kind": "buffered", "buffer": 2, "concurrency": 6, "max_staleness": 0}, behaviour=LIVELY
    ),
    "sessions": config(behaviour={"availability": {"kind": "sessions", "on_s": 0.2, "off_s": 0.3}}, **TOP_K),
    "diurnal-anarchic": config(
        "afa-cs", pacing=PACES["anarchic"], behaviour={"availability": {"kind": "diurnal", "period_s": 0.5}}
    ),
    "stops-anarchic": config(
        "afa-cs", pacing=PACES["anarchic"], behaviour={"stops": {"fraction": 0.5, "mean_s": 0.05}}
    ),
    "links": config(behaviour={"link": {"downlink_bytes_per_s": 1e5, "uplink_bytes_per_s": 1e4}}),
    # how clients train
    "blocks-of-one": config("scaffold", fold_block=1, cluster={"workers": 0}),
    "adamw": config(client={"epochs": 2, "batch_size": 8, "optimizer": {"name": "adamw", "lr": 0.01}}),
    "momentum-clipped": config(
        "fednova", client={"steps": 2, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}, "clip_norm": 1.0}
    ),
    "dropout-in-the-model": config("scaffold", model={"name": "mlp", "hidden": [8], "dropout": 0.5}),
    "float64": config("afa-cs", model={"name": "logistic", "dtype": "float64"}, **ANARCHIC),
}  # fmt: skip


def side_by_side(settings: dict[str, Any]) -> dict[str, Any]:
    """The same with clients trained side by side, three in a block."""
    strategy = settings["strategy"]
    client = {**strategy["client"], "vectorise": "batched"}
    return {**settings, "strategy": {**strategy, "client": client, "fold_block": strategy.get("fold_block", 3)}}


CASES |= {
    f"{name}-side-by-side": side_by_side(CASES[name])
    for name in (
        "fedavg-synchronous", "scaffold-buffered", "scaffold-anarchic", "afa-cs-anarchic", "feddyn-anarchic",
        "fedzip-with-feedback-afa-cs-anarchic", "personal-scaffold-feedback-anarchic", "best-models-of-some",
        "oort-buffered", "over-selection-and-deadline", "blocks-of-one", "adamw", "momentum-clipped", "float64",
    )
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Play]:
    """An experiment and its run: whole, on one worker."""
    settings = CASES[request.param]
    return settings, play(settings)


def test_a_run_that_is_cut_and_goes_on_with_three_workers_is_the_whole_run(case: tuple[dict[str, Any], Play]) -> None:
    settings, whole = case
    same(whole, play(settings, Shuffled, cuts=(2,)))
    assert all([c.client for c in r.clients] == sorted(c.client for c in r.clients) for r in whole.reports)
    assert differ(whole.reports[0].state.model or {}, whole.model)


@pytest.mark.slow
def test_wherever_it_is_cut_and_whoever_runs_it(case: tuple[dict[str, Any], Play]) -> None:
    settings, whole = case
    same(whole, play(settings))
    same(whole, play(settings, cuts=(1, 2, 3)))
    for num_workers in (1, 2, 3, 8, 17):
        same(whole, play(settings, partial(Shuffled, num_workers, num_workers)))
