"""The page on federated learning says what there is: it names everything, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from orchestrator.config import behaviours, load_experiment
from strategies.base import Participation, ServerRule, Update
from strategies.federated import DEFAULT_PACING, SERVER_RULES
from strategies.federated.folding import fold
from strategies.federated.sampling import SAMPLERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "federated.md").read_text()
README = (ROOT / "README.md").read_text()
BASE = {"name": "x", "data": {"name": "digits", "partition": {"kind": "iid", "clients": 30}}, "model": {"name": "cnn"}}


def kinds(union: Any) -> list[str]:
    """Return the kinds of a union of sections."""
    return [section.model_fields["kind"].annotation.__args__[0] for section in get_args(get_args(union)[0])]


NAMES = [
    *SERVER_RULES, *SAMPLERS, *set(DEFAULT_PACING.values()), *behaviours.Behaviour.model_fields,
    *(kind for union in (behaviours.Speed, behaviours.Availability, behaviours.Pause, behaviours.Steps)
      for kind in kinds(union)),
]  # fmt: skip


@pytest.mark.parametrize("name", sorted({*NAMES}))
def test_the_page_names_what_there_is(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("page", [PAGE, README], ids=["federated", "readme"])
def test_its_sections_are_valid(page: str) -> None:
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    for section in found:
        shared = section.get("strategy", {}).get("kind") in ("local-learning", "zero", "sharded")
        rows = {"data": {"name": "digits"}} if shared else {}
        load_experiment({**BASE, **rows, **section})
    assert found


def test_the_table_lists_the_fields_of_each_algorithm() -> None:
    table = PAGE.split("## Algorithms")[1].split("##")[0]
    rows = re.findall(r"^\| ((?:`[\w-]+` ?)+)\|.*\| ([^|]*) \|$", table, re.M)[1:]
    listed = {
        name: set(re.findall(r"`(\w+)`", fields)) for names, fields in rows for name in re.findall(r"[\w-]+", names)
    }
    assert listed.keys() == SERVER_RULES.keys()
    for name, fields in listed.items():
        section = load_experiment({**BASE, "strategy": {"algorithm": {"name": name}}}).experiment.strategy.algorithm
        own = set(section.arguments())
        assert own <= fields and (own == fields or name == "fedadagrad"), name


def test_the_rule_of_the_page_is_a_rule() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    made: dict[str, Any] = {}
    exec(code, made)
    rule = made["fedsign"](num_clients=3, server_lr=0.5)
    assert isinstance(rule, ServerRule)
    model = {"w": torch.tensor([1.0, 2.0])}
    changes = [torch.tensor([3.0, -1.0]), torch.zeros(2)]
    updates = [Update("a", {"w": change}, 1.0, 1, {}) for change in changes]
    folded = fold(rule.contribute(update, Participation()) for update in updates)
    assert folded is not None
    _, moved = rule.step(rule.init(model), model, folded)
    assert moved["w"].tolist() == [1.5, 1.5]


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).resolve().exists(), target
    for example in re.findall(r"`(examples/\w+\.yaml)`", PAGE):
        assert (ROOT / example).is_file()
