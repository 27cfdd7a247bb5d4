"""How far attackers on a line move a defence, known without asking it, is what asking it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.attacks import Knowledge, attack
from strategies.robust import Context, line, robust
from strategies.robust.columns import mean_between, selectors
from strategies.robust.line import moved_by

CLIPPING, NNM = {"name": "clipping", "radius": 2.0}, {"name": "nnm"}
CHAINS = [
    ([], "trimmed_mean"), ([NNM], "trimmed_mean"), ([CLIPPING, NNM], "trimmed_mean"), ([CLIPPING], "median"),
    ([NNM, CLIPPING], "geometric_median"), ([], "geometric_median"), ([CLIPPING, NNM], "median"),
]  # fmt: skip


def vectors(num: int, size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Vectors of mixed signs and lengths around a common one."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(0, 1, (num, size)) * rng.uniform(0.1, 1.5, (num, 1)) + rng.normal(0, 0.5, size)
    return torch.from_numpy(drawn).to(dtype)


def asked(chain: Any, context: Context, honest: Tensor, base: Tensor, along: Tensor, f: int, t: float) -> float:
    together = torch.cat([honest, (base + t * along).repeat(f, 1)])
    return float((chain.combine(together, context).vector - honest.mean(0)).norm())


@pytest.mark.parametrize(("pre", "name"), CHAINS, ids=lambda part: part if isinstance(part, str) else len(part))
@pytest.mark.parametrize(("num", "f", "size"), [(3, 1, 1), (4, 3, 7), (10, 3, 33_001), (10, 4, 257), (26, 3, 1000)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_it_is_what_the_defence_says(
    pre: list[Any], name: str, num: int, f: int, size: int, dtype: torch.dtype, close: float
) -> None:
    chain, context, honest = robust(pre, {"name": name}), Context(f), vectors(num, size, dtype)
    base, along = vectors(2, size, dtype, seed=1)
    moved = moved_by(chain, context, honest, base, along, f)
    assert moved is not None
    for t in (0.0, -0.3, 1.0, 7.5, -640.0, 1e6):
        expected = asked(chain, context, honest, base, along, f, t)
        assert moved(t) == pytest.approx(expected, rel=close, abs=close), t


@pytest.mark.parametrize(("base", "num_computed"), [(0.0, 2), (1.0, 4)])
def test_vectors_that_clipping_makes_equal_are_looked_at_once(
    base: float, num_computed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, context, honest = (
        robust([CLIPPING, NNM], {"name": "trimmed_mean"}),
        Context(2),
        vectors(7, 50, torch.float32),
    )
    start, along = base * vectors(1, 50, torch.float32, seed=1)[0], vectors(1, 50, torch.float32, seed=2)[0]
    computed = []

    def between(*given: Any) -> float:
        computed.append(1)
        return _between(*given)

    _between = line._between
    monkeypatch.setattr(line, "_between", between)
    moved = moved_by(chain, context, honest, start, along, 2)
    assert moved is not None
    for t in (0.1, 40.0, 900.0, 5000.0):
        assert moved(t) == pytest.approx(asked(chain, context, honest, start, along, 2, t), rel=1e-5)
    assert len(computed) == num_computed


def test_a_rule_that_is_not_known_so_is_to_be_asked() -> None:
    honest = vectors(9, 5)
    for pre, name in (([], "krum"), ([{"name": "arc"}], "median"), ([{"name": "bucketing"}], "trimmed_mean")):
        assert moved_by(robust(pre, {"name": name}), Context(1), honest, honest[0], honest[1], 1) is None


def test_numbers_that_are_too_large_are_left_to_the_defence() -> None:
    honest, chain = vectors(5, 3), robust([], {"name": "median"})
    assert moved_by(chain, Context(1), honest, torch.full((3,), torch.inf), honest[0], 1) is None
    moved = moved_by(chain, Context(1), honest, honest[0], honest[1], 1)
    assert moved is not None and moved(1.0) is not None and moved(1e40) is None


def test_too_few_vectors_are_refused_as_by_the_defence() -> None:
    honest = vectors(2, 3)
    with pytest.raises(ValueError, match="n=4 vectors are too few for f=2"):
        moved_by(robust([], {"name": "median"}), Context(2), honest, honest[0], honest[1], 2)


@pytest.mark.parametrize("name", ["optimal_little_is_enough", "optimal_inner_product_manipulation"])
@pytest.mark.parametrize("quick", [lambda *given: None, lambda *given: lambda t: None], ids=["no rule", "no number"])
def test_an_attack_asks_the_defence_where_there_is_no_quicker_way(name: str, quick: Callable[..., Any]) -> None:
    chain, honest = robust([], {"name": "median"}), vectors(7, 11)
    told = Knowledge(2, lambda rows: chain.combine(rows, Context(2)).vector)
    assert torch.equal(attack(name).apply(honest, told._replace(moved_by=quick)), attack(name).apply(honest, told))


@pytest.mark.parametrize("name", ["optimal_little_is_enough", "optimal_inner_product_manipulation"])
@pytest.mark.parametrize("aggregator", ["median", "trimmed_mean", "geometric_median"])
def test_an_attack_finds_the_same_factor_the_quicker_way(name: str, aggregator: str) -> None:
    """Without clipping factors differ in harm, so rounding does not choose."""
    chain, context, honest = robust([NNM], {"name": aggregator}), Context(2), vectors(7, 301)
    slow = Knowledge(2, lambda rows: chain.combine(rows, context).vector)
    calls = []

    def quick(*given: Any) -> Any:
        calls.append(given)
        return moved_by(chain, context, *given)

    found = attack(name).apply(honest, slow._replace(aggregate=_never, moved_by=quick))
    assert len(calls) == 1
    assert torch.equal(found, attack(name).apply(honest, slow))


def _never(rows: Tensor) -> Tensor:
    raise AssertionError("the defence was asked")


@pytest.mark.parametrize("num", [1, 2, 3, 7, 12, 13, 24, 25])
def test_numbers_between_two_places_are_averaged_as_if_sorted(num: int) -> None:
    values = vectors(num, 501)
    values[:, ::7] = values[:, ::7].round()  # ties
    ordered = values.sort(0).values
    for low in range(num):
        for high in range(low + 1, num + 1):
            expected = ordered[low:high].mean(0)
            torch.testing.assert_close(mean_between(values.clone(), low, high), expected, rtol=0, atol=1e-12)


def test_fewer_numbers_are_compared_than_sorting_takes() -> None:
    assert selectors(13, 0, 13) == ()  # all are kept, in any order
    assert len(selectors(5, 0, 1)) == 4 and all(smaller and not larger for _, _, smaller, larger in selectors(5, 0, 1))
