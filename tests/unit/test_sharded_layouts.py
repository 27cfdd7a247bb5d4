"""Sharded layouts of models, counted without ranks: against the formulas, against the rules, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError, ResumeError
from orchestrator.planning import plan
from orchestrator.preparing import prepare
from orchestrator.run import resume_run, run
from orchestrator.sharded_layouts import Layouts, divide
from strategies.sharded import Operator, Split, parse, signatures
from trainers.sharded.forecast import Line

HERE = Path(__file__).parent
SCALARS = 200
"""Bytes of losses, weights and norms, single numbers that the formulas leave out."""
MEMORY = {"activations": "int8", "min_elements": 64}
MEGATRON = {"mix.[qkv].*": "S(0)", "mix.out.weight": "S(1)"}
HEADS = {"target": "toy_sharded:attention", "kwargs": {"heads": 4}}


@pytest.fixture(autouse=True)
def toys_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


def raw(model: Any = None, **strategy: Any) -> dict[str, Any]:
    return {
        "name": "x", "data": {"name": "digits", "limit": 200}, "model": model or {"name": "mlp", "hidden": [32]},
        "strategy": {"kind": "sharded", "batch_size": 16, **strategy}, "tracking": {"enabled": False},
    }  # fmt: skip


def layouts(model: Any = None, **strategy: Any) -> Layouts:
    loaded = load_experiment(raw(model, **strategy))
    return divide(prepare(loaded), loaded.where)


@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        (None, {"placements": {}}),
        (None, {"placements": {"1.*": "S(0)", "3.weight": "S(1)"}}),
        (None, {"placements": {"1.*": "S(0)", "3.weight": "S(1)"}, "mesh": [2, 2], "accumulate": 3}),
        (None, {"placements": {"1.*": "S(0)"}}),
        ({"name": "cnn"}, {"placements": {}}),
        (HEADS, {"placements": {}, "mesh": [4]}),
    ],
)  # fmt: skip
def test_bytes_are_those_of_the_formulas(model, strategy) -> None:
    found = layouts(model, **strategy)
    assert found.unknown == ()
    assert abs(found.sent_bytes - found.paper.step_bytes(strategy.get("accumulate", 1))) <= SCALARS


_KINDS = {
    "addmm": "linear", "mm": "matmul", "bmm": "matmul", "relu": "pointwise", "gelu": "pointwise", "add": "add",
    "embedding": "embedding", "native_layer_norm": "layer-norm", "_softmax": "softmax", "t": "permute",
    "_log_softmax": "softmax",
}  # fmt: skip


def as_operator(line: Line) -> Operator | None:
    name = line.operator.removeprefix("aten.").split(".")[0]
    if name not in _KINDS or line.collectives:
        return None
    shapes = tuple(shape for shape, _ in line.inputs)
    arguments = {"dims": 1, "dim": -1} if name != "t" else {"dims": tuple(reversed(range(len(shapes[0]))))}
    return Operator(_KINDS[name], ("x",) * len(shapes), "y", shapes, line.output[0], arguments)


@pytest.mark.parametrize(
    ("model", "placements"),
    [(None, {}), (None, {"1.*": "S(0)", "3.weight": "S(1)"}), (HEADS, {}), (HEADS, MEGATRON)],
)
def test_what_the_rules_deduce_is_what_torch_deduces(model, placements) -> None:
    """Operator by operator, forward and backward, wherever a kind is known and nothing had to be sent."""
    seen = 0
    for line in layouts(model, placements=placements).counted.lines:
        op = as_operator(line)
        if op is None or "plain" in {placed for _, placed in line.inputs}:
            continue
        placed = [parse(text) for _, text in (*line.inputs, line.output)]
        parts = {placement.parts for placement in placed if isinstance(placement, Split)}
        legal = [found[:2] for found in signatures(op, sorted(parts | {1}))]
        assert (tuple(placed[:-1]), placed[-1]) in legal, line
        seen += 1
    assert seen >= 9


def test_heads_are_split_with_one_sum_forward_and_one_back() -> None:
    found = layouts(HEADS, placements=MEGATRON)
    sent = [(line.layer, line.backward, line.collectives) for line in found.counted.lines if line.collectives]
    activations = 2 * 16 * 8 * 24 * 4
    assert sent == [("mix.out", False, (("all-reduce", activations),)), ("norm", True, (("all-reduce", activations),))]


def test_heads_that_do_not_divide_are_gathered_and_counted() -> None:
    found = layouts({**HEADS, "kwargs": {"heads": 3}}, placements=MEGATRON)
    assert found.counted.counts["all-gather"] == 4
    assert found.counted.lines and found.sent_bytes > layouts(HEADS, placements=MEGATRON).sent_bytes


def test_auto_takes_the_cut_of_megatron_for_a_wide_layer_and_examples_for_a_large_batch() -> None:
    wide = layouts({"name": "mlp", "hidden": [512]})
    assert wide.settings.placements == {"1.weight": ("S(0)",), "1.bias": ("S(0)",), "3.weight": ("S(1)",)}
    assert wide.settings.batch_axes == () and wide.sent_bytes == 2 * 16 * 10 * 4 + 32
    many = layouts({"name": "mlp", "hidden": [4]}, batch_size=128)
    assert (many.settings.placements, many.settings.batch_axes) == ({}, (0,))


def test_axes_that_split_no_parameter_share_the_batch() -> None:
    placements = {"1.*": "S(0)", "3.weight": ["B", "S(1)"]}
    assert layouts(placements=placements, mesh=[2, 2]).settings.batch_axes == (0,)
    assert layouts(placements=placements, mesh=[2, 2], batch_axes=[]).settings.batch_axes == ()


def test_the_first_pattern_that_matches_counts() -> None:
    found = layouts(placements={"1.bias": "B", "1.*": "S(0)"})
    assert found.settings.placements == {"1.weight": ("S(0)",)}


def test_the_plan_shows_each_operator_with_what_it_sends() -> None:
    told = plan(load_experiment(raw(placements={"1.*": "S(0)", "3.weight": "S(1)"})))
    lines = [" ".join(line.split()) for _, section in told.sections() for line in section]
    for line in (
        "1.weight S(0)", "every rank has every example", "1 addmm S(0), B, S(1) -> S(1)", "3 addmm B, S(1), S(0) -> P",
        "3 boxing P -> B all-reduce 1.2 KiB", "1, backward mm S(0), B -> S(0)", "counted 1,312",
        "by the formulas 1,280 losses and norms, which are single numbers, left out",
        "data parallel 18.8 KiB",
    ):  # fmt: skip
        assert any(line in shown for shown in lines), (line, lines)


def test_the_plan_expects_a_quarter_of_the_activations_in_8_bits() -> None:
    exact, rounded = (layouts(HEADS, placements=MEGATRON, batch_size=64, memory=memory) for memory in (None, MEMORY))
    assert exact.counted.plain_activation_bytes == exact.counted.activation_bytes
    assert rounded.counted.plain_activation_bytes == exact.counted.activation_bytes
    assert 3 < exact.counted.activation_bytes / rounded.counted.activation_bytes < 4
    assert rounded.sent_bytes == exact.sent_bytes
    saved = exact.counted.activation_bytes - rounded.counted.activation_bytes
    assert exact.rank_bytes - rounded.rank_bytes == saved
    assert 0 < rounded.paper.rank_bytes < exact.paper.rank_bytes


def test_8_bits_let_a_layout_fit_that_would_not_and_patterns_leave_layers_out() -> None:
    few = {"batch_size": 96, "optimizer": {"name": "sgd"}}
    plain, rounded = layouts(**few), layouts(**few, memory=MEMORY)
    bound = (plain.rank_bytes + rounded.rank_bytes) // 2
    assert layouts(**few, memory=MEMORY, rank_memory=bound).rank_bytes <= bound
    some = layouts(**few, memory={**MEMORY, "layers": {"^1$": "none"}})
    assert rounded.rank_bytes < some.rank_bytes < plain.rank_bytes
    told = plan(load_experiment(raw(**few, memory=MEMORY)))
    lines = [" ".join(line.split()) for _, section in told.sections() for line in section]
    assert any(line.startswith("activations kept") and "of a batch, in 8 bits;" in line for line in lines)


@pytest.mark.parametrize(
    ("strategy", "message", "hint"),
    [
        ({"placements": {"*.fc1.weight": "S(0)"}}, "matches no parameter of the model", "it has 1.weight"),
        ({"placements": {"1.weight": "P"}}, "P is a sum that is still to be added up", ""),
        ({"placements": {"1.weight": "X"}}, "'X' is no placement; expected S(0)", ""),
        ({"placements": {"1.weight": ["B", "B"]}}, "got 2 placements for the 1 axes", "one an axis"),
        ({"placements": {"1.bias": "S(1)"}}, "1.bias has shape [32], so S(1) splits a dimension", "S(0), or B"),
        ({"placements": {"3.weight": "S(0)"}, "mesh": [16]}, "3.weight has 10 of dimension 0, fewer than", "B"),
        ({"placements": {"1.weight": "S(0/3)"}}, "3 parts x 2 ranks do not divide", "multiple of 6"),
        ({"placements": {}, "batch_size": 15}, "got 15, which the 2 ranks", "strategy.batch_size=16"),
        ({"placements": {"1.weight": "S(0)"}, "optimizer": {"name": "muon"}}, "steps need whole matrices", "adamw"),
        ({"placements": {}, "batch_axes": [3]}, "got axis 3, expected 0 to 0", ""),
        ({"placements": {}, "rank_memory": 1000}, "but a rank holds", "more ranks in strategy.mesh"),
        ({"placements": {}, "memory": {"layers": "blok"}}, "'blok', which finds no part of the model", "parts are 0"),
        ({"placements": {}, "batch_size": 500}, "expected at most the", "strategy.batch_size"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_type(strategy, message, hint) -> None:
    with pytest.raises(ConfigError) as refused:
        layouts(**strategy)
    problem = refused.value.problems[0]
    assert problem.path.startswith("strategy.") and message in problem.message and hint in problem.hint


def test_an_operator_that_torch_cannot_do_on_pieces_is_told_with_its_layer() -> None:
    with pytest.raises(ConfigError, match=r"layer 'blocks.0.norm1'|layer 'blocks.2.norm2'") as refused:
        layouts({"name": "resnet", "depth": 8}, placements={})
    assert "native_group_norm_backward on [16, 64, 2, 2] S(0)" in str(refused.value)


def test_a_run_in_one_process_is_resumed_on_another_mesh(tmp_path) -> None:
    small = raw(placements={"1.*": "S(0)", "3.weight": "S(1)"}, steps=4, optimizer={"name": "adamw", "lr": 0.01})
    small |= {"cluster": {"workers": 0}, "storage": {"root": str(tmp_path)}, "checkpoint": {"every": 2}}
    whole = run(small, quiet=True)
    half = run({**small, "strategy": {**small["strategy"], "steps": 2}}, quiet=True)
    changes = ("strategy.steps=4", "strategy.mesh=[4]", "strategy.placements={}", "strategy.batch_axes=[0]")
    resumed = resume_run(half.run_dir, overrides=changes, quiet=True)
    for name in ("train/loss", "test/loss", "test/accuracy"):
        assert resumed.metrics[name] == whole.metrics[name]
    with pytest.raises(ResumeError, match=r"strategy.batch_size=8 would change what was already computed"):
        resume_run(half.run_dir, overrides=("strategy.batch_size=8",), quiet=True)
